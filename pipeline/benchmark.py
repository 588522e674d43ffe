"""The benchmark: how fast what is served is, as ratios measured in one run.

An absolute figure says as much about the host as about Slipway. So the served model is compared
with ONNX Runtime alone, in turns, so that whatever else the host does slows both.
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import time
from pathlib import Path

import psutil

from pipeline import server
from pipeline.benchmark_result import SCHEMA, Figure, Turns, show
from pipeline.load import load_generator
from pipeline.manifest import Manifest
from pipeline.measure import FULL, QUICK, Bench, add_null_model
from pipeline.repository import Repository
from pipeline.server_record import running
from provision.console import say, warn
from provision.cores import available_cores
from provision.embedded_server import embedded_server
from provision.errors import BusyError, RepositoryError, UsageError
from provision.files import lock, write_atomically
from provision.layout import Layout

_REPORT = Path("report") / "benchmark.json"
_BUSY_PERCENT = 10.0


def benchmark(layout: Layout, *, model: str, quick: bool) -> None:
    """Measure, print a table of the figures against their targets, and write the report.

    A target that is missed is shown as such and is no error: a host's noise is not a defect.

    Raises:
        RepositoryError: The model is not deployed.
        UsageError: It is not served by ONNX Runtime.
        BusyError: A server of ours runs, or another benchmark.
        HostError: perf_analyzer does not run on this host.
    """
    started = datetime.datetime.now(datetime.timezone.utc)
    manifest = deployed(layout, model)
    if manifest.engine["name"] != "onnxruntime":
        raise UsageError(
            f"{model} is served by {manifest.engine['name']}, and this compares with ONNX Runtime",
            fix="deploy it beside that with `--engine onnxruntime --name NAME`, and measure NAME",
        )
    refuse_a_running_server(layout)
    work = layout.transit / "benchmark"
    with lock(layout.run / "benchmark.lock", holder="benchmark"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            busy, turns, figures = _measure(layout, manifest, work, quick=quick)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    show(figures)
    if busy > _BUSY_PERCENT:
        warn(f"other programs used {busy:.0f} % of this host's cores before; measure when it idles")
    report = {
        "schema": SCHEMA,
        "time": started.isoformat(timespec="seconds"),
        "quick": quick,
        "model": {"name": model, "version": manifest.version, "engine": manifest.engine},
        "host": {
            "machine": platform.machine(),
            "cores": available_cores(),
            "busy_percent_before": busy,
        },
        "throughput": turns.to_json(),
        "figures": [figure.to_json() for figure in figures],
    }
    write_atomically(_REPORT.absolute(), json.dumps(report, indent=2) + "\n")
    say(f"report: {_REPORT.absolute()}")


def refuse_a_running_server(layout: Layout) -> None:
    """Make sure that no server of ours shares the cores with what is measured.

    Raises:
        BusyError: One runs.
    """
    record = running(layout)
    if record:
        raise BusyError(
            f"a server runs at {record.url} (process {record.pid}), which would share the cores "
            "with what is measured",
            fix="end it first (`nox -s stop`)",
        )


def deployed(layout: Layout, model: str) -> Manifest:
    """What is deployed of a model.

    Raises:
        RepositoryError: Nothing is.
    """
    manifest = Repository(layout).latest(model)
    if manifest is None:
        raise RepositoryError(
            f"{model} is not deployed in {layout.models}",
            fix=f"deploy it first: `nox -s deploy -- {model}`",
        )
    return manifest


def _measure(
    layout: Layout, manifest: Manifest, work: Path, *, quick: bool
) -> tuple[float, Turns, tuple[Figure, ...]]:
    """How many percent of the cores others used, and what was measured."""
    # The user's model and the null model together, and nothing else.
    repository = work / "models"
    add_null_model(repository)
    (repository / manifest.model).symlink_to(layout.models / manifest.model)
    log = layout.logs / f"benchmark-{time.strftime('%Y%m%d-%H%M%S')}.log"
    bench = Bench(
        layout=layout,
        manifest=manifest,
        effort=QUICK if quick else FULL,
        generator=load_generator(layout, work / "libraries", log),
        folder=work,
        log=log,
    )
    with server.temporary(layout, embedded_server(layout), repository=repository) as target:
        busy = psutil.cpu_percent(interval=1.0)
        turns = bench.throughput(target.url)
        overhead = bench.overhead(target.url)
    return busy, turns, (turns.figure(), overhead, bench.smoke(), bench.help())
