"""What the served throughput is compared with: ONNX Runtime alone, in a process of its own.

Run by :mod:`pipeline.benchmark` in the serving environment as ``python -m pipeline.in_process``,
so that it is the same ONNX Runtime.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime as ort

from pipeline import worker

_WARM_UP = 3


def measure(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """Run a model over and over, one image at a time, with ONNX Runtime's default options.

    Args:
        request: "onnx" (the file), "side" (of the square input, in pixels) and "seconds".
        progress: Told what is being done.

    Returns:
        "throughput" in images a second, "runs", and "onnxruntime", its version.
    """
    session = ort.InferenceSession(request["onnx"], providers=["CPUExecutionProvider"])
    side = request["side"]
    image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    for _ in range(_WARM_UP):
        session.run(["output"], {"input": image})
    progress(f"ONNX Runtime {ort.__version__} alone")
    runs = 0
    begun = time.perf_counter()
    while (passed := time.perf_counter() - begun) < request["seconds"]:
        session.run(["output"], {"input": image})
        runs += 1
    return {"throughput": runs / passed, "runs": runs, "onnxruntime": ort.__version__}


if __name__ == "__main__":
    worker.main(measure)
