"""The benchmark: what it makes of perf_analyzer's words, and that it really measures."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import Slipway
from hypothesis import given
from hypothesis import strategies as st

from pipeline import benchmark as job
from pipeline import load, measure, server
from pipeline.benchmark import benchmark
from pipeline.benchmark_result import CONCURRENCY, Figure, Turns, show
from pipeline.client import TritonClient
from pipeline.load import PASSES, Load, LoadGenerator, load_generator
from pipeline.manifest import Manifest
from provision import environments, processes
from provision.errors import (
    BusyError,
    HostError,
    InternalError,
    RepositoryError,
    ServerUnreachableError,
)
from provision.installation import ServerInstallation
from provision.layout import Layout

OUTPUT = """\
*** Measurement Settings ***
  Batch size: 1
  Service Kind: TRITON
  Using "time_windows" mode for stabilization
  Stabilizing using p50latency and throughput
  Measurement window: 1667 msec
  Using synchronous calls for inference

Request concurrency: 4
  Pass [1] throughput: 21.4965 infer/sec. p50 latency: 169301 usec
  Pass [2] throughput: 23.4794 infer/sec. p50 latency: 175613 usec
  Pass [3] throughput: 19.9816 infer/sec. p50 latency: 192129 usec
  Client: 
    Request count: 130
    Throughput: 21.6525 infer/sec
    Avg client overhead: 0.06%
    p50 latency: 185413 usec
    p90 latency: 221845 usec
    Avg HTTP time: 179857 usec (send 446 usec + response wait 179411 usec + receive 0 usec)
  Server: 
    Inference count: 130
    Execution count: 61
    Successful request count: 130

Inferences/Second vs. Client p50 Batch Latency
Concurrency: 4, throughput: 21.6525 infer/sec, latency 185413 usec
"""  # noqa: W291 - as it was printed
LEAST = measure.Effort(rounds=2, seconds=0.2, null_rounds=1, smokes=1, helps=1)

positive = st.floats(1e-3, 1e6)


def test_the_first_pass_is_left_out() -> None:
    parsed = Load.parse(OUTPUT)
    assert parsed.throughput == pytest.approx((23.4794 + 19.9816) / 2)
    assert parsed.p50_ms == pytest.approx((175.613 + 192.129) / 2)


@given(st.lists(st.tuples(positive, st.integers(1, 10**9)), min_size=PASSES, max_size=PASSES))
def test_what_was_printed_is_read(passes: list[tuple[float, int]]) -> None:
    printed = "\n".join(
        f"  Pass [{number}] throughput: {rate:g} infer/sec. p50 latency: {p50} usec"
        for number, (rate, p50) in enumerate(passes, 1)
    )
    parsed = Load.parse(printed)
    assert parsed.throughput == pytest.approx(sum(r for r, _ in passes[1:]) / 2, rel=1e-5)
    assert parsed.p50_ms == pytest.approx(sum(p for _, p in passes[1:]) / 2000)


@pytest.mark.parametrize(
    "output", ["", "error: no model", OUTPUT * 2, OUTPUT.replace("Pass [2]", "Pass")]
)
def test_other_output_is_refused(output: str) -> None:
    with pytest.raises(InternalError):
        Load.parse(output)


@given(st.lists(positive, min_size=1), positive, st.booleans())
def test_a_target_is_met_on_its_side(
    samples: list[float],
    target: float,
    at_least: bool,  # noqa: FBT001 - hypothesis gives them by position
) -> None:
    figure = Figure("", "", target, at_least, tuple(samples))
    assert min(samples) <= figure.measured <= max(samples)
    assert figure.share == figure.measured / target
    assert figure.met == (figure.measured >= target if at_least else figure.measured <= target)
    best = dataclasses.replace(figure, choose=min)
    assert best.measured == min(samples)
    assert json.loads(json.dumps(figure.to_json()))["samples"] == samples


def test_a_figure_that_is_no_number_meets_no_target() -> None:
    for at_least in (True, False):
        assert not Figure("", "", 1.0, at_least, (float("nan"),)).met


def test_neighbours_are_compared() -> None:
    # The host slows down to a half, then to a tenth: that is no difference between the two.
    turns = Turns(alone=(20.0, 10.0, 2.0), served=(19.0, 10.0, 1.8), onnxruntime="1.0")
    figure = turns.figure()
    assert figure.samples == pytest.approx((0.95, 1.0, 0.9))
    assert figure.measured == pytest.approx(0.95)
    assert "10.00 images/s served" in figure.note


@given(positive, st.floats(0.1, 100))
def test_a_pass_holds_answers_of_every_client(rate: float, seconds: float) -> None:
    each = measure.pass_seconds(rate, seconds)
    assert each * (PASSES - 1) >= seconds
    assert each * rate >= CONCURRENCY


def test_the_table_says_what_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    slow = Figure("answering", "ms", 3.0, at_least=False, samples=(6.0,))
    quick = Figure("throughput", "", 0.95, at_least=True, samples=(1.0,))
    show((slow, quick))
    shown = capsys.readouterr().out
    assert "2.00" in shown
    assert "missed: answering;" in shown
    assert "missed: answering; throughput" not in shown


def test_the_null_model_answers_zeros(
    layout: Layout, tmp_path: Path, installation: ServerInstallation
) -> None:
    repository = tmp_path / "models"
    name = measure.add_null_model(repository)
    image = np.full((3, 224, 224), 7, np.float32)
    with (
        server.temporary(layout, installation, repository=repository) as record,
        TritonClient(record.url) as client,
    ):
        answer = client.logits(name, image)
    assert answer.shape == (1000,)
    assert not answer.any()
    assert not layout.models.exists()


def test_everything_is_measured(
    layout: Layout, tiny: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "QUICK", LEAST)
    monkeypatch.chdir(tmp_path)
    before = sorted(layout.models.iterdir())
    benchmark(layout, model=tiny.model, quick=True)
    report = json.loads((tmp_path / "report" / "benchmark.json").read_text())
    assert [len(figure["samples"]) for figure in report["figures"]] == [2, 1, 1, 1]
    assert all(sample > 0 for figure in report["figures"] for sample in figure["samples"])
    assert all(rate > 0 for rate in report["throughput"]["served"])
    assert report["model"]["name"] == "tiny"
    assert sorted(layout.models.iterdir()) == before
    assert not (layout.transit / "benchmark").exists()


def test_ctrl_c_leaves_nothing_behind(layout: Layout, tiny: Manifest, slipway: Slipway) -> None:
    process = slipway.start("benchmark", "--model", tiny.model)
    root = str(layout.root)
    deadline = time.monotonic() + 120
    while not any("perf_analyzer" in p.name() for p in processes.marked("SLIPWAY_ROOT", root)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not processes.marked("SLIPWAY_ROOT", root)
    assert not (layout.transit / "benchmark").exists()


def test_an_absent_model_is_named(layout: Layout) -> None:
    with pytest.raises(RepositoryError, match="resnet50 is not deployed"):
        benchmark(layout, model="resnet50", quick=True)


def test_no_benchmark_beside_a_server_of_ours(
    layout: Layout, tiny: Manifest, installation: ServerInstallation
) -> None:
    options = server.ServeOptions(http=0, grpc=0, metrics=0)
    record = server.start(layout, installation, options, role="serve", bound=True)
    try:
        with pytest.raises(BusyError, match=record.url):
            benchmark(layout, model=tiny.model, quick=True)
    finally:
        server.stop(layout, record)


def test_a_server_out_of_reach_is_an_error(layout: Layout, tmp_path: Path) -> None:
    generator = load_generator(layout, tmp_path / "libraries", tmp_path / "log")
    with pytest.raises(ServerUnreachableError, match="Couldn't connect"):
        generator.measure("127.0.0.1:1", "resnet50", concurrency=1, seconds=0.1)


@pytest.mark.parametrize("there", [True, False])
def test_a_perf_analyzer_that_does_not_run_is_an_error(
    tmp_path: Path,
    there: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    program = tmp_path / "bin" / "perf_analyzer"
    if there:
        program.parent.mkdir()
        program.write_text(
            "#!/bin/sh\necho libssl.so.3: cannot open shared object file\nexit 127\n"
        )
        program.chmod(0o755)
    with pytest.raises(HostError) as caught:
        load.check(LoadGenerator(program, {"PATH": "/usr/bin:/bin"}, tmp_path / "log"))
    assert ("libssl.so.3" if there else "No such file") in caught.value.cause
    assert "glibc" in caught.value.fix


def test_missing_libraries_are_an_error(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: environments.ensure(layout, name) for name in ("load", "serving")}
    found["serving"] = dataclasses.replace(found["serving"], prefix=tmp_path / "serving")
    monkeypatch.setattr(environments, "ensure", lambda _, name: found[name])
    with pytest.raises(HostError, match="libcudart"):
        load_generator(layout, tmp_path / "libraries", tmp_path / "log")
