"""The smoke test, run as a user runs it: it passes on what is right and finds what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    CLASSES,
    FREE_PORTS,
    SOURCE,
    Slipway,
    deploy_tiny,
    detached,
    left_behind,
    own_root,
    tiny_onnx,
)

from pipeline import server_record
from pipeline.build_image_client import client_library
from pipeline.client import Classification
from pipeline.config import read_labels
from pipeline.manifest import Manifest
from pipeline.photos import sample_photos
from pipeline.server_record import ServerRecord
from pipeline.smoke_clients import judge
from pipeline.smoke_result import Prediction
from provision.layout import Layout

LABELS = read_labels(SOURCE / "labels.txt", classes=CLASSES)
PHOTOS = {photo.name: photo.path for photo in sample_photos()}
INTERFACE = "metadata and configuration as deployed"
FILES = "files are those of the manifest"
REFERENCE = "logits equal the reference of the deploy"
BATCHES = "batches give the same answers"
CLIENTS = "the clients give the same answers"


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, host: Layout
) -> Iterator[tuple[Layout, ServerRecord]]:
    """A server with sound models and with some that are wrong."""
    layout = own_root(tmp_path_factory.mktemp("served"), host)
    for model in ("sound", "wrong_reference", "other_weights"):
        deploy_tiny(layout, model=model)
    deploy_tiny(layout, model="single", max_batch_size=0)
    deploy_tiny(layout, model="small_batches", max_batch_size=4)
    deploy_tiny(layout, model="wrong_labels", kind="pretrained")

    reference = layout.models / "wrong_reference" / "1" / "reference.npz"
    with np.load(reference) as stored:
        values = {name: stored[name] for name in stored.files}
    values["coffee"][7] += 0.1
    np.savez(reference, **values)

    tiny_onnx(layout.models / "other_weights" / "1" / "model.onnx", seed=1)

    with detached(layout) as (_, record):
        yield layout, record


@pytest.fixture
def smoke(served: tuple[Layout, ServerRecord], tmp_path: Path) -> Callable[..., Outcome]:
    """Run ``smoke`` on the shared server."""
    layout, _ = served
    return lambda *arguments: Outcome.of(Slipway(layout), tmp_path / "report", *arguments)


class Outcome:
    """How a smoke test ended, and its report."""

    def __init__(self, result: subprocess.CompletedProcess[str], report: Path) -> None:
        self.code = result.returncode
        self.out = result.stdout
        self.err = result.stderr
        self.report = report
        found = report / "smoke.json"
        self.data: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {}
        self.checks = {check["name"]: check for check in self.data.get("checks", ())}

    @classmethod
    def of(cls, slipway: Slipway, report: Path, *arguments: str | Path) -> Outcome:
        """Run ``smoke`` to its end."""
        return cls(slipway("smoke", "--report", report, *arguments), report)

    def names(self, status: str) -> list[str]:
        """The checks that ended so."""
        return [name for name, check in self.checks.items() if check["status"] == status]

    def top(self, photo: str) -> dict[str, Any]:
        """The first answer for a photo."""
        (found,) = (entry for entry in self.data["photos"] if entry["name"] == photo)
        best: dict[str, Any] = found["top5"][0]
        return best


# What is right


def test_starts_a_server_for_itself_and_ends_it(
    slipway: Slipway, layout: Layout, tiny: Manifest, tmp_path: Path
) -> None:
    outcome = Outcome.of(slipway, tmp_path / "report", "--model", tiny.model)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.data["verdict"] == "passed"
    assert outcome.names("passed") == [
        "server and model ready",
        INTERFACE,
        FILES,
        *(f"photo {name}" for name in PHOTOS),
        REFERENCE,
        BATCHES,
        "8 requests at once give the same answers",
        CLIENTS,
        "latency, one request after another",
        "statistics grew by what was sent",
        "malformed requests are refused",
    ]
    assert len(outcome.checks) == len(outcome.names("passed"))
    assert outcome.checks[CLIENTS]["detail"] == (
        "Python, scores equal to the last digit; C++ is not built (`nox -s build_image_client`)"
    )
    assert outcome.data["server"]["version"] == "2.51.0"
    assert outcome.data["server"]["chosen"].startswith("started for this test")
    assert outcome.data["manifest"]["version"] == 1
    assert len(outcome.data["latency"]["samples_ms"]) == 40
    assert (outcome.report / "smoke.html").read_text().startswith("<!DOCTYPE html>")
    for name in PHOTOS:
        assert outcome.top(name)["label"] in outcome.out
    assert left_behind(layout) == []


def test_uses_the_server_that_runs(
    smoke: Callable[..., Outcome], served: tuple[Layout, ServerRecord]
) -> None:
    _, record = served
    outcome = smoke("--model", "sound")
    assert outcome.code == 0, outcome.err
    assert outcome.data["server"]["url"] == record.url
    assert outcome.data["server"]["chosen"] == "ours, which runs already"
    assert outcome.names("failed") == outcome.names("skipped") == []
    assert record.process(), "and leaves it running"


def test_waits_for_a_server_that_is_starting(
    slipway: Slipway, layout: Layout, tiny: Manifest, tmp_path: Path
) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    while not server_record.running(layout):
        assert process.poll() is None
    outcome = Outcome.of(slipway, tmp_path / "report", "--model", tiny.model)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("waiting for the start of a server (process ")
    assert outcome.data["server"]["chosen"] == "ours, which runs already"


def test_uses_the_server_that_is_named(
    smoke: Callable[..., Outcome],
    served: tuple[Layout, ServerRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, record = served
    # Whoever has a proxy for the world does not have it for this server.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    outcome = smoke("--model", "sound", "--url", record.url)
    assert outcome.code == 0, outcome.err
    assert outcome.data["server"]["chosen"] == "named with --url"


def test_a_model_without_a_batch_dimension(smoke: Callable[..., Outcome]) -> None:
    outcome = smoke("--model", "single")
    assert outcome.code == 0, outcome.err
    assert outcome.names("skipped") == [BATCHES]
    assert outcome.names("failed") == []


@pytest.mark.parametrize("model", ["sound", "single"])
def test_uses_the_cpp_client_where_it_is_built(
    served: tuple[Layout, ServerRecord], host: Layout, tmp_path: Path, model: str
) -> None:
    layout, _ = served
    if client_library(host) is None:
        pytest.skip("needs the client library: `nox -s build_client -- --http-only`")
    (layout.root / "triton").symlink_to(host.triton)
    try:
        assert Slipway(layout)("build_image_client").returncode == 0
        outcome = Outcome.of(Slipway(layout), tmp_path / "report", "--model", model)
        assert outcome.code == 0, outcome.err
        detail = outcome.checks[CLIENTS]["detail"]
        assert detail == "Python and C++, scores equal to the last digit"
        broken = layout.bin / "image_client"
        broken.write_text("#!/bin/sh\necho error: it is broken >&2\nexit 7\n")
        outcome = Outcome.of(Slipway(layout), tmp_path / "report", "--model", model)
        assert outcome.names("failed") == [CLIENTS]
        assert outcome.checks[CLIENTS]["detail"] == "the C++ client failed (exit 7): it is broken"
    finally:
        shutil.rmtree(layout.bin, ignore_errors=True)
        (layout.root / "triton").unlink()


# What is wrong


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([(2.0, 7), (1.0, 3)], ""),
        ([(2.1, 7), (1.0, 3)], ""),
        ([(2.3, 7), (1.0, 3)], "the C++ client's scores differ by 3.0e-01"),
        ([(2.0, 7), (1.0, 4)], "the C++ client ranks other classes: [7, 4]"),
        ([(2.0, 7)], "the C++ client ranks other classes: [7]"),
    ],
)
def test_a_client_that_answers_otherwise(answer: list[tuple[float, int]], problem: str) -> None:
    expected = [Prediction(2.0, 7, "A", 0.7), Prediction(1.0, 3, "B", 0.3)]
    found = [Classification(score, index, "") for score, index in answer]
    said, _ = judge({"Python": list(map(_same, expected)), "C++": found}, expected, 0.2)
    assert said == problem


def _same(best: Prediction) -> Classification:
    return Classification(best.score, best.index, best.label)


@pytest.mark.parametrize(
    ("model", "failed", "words"),
    [
        (
            "wrong_reference",
            [REFERENCE, FILES],
            "coffee, class 7: .* and the reference is .* allowed is",
        ),
        ("other_weights", [REFERENCE, FILES], "chelsea, class [0-9]+: "),
        ("wrong_labels", ["photo chelsea", "photo coffee"], ", and not (TABBY|EGYPTIAN CAT)"),
    ],
)
def test_finds_what_is_wrong_and_nothing_else(
    smoke: Callable[..., Outcome], model: str, failed: list[str], words: str
) -> None:
    outcome = smoke("--model", model)
    assert outcome.code == 50
    assert sorted(outcome.names("failed")) == sorted(failed)
    assert re.search(words, outcome.checks[failed[0]]["detail"])
    assert outcome.data["verdict"] == "failed"
    assert (outcome.report / "smoke.html").is_file()
    what, fix = outcome.err.splitlines()
    assert re.match(f"error: {model} version 1 failed {len(failed)} of 13 checks on ", what)
    assert f"{failed[0]}: {outcome.checks[failed[0]]['detail']}" in what
    assert "nox -s deploy -- " in fix
    assert " --force" in fix


@pytest.mark.parametrize(
    ("model", "failed", "words"),
    [
        ("sound", INTERFACE, "version 2 was deployed, and 1 is served"),
        ("small_batches", INTERFACE, "max_batch_size is 4, and 8 was deployed"),
        ("absent", "server and model ready", "the server does not serve absent: "),
    ],
)
def test_a_server_that_has_something_else_than_was_deployed(
    served: tuple[Layout, ServerRecord],
    layout: Layout,
    tmp_path: Path,
    model: str,
    failed: str,
    words: str,
) -> None:
    _, record = served
    for _ in range(2):
        deploy_tiny(layout, model=model)
    outcome = Outcome.of(
        Slipway(layout), tmp_path / "report", "--model", model, "--url", record.url
    )
    assert outcome.code == 50
    assert outcome.names("failed")[0] == failed
    assert words in outcome.checks[failed]["detail"]
    assert "Traceback" not in outcome.err


def test_a_server_killed_in_the_middle(
    slipway: Slipway, layout: Layout, tiny: Manifest, tmp_path: Path
) -> None:
    many = [f"--image={path}" for path in PHOTOS.values()] * 5
    report = tmp_path / "report"
    process = slipway.start("smoke", "--model", tiny.model, "--report", report, *many)
    assert process.stdout
    for line in process.stdout:
        if "photo chelsea" in line:
            break
    process.send_signal(signal.SIGSTOP)
    (record,) = server_record.records(layout)
    running = record.process()
    assert running
    running.kill()
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 50, err
    assert "Traceback" not in out + err
    assert err.startswith("error: tiny version 1 failed ")
    assert f"no Triton server answers at {record.url}" in err
    assert json.loads((report / "smoke.json").read_text())["verdict"] == "failed"
    assert left_behind(layout) == []


# Addresses


def test_nobody_listens(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = slipway("smoke", "--model", tiny.model, "--url", f"127.0.0.1:{port}")
    assert result.returncode == 32
    assert f"no Triton server answers at 127.0.0.1:{port}" in result.stderr
    assert "`nox -s serve`" in result.stderr
    assert left_behind(layout) == []


@pytest.mark.parametrize("url", ["", "nonsense", "http://127.0.0.1:8000", "127.0.0.1:http"])
def test_no_address(layout: Layout, tiny: Manifest, url: str) -> None:
    result = Slipway(layout)("smoke", "--model", tiny.model, "--url", url)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: '{url}' is not a server's address",
        "fix: give it as HOST:PORT",
    ]


def test_a_model_that_is_nowhere(smoke: Callable[..., Outcome]) -> None:
    outcome = smoke("--model", "resnet5O")
    assert outcome.code == 2
    assert "resnet50" in outcome.err
    assert outcome.data == {}


def test_a_model_that_was_not_deployed_from_here(
    served: tuple[Layout, ServerRecord], layout: Layout, tmp_path: Path
) -> None:
    _, record = served
    outcome = Outcome.of(
        Slipway(layout), tmp_path / "report", "--model", "nobody", "--url", record.url
    )
    assert outcome.code == 50
    assert "the server does not serve nobody" in outcome.err
    assert "it is not in its repository" in outcome.checks["server and model ready"]["detail"]
    assert outcome.data["manifest"] is None


# Photos of the user's


@pytest.fixture
def namesake(tmp_path: Path) -> Path:
    """A photo of the user's that is called as a sample photo."""
    return Path(shutil.copy(PHOTOS["chelsea"], tmp_path / f"coffee{PHOTOS['chelsea'].suffix}"))


def best_label(outcome: Outcome, photo: str) -> str:
    best = outcome.top(photo)
    assert best["label"] == LABELS[best["index"]]
    return str(best["label"])


def test_a_photo_with_the_right_label(smoke: Callable[..., Outcome], namesake: Path) -> None:
    right = best_label(smoke("--model", "sound"), "chelsea")
    outcome = smoke("--model", "sound", "--image", namesake, "--expect", right.lower())
    assert outcome.code == 0, outcome.err
    # The sample photo of that name keeps its answer, which is compared with its reference.
    assert outcome.checks["photo coffee 2"]["detail"].startswith(right)
    assert outcome.top("coffee") != outcome.top("coffee 2")
    assert outcome.names("failed") == []


def test_a_photo_with_the_wrong_label(smoke: Callable[..., Outcome]) -> None:
    mine = PHOTOS["coffee"]
    outcome = smoke("--model", "sound", "--image", mine, "--expect", "no such thing")
    assert outcome.code == 50
    assert outcome.names("failed") == ["photo coffee 2"]
    assert outcome.checks["photo coffee 2"]["detail"].endswith(", and not NO SUCH THING")


def test_a_photo_without_an_expectation(smoke: Callable[..., Outcome]) -> None:
    outcome = smoke("--model", "sound", "--image", PHOTOS["coffee"])
    assert outcome.code == 0
    assert outcome.top("coffee 2") == outcome.top("coffee")


def test_expectations_must_fit_the_photos(smoke: Callable[..., Outcome]) -> None:
    mine = PHOTOS["coffee"]
    outcome = smoke("--model", "sound", "--image", mine, "--expect", "A", "--expect", "B")
    assert outcome.code == 2
    assert "there are 1 images and 2 expected labels" in outcome.err


def test_a_file_that_is_no_photo(smoke: Callable[..., Outcome], tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    for bad in (text, tmp_path / "missing.jpg"):
        outcome = smoke("--model", "sound", "--image", bad)
        assert outcome.code == 40
        assert str(bad) in outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.data == {}


# Real weights


@pytest.mark.export
@pytest.mark.usefixtures("export_python")
def test_real_weights_see_what_is_in_the_photos(
    slipway: Slipway, layout: Layout, fixture: Callable[[str], Path], tmp_path: Path
) -> None:
    weights = fixture("squeezenet1_1-imagenet1k_v1.pth")
    photos = {"mug": "COFFEE MUG", "car": "SPORTS CAR"}
    deployed = slipway("deploy", "squeezenet1_1", "--weights", weights)
    assert deployed.returncode == 0, deployed.stderr

    asked: list[str | Path] = []
    for name, label in photos.items():
        asked += ["--image", fixture(f"{name}.jpg"), "--expect", label]
    outcome = Outcome.of(slipway, tmp_path / "report", "--model", "squeezenet1_1", *asked)
    assert outcome.code == 0, outcome.err
    assert outcome.names("failed") == outcome.names("skipped") == []
    assert left_behind(layout) == []

    # Rows of the README: | mug.jpg | 26.7616 (504) coffee mug | …
    table = fixture("README.md").read_text()
    for name in photos:
        (row,) = re.findall(rf"^\| {name}\.jpg \| (\d.*) \|$", table, re.MULTILINE)
        (photo,) = (entry for entry in outcome.data["photos"] if entry["name"] == name)
        for cell, found in zip(row.split(" | "), photo["top5"], strict=True):
            score, index, label = re.fullmatch(r"([\d.]+) \((\d+)\) (.+)", cell).groups()  # type: ignore[union-attr]
            assert found["index"] == int(index)
            assert found["label"] == label.upper()
            assert found["score"] == pytest.approx(float(score), abs=1e-3)
