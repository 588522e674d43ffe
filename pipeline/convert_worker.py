"""The graph's side of a conversion: read it, put the precision in, and judge what comes out.

Run by :mod:`pipeline.convert` in the convert environment, where ONNX Runtime and Polygraphy are.
Expected is always ONNX Runtime on the CPU, in fp32, with the graph as it was exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import calibration, graph, worker
from pipeline.images import read_image
from pipeline.plan_options import QUANTIZED
from pipeline.precision import convert
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.verify import Array, Tolerance, compare
from provision.errors import ConversionError

_SEED = 20220122
_CLASSIFIER = 4  # dimensions of its input
_RGB = 3

Feeds = list[tuple[str, dict[str, Array]]]


def run(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """Do one of the jobs: "read", "precision", "judge", "bisect" or "line"."""
    return {
        "read": _read,
        "line": _line,
        "precision": _precision,
        "judge": _judge,
        "bisect": _bisect,
    }[request["job"]](request, progress)


def _read(request: dict[str, Any], _: worker.Progress) -> dict[str, Any]:
    found = graph.read(Path(request["onnx"]))
    return {
        "inputs": [tensor.to_json() for tensor in found.inputs],
        "outputs": [tensor.to_json() for tensor in found.outputs],
    }


def _line(request: dict[str, Any], _: worker.Progress) -> dict[str, Any]:
    return {"line": graph.line(Path(request["onnx"]), request["node"])}


def _precision(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """Write the graph in the precision, write the inputs to judge with, and judge the graph.

    The graph is judged where it was changed: on the CPU, by ONNX Runtime, so on any machine.
    """
    source, target = Path(request["onnx"]), Path(request["converted"])
    precision = request["precision"]
    known = graph.read(source)
    preprocessing = _preprocessing(request, known)
    images: list[Array] = []
    if precision in QUANTIZED:
        if preprocessing is None:
            raise ConversionError(
                f"{precision} needs images to calibrate with, and the input "
                f"{known.inputs[0].name} of shape {list(known.inputs[0].shape)} takes none",
                fix="choose --precision fp16 or fp32",
            )
        paths = list(map(Path, request["photos"].values()))
        if request["calibration"]:
            paths = calibration.folder(Path(request["calibration"]))
        progress(f"calibrating with {len(paths)} images")
        images = list(calibration.arrays(paths, preprocessing))
    progress(f"converting the graph to {precision}")
    convert(source, target, precision, images)
    feeds = _feeds(request, known, preprocessing)
    written: Any = {
        f"{n}/{name}": array for n, (_, feed) in enumerate(feeds) for name, array in feed.items()
    }
    np.savez(request["inputs"], **written)
    answer: dict[str, Any] = {"names": [name for name, _ in feeds], "calibrated": len(images)}
    if precision not in {"fp32", "tf32"}:
        progress("comparing the converted graph with the original")
        answer["cases"] = _compare(
            [name for name, _ in feeds],
            _outputs(source, feeds),
            _outputs(target, feeds),
            Tolerance.of(precision),
        )
    return answer


def _judge(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """Judge what a plan answered, with Polygraphy's comparator beside our own figures."""
    progress("comparing the plan with ONNX Runtime")
    feeds = _load_feeds(request["inputs"], request["names"])
    answers = [outputs for _, outputs in _load_feeds(request["outputs"], request["names"])]
    tolerance = Tolerance.of(request["precision"])
    expected = _outputs(Path(request["onnx"]), feeds)
    return {
        "cases": _compare(request["names"], expected, answers, tolerance),
        "polygraphy": _polygraphy_agrees(expected, answers, tolerance),
    }


def _bisect(request: dict[str, Any], progress: worker.Progress) -> dict[str, Any]:
    """The first tensor, in the graph's order, in which a plan differs from ONNX Runtime."""
    import onnx
    from polygraphy import constants
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath

    progress("running every layer with ONNX Runtime")
    path = Path(request["onnx"])
    feeds = _load_feeds(request["inputs"], request["names"][:1])
    everything = ModifyOutputs(OnnxFromPath(str(path)), outputs=constants.MARK_ALL)
    expected = _outputs(BytesFromOnnx(everything), feeds)[0]
    _, answered = _load_feeds(request["outputs"], request["names"][:1])[0]
    limit = Tolerance.of(request["precision"])
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for name in node.output:
            if name not in expected or name not in answered:
                continue
            wanted, got = _row(expected[name]), _row(answered[name])
            if wanted.shape != got.shape or wanted.dtype.kind != "f":
                continue
            allowed = limit.atol + limit.rtol * np.abs(wanted) + limit.spread * wanted.std()
            error = np.abs(wanted - got)
            if not bool((error <= allowed).all()):
                return {
                    "tensor": name,
                    "node": node.name,
                    "operator": node.op_type,
                    "max_abs": float(error.max()),
                    "line": graph.line(path, node.name),
                }
    return {"tensor": ""}


def _row(array: Any) -> Array:
    wide = np.asarray(array)
    return wide.astype(np.float32).reshape(1, -1) if wide.dtype.kind == "f" else wide


def _preprocessing(request: dict[str, Any], known: graph.Graph) -> Preprocessing | None:
    """What images go through before they are the first input; None where it takes no images."""
    if request["preprocessing"]:
        return Preprocessing.from_json(request["preprocessing"])
    first = known.inputs[0]
    square = len(first.shape) == _CLASSIFIER and first.shape[1] == _RGB
    if not square or first.shape[2] != first.shape[3] or first.dtype != "float32":
        return None
    return Preprocessing.usual(first.shape[3])


def _feeds(
    request: dict[str, Any], known: graph.Graph, preprocessing: Preprocessing | None
) -> Feeds:
    """The photos, in batches that the profile allows, and seeded noise in its three batches."""
    rng = np.random.default_rng(_SEED)
    batches: Sequence[int] = request["batches"] or [known.inputs[0].shape[0]]
    feeds: Feeds = []
    if preprocessing and len(known.inputs) == 1 and request["photos"]:
        tensors = [
            preprocess(read_image(Path(path)), preprocessing) for path in request["photos"].values()
        ]
        size = max(min(batches), min(len(tensors), max(batches)))
        for start in range(0, len(tensors), size):
            chosen = [tensors[(start + n) % len(tensors)] for n in range(size)]
            feeds.append(("sample photos", {known.inputs[0].name: np.stack(chosen)}))
    for batch in batches:
        feed = {tensor.name: _noise(rng, tensor, batch) for tensor in known.inputs}
        feeds.append((f"seeded noise, batch {batch}", feed))
    return feeds


def _noise(rng: np.random.Generator, tensor: graph.Tensor, batch: int) -> Array:
    shape = [batch if dim == graph.DYNAMIC else dim for dim in tensor.shape]
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)


def _load_feeds(path: str, names: Sequence[str]) -> Feeds:
    with np.load(path) as arrays:
        return [
            (
                name,
                {k.partition("/")[2]: arrays[k] for k in arrays if k.startswith(f"{n}/")},
            )
            for n, name in enumerate(names)
        ]


def _outputs(model: Any, feeds: Feeds) -> list[dict[str, Array]]:
    """ONNX Runtime's outputs on the CPU, through Polygraphy's runner.

    Only the basic optimizations: the extended ones compute quantized layers with kernels of their
    own, those for float 8 wrongly (onnxruntime 1.32), and a plan should be judged by its graph.
    """
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3

    def session() -> ort.InferenceSession:
        source = model() if callable(model) else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    runner = OnnxrtRunner(session, name="ONNX Runtime")
    results = Comparator.run([runner], data_loader=[feed for _, feed in feeds])
    return [dict(outputs) for outputs in results["ONNX Runtime"]]


def _compare(
    names: Sequence[str],
    expected: Sequence[dict[str, Array]],
    answers: Sequence[dict[str, Array]],
    tolerance: Tolerance,
) -> list[dict[str, Any]]:
    return [
        {**case.to_json(), "worst": list(case.worst)}
        for case in _cases(names, expected, answers, tolerance)
    ]


def _cases(
    names: Sequence[str],
    expected: Sequence[dict[str, Array]],
    answers: Sequence[dict[str, Array]],
    tolerance: Tolerance,
) -> Iterator[Any]:
    for name, wanted, got in zip(names, expected, answers, strict=True):
        for output, array in wanted.items():
            if array.dtype.kind != "f":
                continue
            title = name if len(wanted) == 1 else f"{name}, {output}"
            rows = len(array) if array.ndim else 1
            yield compare(
                title,
                array.astype(np.float32).reshape(rows, -1),
                np.asarray(got[output], np.float32).reshape(rows, -1),
                tolerance,
            )


def _polygraphy_agrees(
    expected: Sequence[dict[str, Array]],
    answers: Sequence[dict[str, Array]],
    tolerance: Tolerance,
) -> bool:
    """What Polygraphy's own comparator says, with the spread of each output as its tolerance."""
    from polygraphy.comparator import Comparator, CompareFunc, RunResults

    results = RunResults()
    results.add([dict(o) for o in expected], runner_name="ONNX Runtime")
    results.add([dict(o) for o in answers], runner_name="TensorRT")
    spread = {
        name: tolerance.atol
        + tolerance.spread * float(max(np.asarray(o[name], np.float32).std() for o in expected))
        for name in expected[0]
    }
    judged = Comparator.compare_accuracy(
        results, compare_func=CompareFunc.simple(atol=spread, rtol=tolerance.rtol)
    )
    return bool(judged)


if __name__ == "__main__":
    worker.main(run)
