"""Weights, export and verification in one go: the worker that needs torch.

Run by :mod:`pipeline.deploy` in the export environment as ``python -m pipeline.prepare``, so that
torch is imported once.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images, weights, worker
from pipeline.export import export_onnx
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.verify import Array, Tolerance, verify_onnx

_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "polygraphy", "numpy")
_SEED = 20220122
_LARGEST_NOISE_BATCH = 8


def prepare(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """Load, export and verify a model.

    Args:
        request: "model", "weights" (kind and value), "photos" (name to path), "max_batch_size",
            "onnx" and "reference" (files to write).
        progress: Told what is being done.

    Returns:
        What the manifest records of it, as plain data. The reference file holds one array of
        logits a photo, PyTorch's, fp32, shape [classes].
    """
    progress("importing torch")
    from torchvision.models import get_model_weights

    name = request["model"]
    spec = weights.WeightsSpec(request["weights"]["kind"], request["weights"]["value"])
    known = get_model_weights(name)
    preset = known.__members__.get(spec.value) or next(iter(known))
    preprocessing = _preprocessing(preset.transforms())
    progress(f"building {name} with weights {spec}")
    photos = {
        photo: preprocess(images.read_image(Path(path)), preprocessing)
        for photo, path in request["photos"].items()
    }
    inputs = _inputs(photos, preprocessing.crop, request["max_batch_size"])
    calibration = np.concatenate([inputs[0][1], inputs[-1][1][: len(photos)]])
    model, loaded = weights.load(name, spec, calibration=calibration, progress=progress)
    progress("exporting to ONNX")
    export_onnx(model, Path(request["onnx"]), crop=preprocessing.crop)
    progress("comparing ONNX Runtime with PyTorch")
    tolerance = Tolerance.of("fp32")
    cases, references = verify_onnx(model, Path(request["onnx"]), inputs, tolerance)
    np.savez(request["reference"], **dict(zip(photos, references[0], strict=True)))
    return {
        "weights": {
            "spec": str(spec),
            "kind": loaded.kind,
            "value": loaded.value,
            "sha256": loaded.sha256,
            "note": loaded.note,
        },
        "side": preprocessing.crop,
        "classes": int(references[0].shape[1]),
        "preprocessing": preprocessing.to_json(),
        "verification": {
            "between": ["PyTorch", "ONNX Runtime"],
            "atol": tolerance.atol,
            "rtol": tolerance.rtol,
            "reason": tolerance.reason,
            "cases": [case.to_json() for case in cases],
        },
        "libraries": {
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
    }


def _preprocessing(preset: Any) -> Preprocessing:
    """What torchvision's preset does, without torchvision."""
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _inputs(photos: dict[str, Array], side: int, max_batch_size: int) -> list[tuple[str, Array]]:
    """The photos, and seeded noise in the batches that will be served, fp32 NCHW."""
    rng = np.random.default_rng(_SEED)
    largest = min(max(max_batch_size, 1), _LARGEST_NOISE_BATCH)
    noise = [
        (f"seeded noise, batch {n}", rng.standard_normal((n, 3, side, side), np.float32))
        for n in sorted({1, (1 + largest) // 2, largest})
    ]
    return [("sample photos", np.stack(list(photos.values()))), *noise]


if __name__ == "__main__":
    worker.main(prepare)
