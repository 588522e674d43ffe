"""Deploying through the command line, with the real torch: what a user sees, and what is left."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from google.protobuf import text_format
from helpers import SOURCE, Slipway, logits, own_root, photo_tensors
from test_export import refusing, weights_server
from tritonclient.grpc import model_config_pb2 as triton

from pipeline import deploy as deploying
from pipeline import server
from pipeline.choose_engine import Choice, Facts
from pipeline.client import TritonClient
from pipeline.config import read_config
from pipeline.deploy import DeployRequest
from pipeline.manifest import Manifest, damaged
from pipeline.photos import sample_photos
from pipeline.preprocess import Preprocessing
from pipeline.repository import Repository
from pipeline.weights import WeightsSpec
from provision.files import sha256
from provision.installation import ServerInstallation
from provision.layout import REPOSITORY, Layout

MODEL = "squeezenet1_1"
ON_CPU = Choice("onnxruntime", "a test")
NO_GPU = Facts(driver="", devices=(), server=None, tensorrt=())
DEPLOY = ("deploy", MODEL, "--weights", "random:1")
UNCHANGED = f"{MODEL} version 1 is deployed already and nothing has changed since "
Result = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Start:
    """Three deploys of the same model at once, on an empty root.

    Attributes:
        layout: The root.
        seconds: How long the first took.
        first: The one that does the work.
        second: One that waits for it.
        third: One that does not.
    """

    layout: Layout
    seconds: float
    first: Result
    second: Result
    third: Result

    @property
    def manifest(self) -> Manifest:
        """Of the version that they made."""
        manifest = Repository(self.layout).latest(MODEL)
        assert manifest is not None
        return manifest


def ended(process: subprocess.Popen[str]) -> Result:
    """Wait for a job, and tell what it printed."""
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, host: Layout, export_python: Path) -> Start:
    assert export_python.is_file()
    layout = own_root(tmp_path_factory.mktemp("deploy"), host)
    slipway = Slipway(layout)
    lock = layout.run / f"deploy-{MODEL}.lock"
    begun = time.monotonic()
    first = slipway.start(*DEPLOY)
    wait_for(lambda: lock.is_file() and f"process {first.pid}" in lock.read_text())
    second = slipway.start(*DEPLOY)
    third = slipway(*DEPLOY, "--no-wait")
    done = ended(first)
    return Start(layout, time.monotonic() - begun, done, ended(second), third)


@pytest.fixture
def deployed(layout: Layout, start: Start) -> Layout:
    """A root of the test's own with the version that was deployed at the start."""
    shutil.copytree(start.layout.models, layout.models)
    return layout


def contents(layout: Layout) -> dict[str, str]:
    """Every file of the live repository, by its content."""
    files = (path for path in layout.models.rglob("*") if path.is_file())
    return {str(path.relative_to(layout.models)): sha256(path) for path in files}


def check_clean(layout: Layout) -> None:
    """Nothing of work in progress is left."""
    for folder in (layout.root / ".staging", layout.transit / "deploy"):
        assert not folder.exists() or list(folder.iterdir()) == []


def check_whole(layout: Layout) -> int:
    """Every version is what its manifest says; how many there are."""
    repository = Repository(layout)
    versions = repository.versions(MODEL)
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        manifest = Manifest.read(repository.manifest_path(MODEL, version))
        assert damaged(manifest, repository.path / MODEL) == []
    assert os.listdir(repository.path) == [MODEL]  # noqa: PTH208 - hidden ones too
    return len(versions)


@pytest.mark.export
def test_first_deploy(start: Start) -> None:
    assert start.first.returncode == 0, start.first.stderr
    assert f"✓ Export {MODEL} and compare with PyTorch: weights random:1, 4.8 MiB" in (
        start.first.stdout
    )
    assert "! random weights: the labels mean nothing\n" in start.first.stdout
    assert "version 1, 5 files" in start.first.stdout
    assert check_whole(start.layout) == 1
    check_clean(start.layout)


@pytest.mark.export
def test_second_waits_and_finds_nothing_changed(start: Start) -> None:
    assert start.second.returncode == 0, start.second.stderr
    waiting, unchanged = start.second.stdout.splitlines()
    assert waiting.startswith(f"waiting for deploy {MODEL} (process ")
    assert unchanged.startswith(UNCHANGED)


@pytest.mark.export
def test_third_does_not_want_to_wait(start: Start) -> None:
    assert start.third.returncode == 14
    what, fix = start.third.stderr.splitlines()
    assert what.startswith(f"error: deploy {MODEL}: deploy {MODEL} (process ")
    assert what.endswith(" is at work already")
    assert fix == "fix: wait for it to end, then run the same command again"


@pytest.mark.export
def test_manifest_is_true(start: Start, export_python: Path) -> None:
    manifest, folder = start.manifest, start.layout.models / MODEL
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(manifest.files) == files - {"manifest-1.json"}
    for name, facts in manifest.files.items():
        assert facts == {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    photos = {photo.name: sha256(photo.path) for photo in sample_photos()}
    assert manifest.photos == photos
    assert (manifest.model, manifest.architecture, manifest.version) == (MODEL, MODEL, 1)
    assert (manifest.side, manifest.classes, manifest.max_batch_size) == (224, 1000, 8)
    assert manifest.weights["spec"] == "random:1"
    assert manifest.engine["name"] == "onnxruntime"
    code = (
        "import json, sys, platform; from importlib.metadata import version as v;"
        "print(json.dumps({n: v(n) if n != 'python' else platform.python_version()"
        " for n in sys.argv[1:]}))"
    )
    asked = subprocess.run(
        [export_python, "-c", code, *manifest.libraries], capture_output=True, text=True, check=True
    )
    assert json.loads(asked.stdout) == manifest.libraries
    assert {"torch", "torchvision", "onnx", "onnxruntime"} < set(manifest.libraries)


@pytest.mark.export
def test_measured_errors_are_those_of_the_deployed_files(start: Start) -> None:
    manifest, folder = start.manifest, start.layout.models / MODEL / "1"
    tensors = photo_tensors(Preprocessing.from_json(manifest.preprocessing))
    computed = logits(folder / "model.onnx", np.stack(list(tensors.values())))
    with np.load(folder / "reference.npz") as references:
        expected = np.stack([references[name] for name in tensors])
    cases = manifest.verification["cases"]
    assert cases[0]["name"] == "sample photos"
    assert float(np.abs(computed - expected).max()) == pytest.approx(cases[0]["max_abs"], abs=1e-5)
    assert [case["batch"] for case in cases[1:]] == [1, 4, 8]
    for case in cases:
        assert case["passed"]
        assert 0 < case["max_abs"] < manifest.verification["atol"]
        assert (case["top1"], case["top5"]) == (1, 1)


@pytest.mark.export
def test_unchanged_is_said_at_once_without_torch_or_triton(start: Start) -> None:
    before = contents(start.layout)
    begun = time.monotonic()
    result = Slipway(start.layout)(*DEPLOY, env={"PYTHONPROFILEIMPORTTIME": "1"})
    seconds = time.monotonic() - begun
    assert result.returncode == 0
    assert result.stdout.startswith(UNCHANGED)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "pipeline.deploy" in imported
    assert imported.isdisjoint({"torch", "tritonclient", "onnx", "onnxruntime"})
    assert seconds < 3
    assert contents(start.layout) == before


@pytest.mark.export
def test_changed_option_is_the_next_version(deployed: Layout) -> None:
    """Here the recipe's form."""
    folder = deployed.models / MODEL
    first = (folder / "1" / "model.onnx").stat().st_ino
    result = Slipway(deployed)(*DEPLOY, "--max-batch-size", "0", "--instances", "2")
    assert result.returncode == 0, result.stderr
    assert Repository(deployed).versions(MODEL) == [1, 2]
    assert (folder / "1" / "model.onnx").stat().st_ino == first
    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    assert config.max_batch_size == 0
    assert list(config.input[0].reshape.shape) == [1, 3, 224, 224]
    assert config.instance_group[0].count == 2
    manifest = Repository(deployed).latest(MODEL)
    assert manifest is not None
    assert (manifest.max_batch_size, manifest.engine["instances"]) == (0, 2)
    assert [case["batch"] for case in manifest.verification["cases"][1:]] == [1]
    check_clean(deployed)


@pytest.mark.export
def test_damage_is_noticed_and_interrupting_leaves_everything_as_it_was(
    deployed: Layout,
) -> None:
    with (deployed.models / MODEL / "1" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    before = contents(deployed)
    slipway = Slipway(deployed)
    process = slipway.start(*DEPLOY)
    assert process.stdout is not None
    assert process.stdout.readline() == (
        f"! {MODEL} version 1 is damaged (1/model.onnx); deploying again\n"
    )
    log = deployed.logs
    wait_for(lambda: any("importing torch" in p.read_text() for p in log.glob("deploy-*.log")))
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    assert psutil.wait_procs(children, timeout=1)[1] == []
    assert contents(deployed) == before
    check_clean(deployed)


@pytest.mark.export
def test_failures_with_torch_deploy_nothing(deployed: Layout, tmp_path: Path) -> None:
    """A pickle that would run a program, and a server of weights that has none."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump(Evil(), file)
    before = contents(deployed)
    slipway = Slipway(deployed)
    with weights_server() as weights:
        env = {
            "SLIPWAY_WEIGHTS_MIRROR": f"{weights.url}/missing",
            "TORCH_HOME": str(tmp_path / "torch"),
            "NO_PROXY": "127.0.0.1",
        }
        evil = slipway.start("deploy", MODEL, "--weights", tmp_path / "evil.pth")
        missing = ended(slipway.start("deploy", MODEL, "--name", "other", env=env))
        refused = ended(evil)
        assert len(weights.requests) == 1
    assert refused.returncode == 20
    what, fix, log = refused.stderr.splitlines()
    assert what.startswith(f"error: {tmp_path}/evil.pth cannot be read as a state dict. ")
    assert "torch.save(model.state_dict(), FILE)" in fix
    assert "Traceback" in Path(log.removeprefix("log: ")).read_text()
    assert not (tmp_path / "executed").exists()
    assert missing.returncode == 12
    what, fix, log = missing.stderr.splitlines()
    assert what.endswith(" answers 404 Not Found")
    assert "--weights FILE" in fix
    assert "--weights random" in fix
    assert contents(deployed) == before
    check_clean(deployed)


@pytest.mark.export
def test_export_that_computes_something_else_is_not_deployed(
    deployed: Layout, tmp_path: Path
) -> None:
    """A clone whose exporter changes one weight after PyTorch has had its say."""
    clone = tmp_path / "clone"
    for name in ("pipeline", "provision", "model_repository"):
        shutil.copytree(
            REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (clone / "pipeline" / "export.py").open("a") as file:
        file.write(
            "\n\n_right = export_onnx\n\n\n"
            "def export_onnx(model, path, *, crop):\n"
            "    _right(model, path, crop=crop)\n"
            "    import onnx\n"
            "    wrong = onnx.load(str(path))\n"
            "    last = next(t for t in wrong.graph.initializer if t.dims[0] == 1000)\n"
            "    values = onnx.numpy_helper.to_array(last).copy()\n"
            "    values[7] *= 2\n"
            "    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))\n"
            "    onnx.save(wrong, str(path))\n"
        )
    before = contents(deployed)
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", *DEPLOY],
        cwd=clone,
        env={**os.environ, "SLIPWAY_ROOT": str(deployed.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 22, result.stderr
    assert "ONNX Runtime and PyTorch do not agree" in result.stderr
    assert "nothing was deployed" in result.stderr
    assert result.stderr.count(", class 7: expected ") >= 4
    assert contents(deployed) == before
    check_clean(deployed)


@pytest.mark.export
def test_killed_at_any_instant_leaves_a_repository_that_serves(
    deployed: Layout, start: Start, installation: ServerInstallation
) -> None:
    """`kill -9` at 20 random instants of a real deploy, then one that is let run to its end.

    Most fall into its first seconds and into the installing, where something could break; only
    two into the many seconds of exporting in between, which write nothing but work in progress.
    """
    chance = random.Random(20)  # noqa: S311 - when to kill is no secret
    early = [chance.uniform(0, 2) for _ in range(15)]
    late = [chance.uniform(2, start.seconds / 2) for _ in range(2)]
    while_installing = [chance.uniform(0, 0.08) for _ in range(3)]
    slipway = Slipway(deployed)
    versions = 1

    def kill_after(seconds: float, line: str = "") -> None:
        nonlocal versions
        process = slipway.start(*DEPLOY, "--force")
        assert process.stdout is not None
        while line and not process.stdout.readline().startswith(line):
            assert process.poll() is None
        time.sleep(seconds)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        ended(process)
        assert psutil.wait_procs(children, timeout=10)[1] == []
        found = check_whole(deployed)
        assert versions <= found <= versions + 1
        versions = found

    for seconds in early + late:
        kill_after(seconds)
    for seconds in while_installing:
        kill_after(seconds, "… Install ")
    last = slipway(*DEPLOY, "--force")
    assert last.returncode == 0, last.stderr
    assert check_whole(deployed) == versions + 1
    check_clean(deployed)
    manifest = Repository(deployed).latest(MODEL)
    assert manifest is not None
    with server.temporary(deployed, installation) as record, TritonClient(record.url) as client:
        image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
        onnx = deployed.models / MODEL / str(manifest.version) / "model.onnx"
        assert np.array_equal(client.logits(MODEL, image), logits(onnx, image))


@pytest.fixture
def empty(layout: Layout) -> Iterator[Slipway]:
    """The command line on a root with nothing; whatever is refused leaves it so."""
    yield Slipway(layout)
    assert not layout.models.exists()
    check_clean(layout)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["resnet5"], 2, "no classifier named 'resnet5'\nfix: did you mean resnet50"),
        ([MODEL, "--name", "../up"], 2, "'../up' cannot be a model's name"),
        ([MODEL, "--weights", "not/there.pth"], 20, "there is no weights file not/there.pth"),
        ([MODEL, "--weights", "imagenet"], 2, "'imagenet' names no weights"),
        ([MODEL, "--weights", "random:99999999999999999999"], 2, "names no weights"),
        ([MODEL, "--max-batch-size", "-1"], 2, "must not be negative"),
        ([MODEL, "--instances", "0"], 2, "must be 1 or more"),
    ],
)
def test_wrong_request_is_refused_at_once(
    empty: Slipway, arguments: list[str], code: int, said: str
) -> None:
    result = empty("deploy", *arguments, env={"SLIPWAY_WEIGHTS_MIRROR": refusing()})
    assert result.returncode == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def request_for(model: str = "resnet50", **options: object) -> DeployRequest:
    wanted = DeployRequest(architecture=model, weights=WeightsSpec("random", "0"))
    return replace(wanted, **options)  # type: ignore[arg-type] # any of its fields


def test_fingerprint_is_of_everything_that_decides(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    from_file = WeightsSpec("file", str(weights))
    requests = [
        request_for(),
        request_for("resnet18"),
        request_for(max_batch_size=8),
        request_for(max_batch_size=0),
        request_for(instances=2),
        request_for(threads=2),
        request_for(weights=WeightsSpec("random", "1")),
        request_for(weights=WeightsSpec("pretrained", "IMAGENET1K_V1")),
        request_for(weights=from_file),
    ]
    prints = [request.fingerprint(ON_CPU, NO_GPU) for request in requests]
    weights.write_bytes(b"two")
    prints.append(requests[-1].fingerprint(ON_CPU, NO_GPU))
    assert len(set(prints)) == len(prints)
    for same in (request_for(force=True), request_for(wait=False)):
        assert same.fingerprint(ON_CPU, NO_GPU) == prints[0]


def test_source_is_the_models_own_or_borrowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert request_for().source == SOURCE
    assert request_for("resnet18").source == SOURCE
    shutil.copytree(SOURCE, tmp_path / "resnet50")
    monkeypatch.setattr(deploying, "SOURCES", tmp_path)
    before = request_for("resnet18").fingerprint(ON_CPU, NO_GPU)
    own = tmp_path / "resnet18"
    own.mkdir()
    (own / "notes").touch()
    assert request_for("resnet18").source == tmp_path / "resnet50"
    shutil.copy(SOURCE / "config.pbtxt", own)
    assert request_for("resnet18").source == own
    assert request_for(name="resnet18").source == own
    assert request_for("resnet18").fingerprint(ON_CPU, NO_GPU) != before
    assert read_config(own / "config.pbtxt").name == "resnet50"
