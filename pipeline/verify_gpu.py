"""The acceptance run for a GPU host: everything about TensorRT, on the real library, with a report.

Each step is a command that a user could give. With ``--engine tensorrt_rtx`` plans are built on any
machine; what only a GPU can do is then reported as not run, never as passed.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.choose_engine import choose, read_facts
from pipeline.convert import Conversion, convert, tensorrt_of
from pipeline.plan import PlanRecord, read_header, sidecar
from pipeline.plan_options import PRECISIONS, Batches, PlanOptions
from provision.console import console, say
from provision.errors import PlanError, SlipwayError, SmokeError
from provision.files import fresh_folder, write_atomically
from provision.gpu import read_driver
from provision.layout import Layout
from provision.tensorrt_python import TensorRtPython

State = Literal["passed", "failed", "not run"]
_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "not run": ("-", "yellow")}
_FP8_CAPABILITY = (8, 9)
_DYNAMIC, _FIXED = Batches(1, 4, 8), Batches(4, 4, 4)


@dataclass
class Row:
    """One step, and what came of it."""

    step: str
    state: State
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Acceptance:
    """The run: where, on what, and its rows."""

    layout: Layout
    engine: str
    model: str
    weights: str
    rows: list[Row] = field(default_factory=list)

    @functools.cached_property
    def tensorrt(self) -> TensorRtPython:
        """What converts, looked for once."""
        return tensorrt_of(self.layout, self.engine, read_facts(self.layout).wanted)

    def step(self, name: str, job: Callable[[], tuple[State, str, dict[str, Any]]]) -> bool:
        """Do a step, and tell and keep what came of it."""
        say(f"— {name}")
        try:
            state, detail, facts = job()
        except SlipwayError as error:
            state, detail, facts = "failed", error.what, error.to_json()
        self.rows.append(Row(name, state, detail, facts))
        mark, style = _MARKS[state]
        console.print(f"[{style}]{mark}[/] ", end="")
        say(f"{name}: {detail}")
        return state == "passed"


def verify_gpu(layout: Layout, *, engine: str, model: str, weights: str, report: Path) -> None:
    """Run every step and write ``verify_gpu.json``.

    Raises:
        SmokeError: A step failed; the report says which and why.
        HostError: TensorRT cannot serve on this host, and no other engine was asked for.
    """
    if engine == "tensorrt":
        say(f"engine: {choose('tensorrt', read_facts(layout)).reason}")
    run = Acceptance(layout, engine, model, weights)
    onnx = _exported(run)
    if onnx:
        for precision, batches in _plans(engine):
            name = f"convert to {precision}, batch {batches}"
            run.step(name, lambda p=precision, b=batches: _convert(run, onnx, p, b))  # type: ignore[misc]
        run.step("a plan with a wrong record is refused", lambda: _refuse(run, onnx))
    _serve(run)
    path = _write(run, report)
    failed = [row for row in run.rows if row.state == "failed"]
    said = f"{sum(r.state == 'passed' for r in run.rows)} steps passed, {len(failed)} failed, "
    said += f"{sum(r.state == 'not run' for r in run.rows)} not run; report: {path}"
    if failed:
        names = "; ".join(row.step for row in failed)
        raise SmokeError(f"{said}; failed: {names}", fix=f"read {path}, and send it if need be")
    say(said, style="bold green")


def _plans(engine: str) -> Iterator[tuple[str, Batches]]:
    """Each precision that the GPU has, and a fixed batch besides."""
    _, devices = read_driver()
    capable = engine == "tensorrt_rtx" or any(
        tuple(map(int, device.capability.split("."))) >= _FP8_CAPABILITY for device in devices
    )
    for precision in PRECISIONS:
        if precision != "fp8" or capable:
            yield precision, _DYNAMIC
    yield "fp16", _FIXED


def _work(run: Acceptance) -> Path:
    return run.layout.transit / "verify_gpu"


def _exported(run: Acceptance) -> Path | None:
    """The model's ONNX file, as a deploy on the CPU leaves it."""
    from pipeline.deploy import DeployRequest, deploy
    from pipeline.weights import WeightsSpec

    fresh_folder(_work(run))
    name = f"{run.model}_on_cpu"
    found: list[Path] = []

    def job() -> tuple[State, str, dict[str, Any]]:
        request = DeployRequest(
            run.model, WeightsSpec.parse(run.weights), name=name, engine="onnxruntime"
        )
        manifest = deploy(run.layout, request).manifest
        found.append(run.layout.models / name / str(manifest.version) / "model.onnx")
        return "passed", manifest.weights["spec"], manifest.to_json()

    run.step("export, verify and deploy on the CPU", job)
    return found[0] if found else None


def _convert(
    run: Acceptance, onnx: Path, precision: str, batches: Batches
) -> tuple[State, str, dict[str, Any]]:
    plan = _work(run) / f"{precision}-{batches.most}.plan"
    options = PlanOptions(precision, batches, debug=True)
    record = convert(run.layout, Conversion(onnx, plan, options, name=run.model), run.tensorrt)
    facts = json.loads(record.to_text())
    if "plan" not in record.verification:
        return "not run", "built, and no GPU ran it", facts
    cases = record.verification["plan"]["cases"]
    worst = max(case["max_abs"] for case in cases)
    return "passed", f"largest error {worst:.1e}, layers {dict(record.engine['layers'])}", facts


def _refuse(run: Acceptance, onnx: Path) -> tuple[State, str, dict[str, Any]]:
    """A plan whose record is of another plan must not be taken."""
    plan = next(iter(sorted(_work(run).glob("*.plan"))), None)
    if plan is None:
        return "not run", f"no plan of {onnx.name} was built", {}
    header = read_header(plan)
    other = _work(run) / "other.plan"
    other.write_bytes(plan.read_bytes() + b"\0")
    sidecar(other).write_text(sidecar(plan).read_text())
    try:
        PlanRecord.read(other)
    except PlanError as error:
        return "passed", error.what, asdict(header)
    return "failed", f"{other} was taken", asdict(header)


def _serve(run: Acceptance) -> None:
    """Deploy each precision, serve it on the server that was built, and smoke it."""
    from pipeline.deploy import DeployRequest, deploy
    from pipeline.smoke import SmokeRequest, smoke
    from pipeline.weights import WeightsSpec

    for precision in ("fp32", "fp16", "int8"):
        name = f"{run.model}_{precision}"

        def job(name: str = name, precision: str = precision) -> tuple[State, str, dict[str, Any]]:
            if run.engine != "tensorrt":
                return "not run", "Triton serves no plans for RTX", {}
            request = DeployRequest(
                run.model,
                WeightsSpec.parse(run.weights),
                name=name,
                engine="tensorrt",
                plan=PlanOptions(precision),
            )
            deploy(run.layout, request)
            result = smoke(
                run.layout, SmokeRequest(name, report=_work(run) / precision, which="built")
            )
            return "passed", result.summary, result.to_json()

        run.step(f"deploy, serve and smoke {precision}", job)


def _write(run: Acceptance, report: Path) -> Path:
    driver, devices = read_driver()
    facts = read_facts(run.layout)
    data = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "engine": run.engine,
        "model": run.model,
        "weights": run.weights,
        "driver": driver,
        "devices": [asdict(device) for device in devices],
        "tensorrt": list(facts.tensorrt),
        "server": asdict(facts.server) if facts.server else None,
        "system": platform.platform(),
        "steps": [asdict(row) for row in run.rows],
    }
    report.mkdir(parents=True, exist_ok=True)
    path = report / "verify_gpu.json"
    write_atomically(path, json.dumps(data, indent=2) + "\n")
    return path.resolve()


def main(arguments: Sequence[str]) -> int:
    """`python -m pipeline verify_gpu`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline verify_gpu",
        description="Try all that Slipway does with TensorRT on this host, and write a report: "
        "every precision converted, run and compared; wrong records refused; fp32, fp16 and int8 "
        "deployed, served by the server built here, and smoked.",
    )
    parser.add_argument(
        "--engine",
        choices=("tensorrt", "tensorrt_rtx"),
        default="tensorrt",
        help="tensorrt_rtx builds the plans and runs nothing, on any machine "
        "(default: %(default)s)",
    )
    parser.add_argument("--model", default="resnet50", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--weights", default="auto", metavar="WHICH", help="as `deploy` takes them")
    parser.add_argument(
        "--report", type=Path, default=Path("report"), metavar="FOLDER", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    verify_gpu(
        Layout.from_environment(),
        engine=options.engine,
        model=options.model,
        weights=options.weights,
        report=options.report,
    )
    return 0
