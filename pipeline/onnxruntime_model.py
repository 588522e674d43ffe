"""The embedded engine: a model for Triton's Python backend that runs ONNX Runtime.

Deployed as ``model.py`` beside ``model.onnx``. It runs inside the backend's stub, in the serving
environment, so it imports nothing of Slipway.
https://github.com/triton-inference-server/python_backend#usage
"""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_LAST_NUMPY_MAJOR = 1


class TritonPythonModel:
    """One instance: ONNX Runtime sessions on the CPU, with all threads and with one."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session, with the threads that the configuration asks for.

        Raises:
            TritonModelException: numpy is newer than the backend's stub can read.
        """
        if int(np.__version__.split(".")[0]) > _LAST_NUMPY_MAJOR:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} is installed where the server runs, and this Triton's "
                "Python backend reads numpy 2 arrays wrong without an error; install 'numpy<2' "
                "there, or start the server with `nox -s serve`"
            )
        config = json.loads(args["model_config"])
        self.threads = int(config["parameters"]["intra_op_num_threads"]["string_value"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = _session(path, self.threads)
        self.single = _session(path, 1) if self.threads > 1 else self.session
        self.pool = concurrent.futures.ThreadPoolExecutor(self.threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by a run of its own.

        As many requests as there are threads run at the same time, a thread each, which is where
        the throughput is; the rest run one after another on all threads, which answers soonest.
        Merging requests into one run would gain nothing on a CPU, and a row's last bits would
        depend on who else asks at the moment. They do not depend on the number of threads.
        """
        images = [pb_utils.get_input_tensor_by_name(r, "input").as_numpy() for r in requests]
        together = len(images) - len(images) % self.threads
        answers = list(self.pool.map(lambda image: _run(self.single, image), images[:together]))
        answers += [_run(self.session, image) for image in images[together:]]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("output", a)]) for a in answers]

    def finalize(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A spinning thread takes the core that the server's own threads need next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, image: NDArray[np.float32]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run(["output"], {"input": image})[0]
    return logits
