"""Convert an ONNX graph to a TensorRT plan, and prove it before it is kept (recipe step 4).

Precision first (in the graph), then the judgement of the graph, the build, and on a GPU the plan's
own layers and the judgement of what it answers. The plan and its record are written at the end, so
that whatever fails leaves what was there.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import graph, photos
from pipeline.builder import Builder
from pipeline.plan import PlanRecord, sidecar
from pipeline.plan_options import QUANTIZED, PlanOptions
from pipeline.proof import Worker, in_words, judged, run_plan
from pipeline.verify import Tolerance
from provision import tensorrt_python
from provision.build_manifest import BuildManifest
from provision.console import say, step, warn
from provision.errors import ConversionError, SlipwayError
from provision.files import fresh_folder, sha256, write_atomically
from provision.gpu import Device, read_driver
from provision.layout import Layout
from provision.tensorrt_python import TensorRtPython

# What RTX plans are built for where nothing is said: what the library itself would take is the GPU
# of the host. https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
_RTX_CAPABILITIES = ("8.6", "8.9", "12.0")
_RTX_FP8 = ("8.9", "12.0")
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Conversion:
    """What to convert.

    Attributes:
        onnx: The graph, fp32.
        plan: The file to write.
        options: What the plan is built with.
        preprocessing: What images go through before the model; empty where that is not known.
        name: What the model is called, in messages and logs.
    """

    onnx: Path
    plan: Path
    options: PlanOptions
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


def tensorrt_of(layout: Layout, engine: str, wanted: str = "") -> TensorRtPython:
    """The TensorRT that an engine's name stands for.

    Raises:
        HostError: It is not installed.
    """
    if engine == "tensorrt_rtx":
        return tensorrt_python.for_rtx(layout)
    return tensorrt_python.find(layout, wanted)


def tensorrt_for_a_plan_alone(layout: Layout, engine: str) -> TensorRtPython:
    """The same where nothing is deployed: that of the server built here, or any with a warning.

    Raises:
        HostError: None is installed.
    """
    server = BuildManifest.read(layout.triton / "server")
    wanted = server.tensorrt if server else ""
    if engine == "tensorrt_rtx" or not wanted:
        return tensorrt_of(layout, engine)
    known = [one.version for one in tensorrt_python.candidates(layout)]
    if any(tensorrt_python.agree(version, wanted) for version in known) or not known:
        return tensorrt_of(layout, engine, wanted)
    warn(
        f"the server built here has TensorRT {wanted}, and cannot load this plan; "
        f"`nox -s install_tensorrt -- --wheels {wanted}` brings that"
    )
    return tensorrt_of(layout, engine)


def convert(layout: Layout, conversion: Conversion, tensorrt: TensorRtPython) -> PlanRecord:
    """Convert, verify, and write the plan with its record.

    Raises:
        ConversionError: The graph is not whole, or TensorRT does not take it.
        VerificationError: What comes out differs from ONNX Runtime by more than is allowed.
        UsageError: The options do not fit the graph or this TensorRT.
        HostError: TensorRT cannot be used on this host.
    """
    driver, devices = read_driver()
    name = conversion.name or conversion.onnx.stem
    log = layout.logs / f"convert-{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with _work(layout, name) as work:
        builder = Builder(tensorrt, devices, work, log)
        options = _settled(conversion.options, builder)
        builder.check(options)
        say(f"{tensorrt.name}: {_typing(builder)}; {_tf32(options)}")
        worker = Worker(layout, work, log)
        found = worker({"job": "read", "onnx": str(conversion.onnx)})
        whole = graph.from_json(found)
        profile = whole.profile(options.batches)
        if not tensorrt.rtx:
            with step(f"Try {tensorrt.name}") as trying:
                builder.probe(trying.progress)
        prepared = _put_precision(worker, conversion, options, work, whole)
        plan = work / "model.plan"
        converted = work / "converted.onnx"
        cache = _timing_cache(layout, options, builder)
        with step(f"Build {name} in {options.precision} with {tensorrt.name}") as building:
            try:
                built = builder.build(
                    converted,
                    plan,
                    options,
                    profile,
                    timing_cache=cache,
                    progress=building.progress,
                )
            except ConversionError as error:
                raise _with_line(worker, converted, error) from None
            building.detail = (
                f"{plan.stat().st_size / 2**20:.1f} MiB, {_summary(built['layers'], options)}"
            )
        engine, verdict = run_plan(
            worker, builder, conversion.onnx, options, prepared, work, profile
        )
        verification = {
            **({"graph": prepared["graph"]} if "graph" in prepared else {}),
            **({"plan": verdict} if verdict else {}),
        }
        record = PlanRecord(
            product="tensorrt_rtx" if tensorrt.rtx else "tensorrt",
            tensorrt=built["tensorrt"],
            sha256=sha256(plan),
            onnx_sha256=sha256(conversion.onnx),
            precision=options.precision,
            strongly_typed=builder.strongly_typed,
            inputs=found["inputs"],
            outputs=found["outputs"],
            profile=profile,
            gpu=_gpu(driver, devices) if builder.runs else {},
            capabilities=options.capabilities,
            options={**options.to_json(), "flags": built["flags"]},
            layers=built["layers"],
            engine=engine,
            verification=verification,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        _write(plan, record, conversion.plan)
    return record


def prove(
    layout: Layout,
    conversion: Conversion,
    plan: Path,
    record: PlanRecord,
    tensorrt: TensorRtPython,
) -> PlanRecord:
    """Run a plan that was built before against its graph; its record with what came of it.

    Raises:
        VerificationError: It does not compute what the graph computes.
        HostError: TensorRT cannot be used on this host.
    """
    _, devices = read_driver()
    log = layout.logs / f"convert-{conversion.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with _work(layout, conversion.name) as work:
        builder = Builder(tensorrt, devices, work, log)
        worker = Worker(layout, work, log)
        whole = graph.from_json(worker({"job": "read", "onnx": str(conversion.onnx)}))
        shutil.copyfile(plan, work / "model.plan")
        options = replace(conversion.options, precision="fp32", debug=False)
        prepared = _put_precision(worker, conversion, options, work, whole)
        options = replace(options, precision=record.precision)
        engine, verdict = run_plan(worker, builder, conversion.onnx, options, prepared, work, {})
    verification = {**record.verification, **({"plan": verdict} if verdict else {})}
    return replace(record, engine=engine or record.engine, verification=verification)


@contextmanager
def _work(layout: Layout, name: str) -> Iterator[Path]:
    work = layout.transit / "convert" / f"{_UNSAFE.sub('_', name)}-{os.getpid()}"
    fresh_folder(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _settled(options: PlanOptions, builder: Builder) -> PlanOptions:
    if builder.tensorrt.rtx and not options.capabilities:
        usual = _RTX_FP8 if options.precision == "fp8" else _RTX_CAPABILITIES
        return replace(options, capabilities=usual)
    return options


def _put_precision(
    worker: Worker,
    conversion: Conversion,
    options: PlanOptions,
    work: Path,
    whole: graph.Graph,
) -> dict[str, Any]:
    request = _precision_request(conversion, options, work, whole)
    with step(f"Put {options.precision} into the graph") as putting:
        answer = worker(request, putting.progress)
        if "cases" in answer:
            tolerance = Tolerance.of(options.precision)
            answer["graph"] = judged("the graph", answer["cases"], tolerance, worker.log)
            putting.detail = in_words(answer["graph"])
        else:
            putting.detail = "as it is"
        if options.precision in QUANTIZED:
            putting.detail += f"; calibrated with {answer['calibrated']} images"
    return answer


def _precision_request(
    conversion: Conversion, options: PlanOptions, work: Path, whole: graph.Graph
) -> dict[str, Any]:
    return {
        "job": "precision",
        "onnx": str(conversion.onnx),
        "converted": str(work / "converted.onnx"),
        "inputs": str(work / "inputs.npz"),
        "precision": options.precision,
        "preprocessing": dict(conversion.preprocessing),
        "photos": {photo.name: str(photo.path) for photo in photos.sample_photos()},
        "calibration": str(options.calibration or ""),
        "batches": options.batches.each if options.batches and whole.dynamic else [],
    }


def _summary(layers: Mapping[str, Mapping[str, int]], options: PlanOptions) -> str:
    computing = ("CONVOLUTION", "MATRIX_MULTIPLY", "DECONVOLUTION", "FULLY_CONNECTED")
    kinds = [f"{sum(layers[k].values())} {k.lower()}" for k in computing if k in layers]
    quantized = "quantized to " if options.precision in QUANTIZED else "in "
    return f"{', '.join(kinds) or 'no computing'} layers {quantized}{options.precision}"


def _with_line(worker: Worker, converted: Path, error: ConversionError) -> SlipwayError:
    """The error of a node, with the node's line of the ONNX graph."""
    named = re.search(r"node \d+ \((.+?)\)", error.what)
    text = (
        worker({"job": "line", "onnx": str(converted), "node": named.group(1)})["line"]
        if named
        else ""
    )
    if text:
        error.cause = f"the node is: {text[:300]}"
    return error


def _timing_cache(layout: Layout, options: PlanOptions, builder: Builder) -> Path | None:
    """Tactics are measured per GPU and version; RTX measures none when it builds."""
    if builder.tensorrt.rtx:
        return options.timing_cache
    if options.timing_cache:
        return options.timing_cache.expanduser().absolute()
    gpu = _UNSAFE.sub("-", builder.devices[0].name) if builder.devices else "no-gpu"
    folder = layout.factory / "timing"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"tensorrt-{builder.tensorrt.version}-{gpu}.cache"


def _gpu(driver: str, devices: tuple[Device, ...]) -> dict[str, str]:
    first = devices[0]
    return {"name": first.name, "capability": first.capability, "driver": driver}


def _typing(builder: Builder) -> str:
    if builder.strongly_typed:
        return "strongly typed, so each layer computes in the graph's types"
    return "the precision is a flag of the builder"


def _tf32(options: PlanOptions) -> str:
    return "TF32 is on, as asked" if options.precision == "tf32" else "TF32 is off"


def _write(plan: Path, record: PlanRecord, target: Path) -> None:
    """Put a plan and its record in place; a plan is never beside another one's record."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sidecar(target).unlink(missing_ok=True)
    staged = target.with_name(f".{target.name}.new")
    try:
        shutil.copyfile(plan, staged)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    write_atomically(sidecar(target), record.to_text())
