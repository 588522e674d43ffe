"""All calls of TensorRT, in one file: the worker that builds, inspects and runs plans.

Run by :mod:`pipeline.builder` as ``python -m pipeline.tensorrt_worker REQUEST RESULT`` with the
Python that has TensorRT. TensorRT 8.0's wheels end with Python 3.9, so this is written for Python
3.8 and imports nothing of Slipway; Polygraphy is the release that fits
(https://github.com/NVIDIA/TensorRT/tree/main/tools/Polygraphy).

One path serves TensorRT 8.0 to 11 and TensorRT for RTX. What differs is in :func:`_configure`:

=================  ============================================================================
8.0 to 10.11       precisions are flags of the builder, which may compute in a wider one
10.12 to 11, RTX   strongly typed: each layer computes in the types that the ONNX graph has;
                   11 and RTX know nothing else
=================  ============================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt  # which :func:`_load` loads; RTX has the same interface

MARK = "slipway: "  # what a progress line begins with, see pipeline.worker
_COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY")
_FLAGS = {"fp16": "FP16", "int8": "INT8", "fp8": "FP8"}
_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "int8": "INT8", "fp8": "FP8"}
# How EngineInspector writes them, over the versions.
_WRITTEN = {
    "fp32": ("FP32", "Float"),
    "fp16": ("FP16", "Half"),
    "bf16": ("BF16", "BFloat16"),
    "int8": ("Int8", "INT8"),
    "fp8": ("FP8",),
}
_LEAST_QUANTIZED = 0.5


class Failure(Exception):  # noqa: N818 - it is what failed, in one word and more
    """What went wrong, as :mod:`pipeline.builder` tells it apart.

    Args:
        kind: One word for it.
        what: In words.
        details: More, as plain data.
    """

    def __init__(self, kind: str, what: str, **details: Any) -> None:
        super().__init__(what)
        self.kind = kind
        self.details = details


def probe(_: dict[str, Any]) -> dict[str, Any]:
    """Load TensorRT and make a builder, which needs the libraries and, but for RTX, a GPU."""
    _load()
    logger = _Logger()
    try:
        builder = trt.Builder(logger.logger)
    except TypeError:  # pybind11's word for: TensorRT made none
        builder = None
    if builder is None:
        raise Failure("no builder", "; ".join(logger.errors) or "TensorRT makes no builder")
    return {"tensorrt": str(trt.__version__), "python": sys.version.split()[0]}


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse an ONNX file, build a plan and write it.

    Nothing is deserialized, so no GPU is needed where the builder needs none.

    Args:
        request: "onnx" and "plan" (files), "precision", "strongly_typed", "profile" (by input: min,
            opt and max shape), "workspace" (bytes, 0 for all there is), "opt_level", "hardware",
            "version_compatible", "capabilities" (for RTX), "timing_cache" (a file), and
            "all_outputs" (whether every tensor of the network is an output, for debugging).

    Returns:
        "layers" (how many of each type compute in which type), "quantized" (the share of computing
        layers whose inputs are quantized), "flags", "seconds" and "tensorrt".
    """
    _load()
    from polygraphy.backend.trt import engine_bytes_from_network, modify_network_outputs

    _tell("parsing")
    network = _parse(request)
    if request["all_outputs"]:
        from polygraphy import constants

        network = modify_network_outputs(network, outputs=constants.MARK_ALL)
    layers, quantized = _layers(network[1])
    _check_precision(request, layers, quantized)
    _tell("building")
    begun = time.time()
    flags: list[str] = []
    with _polygraphy("build") as said:
        plan = engine_bytes_from_network(
            network,
            config=_configure(request, flags),
            save_timing_cache=request["timing_cache"] or None,
        )
    del said
    Path(request["plan"]).write_bytes(bytes(plan))
    return {
        "tensorrt": str(trt.__version__),
        "layers": {kind: dict(types) for kind, types in layers.items()},
        "quantized": quantized,
        "flags": flags,
        "seconds": round(time.time() - begun, 1),
    }


def inspect(request: dict[str, Any]) -> dict[str, Any]:
    """Deserialize a plan on the GPU and read the precision of each of its layers.

    Args:
        request: "plan" (a file) and "precision".

    Returns:
        "layers" (how many layers write in which precision) and "memory" (of the device, in bytes).
    """
    _load()
    from polygraphy.backend.trt import engine_from_bytes

    with _polygraphy("load"):
        engine = engine_from_bytes(Path(request["plan"]).read_bytes())
    memory = int(getattr(engine, "device_memory_size", 0))
    if not hasattr(engine, "create_engine_inspector"):  # before 8.2, which builds fp32 alone
        return {"layers": {}, "memory": memory}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = engine_precisions(json.loads(text))
    wanted = "fp32" if request["precision"] == "tf32" else request["precision"]
    if not layers.get(wanted):
        raise Failure(
            "precision",
            f"{wanted} was asked for, and no layer of the plan computes in it: {layers}",
        )
    return {"layers": layers, "memory": memory}


def infer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a plan on the GPU over arrays, with Polygraphy's runner.

    Args:
        request: "plan", "inputs" (a .npz, one array an iteration for each input, named
            ``ITERATION/INPUT``) and "outputs" (the .npz to write, the same way).
    """
    _load()
    import numpy as np
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.comparator import Comparator

    feeds: dict[str, dict[str, Any]] = {}
    with np.load(request["inputs"]) as arrays:
        for key in arrays.files:
            iteration, _, name = key.partition("/")
            feeds.setdefault(iteration, {})[name] = arrays[key]
    with _polygraphy("run"):
        runner = TrtRunner(EngineFromBytes(Path(request["plan"]).read_bytes()), name="TensorRT")
        results = Comparator.run([runner], data_loader=list(feeds.values()))
    written: Any = {
        f"{iteration}/{name}": np.asarray(array)
        for iteration, outputs in zip(feeds, results["TensorRT"])  # noqa: B905 - Python 3.8
        for name, array in outputs.items()
    }
    np.savez(request["outputs"], **written)
    return {"iterations": len(feeds)}


def engine_precisions(information: dict[str, Any]) -> dict[str, int]:
    """How many layers of an engine write in which precision, from what its inspector says.

    Layers that only copy or cast do not count.
    """
    found: Counter[str] = Counter()
    for layer in information.get("Layers", []):
        if isinstance(layer, str) or layer.get("LayerType") in {"Reformat", "NoOp", "Cast"}:
            continue
        formats = " ".join(str(o.get("Format/Datatype", "")) for o in layer.get("Outputs", []))
        for precision, names in _WRITTEN.items():
            if any(name in formats.replace("BFloat", "BF") for name in names):
                found[precision] += 1
                break
    return dict(found)


def _parse(request: dict[str, Any]) -> Any:
    from polygraphy.backend.trt import network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    typed = {"strongly_typed": True} if request["strongly_typed"] else {}
    try:
        return network_from_onnx_path(request["onnx"], **typed)
    except PolygraphyException as error:
        # Polygraphy only prints what the parser found; the parser itself knows the nodes.
        errors = _parser_errors(request)
        raise Failure("parse", str(error), errors=errors) from error


def _parser_errors(request: dict[str, Any]) -> list[dict[str, Any]]:
    from polygraphy.backend.trt import create_network

    typed = {"strongly_typed": True} if request["strongly_typed"] else {}
    _, network = create_network(**typed)
    parser = trt.OnnxParser(network, _Logger().logger)
    parser.parse_from_file(request["onnx"])
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [
        {
            "node": error.node(),
            "name": error.node_name() if hasattr(error, "node_name") else "",
            "operator": error.node_operator() if hasattr(error, "node_operator") else "",
            "why": error.desc(),
        }
        for error in errors
    ]


def _configure(request: dict[str, Any], flags: list[str]) -> Callable[..., Any]:
    """The builder's configuration, as Polygraphy's loader makes it."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    profile = Profile()
    for name, (least, best, most) in request["profile"].items():
        profile.add(name, min=tuple(least), opt=tuple(best), max=tuple(most))
    options: dict[str, Any] = {"profiles": [profile]} if request["profile"] else {}
    options.update(_named(request))
    if hasattr(trt, "IProgressMonitor"):  # from 10.0
        options["progress_monitor"] = _progress_monitor()
    flag = _FLAGS.get(request["precision"])
    if flag and not request["strongly_typed"]:
        options[flag.lower()] = True
    if request["precision"] == "fp8" and not request["strongly_typed"]:
        options["fp16"] = True
    if request["rtx"]:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        options["compute_capabilities"] = [tuple(c) for c in request["capabilities"]] or None
        created: Any = CreateConfigRTX(**options)
    else:
        created = CreateConfig(tf32=request["precision"] == "tf32", **options)

    def finish(builder: Any, network: Any, config: Any) -> None:
        del builder, network
        _finish(request, config)
        flags.extend(
            name for name, value in trt.BuilderFlag.__members__.items() if config.get_flag(value)
        )

    return PostprocessConfig(created, finish)  # type: ignore[no-any-return] # it has no types


def _named(request: dict[str, Any]) -> dict[str, Any]:
    """The options that were asked for, by the names that Polygraphy's loader has."""
    options: dict[str, Any] = {}
    if request["timing_cache"]:
        options["load_timing_cache"] = request["timing_cache"]
    if request["opt_level"] is not None:
        options["builder_optimization_level"] = request["opt_level"]
    if request["hardware"]:
        levels = trt.HardwareCompatibilityLevel
        options["hardware_compatibility_level"] = getattr(levels, request["hardware"].upper())
    if request["version_compatible"]:
        options["version_compatible"] = True
    return options


def _finish(request: dict[str, Any], config: trt.IBuilderConfig) -> None:
    """What Polygraphy's loaders leave open: TF32 for RTX, and workspace before 8.4."""
    if request["precision"] == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if not request["workspace"]:
        return
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    else:
        old: Any = config
        old.max_workspace_size = request["workspace"]


def _layers(network: Any) -> tuple[dict[str, Counter[str]], float]:
    """The types that layers write in, by their kind; and the share that computes on quantized."""
    layers: dict[str, Counter[str]] = {}
    quantized = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind, output = layer.type.name, layer.get_output(0)
        layers.setdefault(kind, Counter())[output.dtype.name if output else "NONE"] += 1
        if kind == "DEQUANTIZE":
            quantized[output.name] = True
    computing = [
        layer
        for layer in (network.get_layer(i) for i in range(network.num_layers))
        if layer.type.name in _COMPUTING
    ]
    on_quantized = [layer for layer in computing if layer.get_input(0).name in quantized]
    return layers, round(len(on_quantized) / len(computing), 3) if computing else 0.0


def _check_precision(
    request: dict[str, Any], layers: dict[str, Counter[str]], quantized: float
) -> None:
    """Make sure that the network is in the precision that was asked for, before it is built.

    A strongly typed network is built as it is. With flags the builder chooses, so what it chose is
    read from the plan by :func:`inspect`.
    """
    precision = request["precision"]
    if precision in {"int8", "fp8"}:
        written = layers.get("QUANTIZE", Counter())
        if set(written) != {_TYPES[precision]} or quantized < _LEAST_QUANTIZED:
            raise Failure(
                "precision",
                f"{precision} was asked for, and {quantized:.0%} of the computing layers are "
                f"quantized, to {', '.join(written) or 'nothing'}",
            )
    elif request["strongly_typed"]:
        types = sum((layers[kind] for kind in _COMPUTING if kind in layers), Counter())
        if set(types) - {_TYPES[precision]} or layers.get("QUANTIZE"):
            raise Failure(
                "precision",
                f"{precision} was asked for, and the network's layers compute in {dict(types)}",
            )


def _load() -> None:
    """Load TensorRT, or TensorRT for RTX where Polygraphy is told to use that.

    https://github.com/NVIDIA/TensorRT/blob/main/tools/Polygraphy/polygraphy/config.py
    """
    name = "tensorrt_rtx" if os.environ.get("POLYGRAPHY_USE_TENSORRT_RTX") == "1" else "tensorrt"
    try:
        globals()["trt"] = __import__(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise Failure("no package", f"there is no Python package {name}") from None
        raise Failure("no libraries", str(error)) from None
    except (ImportError, OSError) as error:  # of the loader: which library is missing
        raise Failure("no libraries", str(error)) from None


class _Logger:
    """TensorRT's logger, which keeps errors."""

    def __init__(self) -> None:
        errors: list[str] = []
        severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

        class Keeping(trt.ILogger):  # type: ignore[misc] # a class of the caller's
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in severe:
                    errors.append(message)
                print(message)

        self.errors = errors
        self.logger = Keeping()


def _progress_monitor() -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
        """Tells the phase that the builder is in."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, _: Any, steps: Any) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: Any) -> bool:
            _tell(f"building: {phase}, {step + 1} of {self.steps.get(phase, 0)}")
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


@contextlib.contextmanager
def _polygraphy(kind: str) -> Iterator[list[str]]:
    """Make Polygraphy's exceptions failures, with the errors that TensorRT logged meanwhile."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    said: list[str] = []
    log = G_LOGGER.log

    def keep(message: Any, severity: Any, *arguments: Any, **named: Any) -> Any:
        if severity >= G_LOGGER.ERROR:
            said.append(str(message() if callable(message) else message))
        return log(message, severity, *arguments, **named)

    G_LOGGER.log = keep
    try:
        yield said
    except PolygraphyException as error:
        raise Failure(kind, str(error), errors=said) from error
    finally:
        G_LOGGER.log = log


def _tell(text: str) -> None:
    print(MARK + text, flush=True)


def main() -> None:
    """Read the request, do the job, write the result or the failure."""
    request_file, result_file = map(Path, sys.argv[1:3])
    request = json.loads(request_file.read_text())
    sys.path += request["folders"]  # last, so that only what is not here comes from there
    jobs = {"probe": probe, "build": build, "inspect": inspect, "infer": infer}
    try:
        result = jobs[request["job"]](request)
    except Failure as failure:
        traceback.print_exc()
        result = {"failure": failure.kind, "what": str(failure), **failure.details}
    except Exception as error:  # noqa: BLE001 - the parent shows it
        traceback.print_exc()
        result = {"failure": "unknown", "what": f"{type(error).__name__}: {error}"}
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
