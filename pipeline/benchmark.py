"""The benchmark: how fast what is served is, as ratios measured in one run.

An absolute figure says as much about the host as about Slipway. So the served model is compared
with ONNX Runtime alone, in turns, so that whatever else the host does slows both.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from rich.table import Table
from tritonclient.grpc import model_config_pb2 as triton

from pipeline import delegate, server
from pipeline.engines import available_cores
from pipeline.load import LoadGenerator, load_generator
from pipeline.manifest import Manifest
from pipeline.repository import Repository, add_files
from pipeline.server_record import running
from provision import environments, processes
from provision.console import console, say, step, warn
from provision.embedded_server import embedded_server
from provision.errors import BusyError, RepositoryError, SmokeError
from provision.files import lock, write_atomically
from provision.layout import REPOSITORY, Layout

SCHEMA = 1
"""Raised whenever a field of the report is renamed, is removed or changes its meaning."""

_REPORT = Path("report") / "benchmark.json"
_CONCURRENCY = 4
_WARM_UP_REQUESTS = 2 * _CONCURRENCY
# Triton takes no model whose name a user's could be: `_` cannot begin one of Slipway's.
_NULL = "_null"


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: How often the model is measured in process and served, in turns.
        seconds: How long each time.
        null_requests: How many requests the null model gets, each time.
        null_rounds: How often.
        smokes: How often the smoke test is run.
        helps: How often the help is asked for.
    """

    rounds: int
    seconds: float
    null_requests: int
    null_rounds: int
    smokes: int
    helps: int


QUICK = Effort(rounds=5, seconds=2.5, null_requests=300, null_rounds=3, smokes=1, helps=5)
FULL = Effort(rounds=11, seconds=5.0, null_requests=1000, null_rounds=5, smokes=3, helps=10)


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, against its target.

    Attributes:
        name: What it is, in words.
        unit: Its unit; empty for a ratio.
        target: What it should reach.
        at_least: Whether more is better.
        samples: Each measurement.
        choose: Which figure stands for the samples.
        note: What it was made from, in words.
    """

    name: str
    unit: str
    target: float
    at_least: bool
    samples: tuple[float, ...]
    choose: Callable[[tuple[float, ...]], float] = statistics.median
    note: str = ""

    @property
    def measured(self) -> float:
        """The figure that stands for the samples."""
        return self.choose(self.samples)

    @property
    def share(self) -> float:
        """What was measured, divided by the target."""
        return self.measured / self.target

    @property
    def met(self) -> bool:
        """Whether the target was reached; a figure that is no number reaches none."""
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def to_json(self) -> dict[str, Any]:
        """The figure as it is reported."""
        return {
            "name": self.name,
            "measured": self.measured,
            "unit": self.unit,
            "target": self.target,
            "direction": "at least" if self.at_least else "at most",
            "share_of_target": self.share,
            "met": self.met,
            "samples": list(self.samples),
            "note": self.note,
        }


@dataclass(frozen=True)
class Turns:
    """Throughputs measured in turns, in images a second; entries of one place are neighbours.

    Attributes:
        alone: ONNX Runtime's in process.
        served: Triton's, over HTTP.
        onnxruntime: Its version.
    """

    alone: tuple[float, ...]
    served: tuple[float, ...]
    onnxruntime: str

    def figure(self) -> Figure:
        """Served over in-process throughput, of neighbours; the median of that is what counts."""
        return Figure(
            name=f"served ÷ in-process throughput (HTTP, {_CONCURRENCY} at once, batch 1)",
            unit="",
            target=0.95,
            at_least=True,
            samples=tuple(
                served / alone for served, alone in zip(self.served, self.alone, strict=True)
            ),
            note=f"medians: {statistics.median(self.served):.2f} images/s served, "
            f"{statistics.median(self.alone):.2f} by ONNX Runtime {self.onnxruntime} alone",
        )


def benchmark(layout: Layout, *, model: str, quick: bool) -> None:
    """Measure, print a table of the figures against their targets, and write the report.

    A target that is missed is shown as such and is no error: a host's noise is not a defect.

    Raises:
        RepositoryError: The model is not deployed.
        BusyError: A server of ours runs, or another benchmark.
        HostError: perf_analyzer does not run on this host.
    """
    started = datetime.datetime.now(datetime.timezone.utc)
    manifest = _deployed(layout, model)
    record = running(layout)
    if record:
        raise BusyError(
            f"a server runs at {record.url} (process {record.pid}), which would share the cores "
            "with what is measured",
            fix="end it first (`nox -s stop`)",
        )
    effort = QUICK if quick else FULL
    log = layout.logs / f"benchmark-{time.strftime('%Y%m%d-%H%M%S')}.log"
    work = layout.transit / "benchmark"
    with lock(layout.run / "benchmark.lock", holder="benchmark"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            generator = load_generator(layout, work, log)
            with server.temporary(
                layout, embedded_server(layout), repository=_repository(layout, model, work)
            ) as target:
                turns = _throughput(layout, manifest, generator, target.url, effort)
                overhead = _overhead(generator, target.url, effort)
            smoke = _smoke(layout, model, effort, folder=work, log=log)
            figures = (turns.figure(), overhead, smoke, _help(layout, effort, log))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _show(figures)
    report = {
        "schema": SCHEMA,
        "time": started.isoformat(timespec="seconds"),
        "quick": quick,
        "model": {"name": model, "version": manifest.version, "engine": manifest.engine},
        "cores": available_cores(),
        "machine": platform.machine(),
        "throughput": {
            "unit": "images/s",
            "in_process": list(turns.alone),
            "served": list(turns.served),
            "concurrency": _CONCURRENCY,
            "onnxruntime": turns.onnxruntime,
        },
        "figures": [figure.to_json() for figure in figures],
    }
    write_atomically(_REPORT.absolute(), json.dumps(report, indent=2) + "\n")
    say(f"report: {_REPORT.absolute()}")


def _deployed(layout: Layout, model: str) -> Manifest:
    manifest = Repository(layout).latest(model)
    if manifest is None:
        raise RepositoryError(
            f"{model} is not deployed in {layout.models}",
            fix=f"deploy it first: `nox -s deploy -- {model}`",
        )
    return manifest


def _repository(layout: Layout, model: str, folder: Path) -> Path:
    """A model repository with the deployed model, as a link, and the null model."""
    repository = folder / "models"
    add_null_model(repository)
    (repository / model).symlink_to(layout.models / model)
    return repository


def add_null_model(repository: Path) -> str:
    """Put the null model into a model repository; its name there."""
    config = triton.ModelConfig(name=_NULL, backend="python")
    config.input.add(name="input", data_type=triton.TYPE_FP32, dims=[3, 224, 224])
    config.output.add(name="output", data_type=triton.TYPE_FP32, dims=[1000])
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    add_files(
        repository / _NULL,
        {
            "config.pbtxt": text_format.MessageToString(config),
            "1/model.py": Path(__file__).with_name("null_model.py"),
        },
    )
    return _NULL


def _throughput(
    layout: Layout, manifest: Manifest, generator: LoadGenerator, url: str, effort: Effort
) -> Turns:
    environment = environments.ensure(layout, "serving")
    request = {
        "onnx": str(layout.models / manifest.model / str(manifest.version) / "model.onnx"),
        "side": manifest.side,
        "seconds": effort.seconds,
    }
    alone: list[float] = []
    served: list[float] = []
    version = ""
    with step(f"Throughput of {manifest.model}, in process and served in turns") as measuring:
        generator.measure(url, manifest.model, concurrency=_CONCURRENCY, requests=_WARM_UP_REQUESTS)
        for turn in range(effort.rounds):
            measuring.progress(f"round {turn + 1} of {effort.rounds}")
            answer = delegate.call(
                environment,
                "pipeline.in_process",
                request,
                folder=generator.folder,
                log=generator.log,
                progress=lambda _: None,
            )
            alone.append(answer["throughput"])
            version = answer["onnxruntime"]
            load = generator.measure(
                url,
                manifest.model,
                concurrency=_CONCURRENCY,
                requests=request_count(alone[-1], effort.seconds),
            )
            served.append(load.throughput)
        turns = Turns(tuple(alone), tuple(served), version)
        measuring.detail = turns.figure().note
    return turns


def request_count(rate: float, seconds: float) -> int:
    """How many requests take about so long, every client sending as many as the others."""
    return max(2, math.ceil(rate * seconds / _CONCURRENCY)) * _CONCURRENCY


def _overhead(generator: LoadGenerator, url: str, effort: Effort) -> Figure:
    with step("Triton's own part, with a model that computes nothing"):
        generator.measure(url, _NULL, concurrency=1, requests=_WARM_UP_REQUESTS)
        loads = [
            generator.measure(url, _NULL, concurrency=1, requests=effort.null_requests)
            for _ in range(effort.null_rounds)
        ]
    return Figure(
        name="p50 latency of a null model (HTTP, one at a time)",
        unit="ms",
        target=3.0,
        at_least=False,
        samples=tuple(load.p50_ms for load in loads),
    )


def _smoke(layout: Layout, model: str, effort: Effort, *, folder: Path, log: Path) -> Figure:
    arguments = ["smoke", "--model", model, "--report", str(folder / "report")]
    with step("The smoke test, warm"):
        samples = tuple(_timed(layout, arguments, log) for _ in range(effort.smokes))
    return Figure(
        name=f"smoke test of {model}, everything deployed",
        unit="s",
        target=20.0,
        at_least=False,
        samples=samples,
    )


def _help(layout: Layout, effort: Effort, log: Path) -> Figure:
    with step("The answer to --help"):
        samples = tuple(_timed(layout, ["--help"], log) for _ in range(effort.helps))
    return Figure(
        name="python -m pipeline --help, at best",
        unit="s",
        target=0.3,
        at_least=False,
        samples=samples,
        choose=min,
    )


def _timed(layout: Layout, arguments: list[str], log: Path) -> float:
    """How long a job of ours takes as a user starts it, in seconds.

    Raises:
        SmokeError: It fails.
    """
    command = [sys.executable, "-m", "pipeline", *arguments]
    begun = time.perf_counter()
    code = processes.run_logged(
        command,
        log=log,
        env={**os.environ, "SLIPWAY_ROOT": str(layout.root)},
        cwd=REPOSITORY,
    )
    passed = time.perf_counter() - begun
    if code != 0:
        raise SmokeError(
            f"`python -m pipeline {' '.join(arguments)}` failed (exit {code}):\n"
            f"{processes.last_lines(log)}",
            fix="run it yourself, and put right what it names; then measure again",
            log=log,
        )
    return passed


def _show(figures: tuple[Figure, ...]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "measured", "target", "÷ target", "met"):
        centred = column == "met"
        numeric = column in {"measured", "target", "÷ target"}
        table.add_column(
            column,
            justify="right" if numeric else "center" if centred else "left",
            overflow="fold",
        )
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        table.add_row(
            figure.name,
            f"{figure.measured:.2f} {figure.unit}".strip(),
            f"{sign} {figure.target:g} {figure.unit}".strip(),
            f"{figure.share:.2f}",
            "[green]yes[/]" if figure.met else "[red]no[/]",
        )
    console.print(table)
    missed = [figure.name for figure in figures if not figure.met]
    if missed:
        warn(f"missed: {'; '.join(missed)}; on a busy host, measure again when it is quiet")
