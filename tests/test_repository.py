"""The live repository: versions come in whole or not at all, whoever reads or dies meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from helpers import PREPROCESSING, SOURCE, deploy_tiny, logits
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import server
from pipeline.client import TritonClient
from pipeline.engines import OnnxRuntimeEngine
from pipeline.install import Prepared, install_version
from pipeline.manifest import Manifest, damaged
from pipeline.repository import Repository, check_name
from provision.errors import BusyError, ConfigError, RepositoryError, UsageError
from provision.installation import ServerInstallation
from provision.layout import REPOSITORY, Layout

MODEL = "small"
KILLS = 20


def small_onnx(path: Path) -> Path:
    """Write a classifier of 12 KB, so that installing it is mostly a matter of names."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.random.default_rng(0).standard_normal((3, 1000), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["output"]),
        ],
        "small",
        [helper.make_tensor_value_info("input", kinds.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", 1000])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def install_small(layout: Layout, file: Path, *, source: Path = SOURCE, size: int = 8) -> Manifest:
    """Install the small model as its next version."""
    repository = Repository(layout)
    engine = OnnxRuntimeEngine.choose(instances=1, threads=1)
    with repository.exclusive(MODEL, lambda _: None):
        return install_version(
            repository,
            MODEL,
            Prepared(
                weights={"spec": "random:0", "kind": "random", "value": "0", "sha256": ""},
                side=32,
                classes=1000,
                preprocessing=PREPROCESSING.to_json(),
                verification={},
                libraries={},
            ),
            source=source,
            engine=engine,
            max_batch_size=size,
            files=engine.files(file),
            architecture=MODEL,
            fingerprint="",
            photos={},
        )


def supervise() -> None:
    """Fork a process for each line of standard input, which installs so many versions."""
    layout, file = Layout(Path(sys.argv[1])), Path(sys.argv[2])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            for _ in range(int(line)):
                install_small(layout, file)
            os._exit(0)
        print(child, flush=True)


class Installers:
    """Processes that install versions over and over."""

    def __init__(self, layout: Layout, file: Path) -> None:
        self._supervisor = subprocess.Popen(
            [sys.executable, "-c", "import test_repository as t; t.supervise()", layout.root, file],
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, versions: int) -> psutil.Process:
        """Start one."""
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.write(f"{versions}\n")
        self._supervisor.stdin.flush()
        return psutil.Process(int(self._supervisor.stdout.readline()))

    def end(self) -> None:
        """End the process that starts them."""
        self._supervisor.communicate(timeout=30)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_onnx(tmp_path / "small.onnx")


@pytest.fixture
def installers(layout: Layout, small: Path) -> Iterator[Installers]:
    started = Installers(layout, small)
    yield started
    started.end()


def check_whole(layout: Layout) -> int:
    """Every version that a reader finds is what its manifest says; how many there are."""
    repository = Repository(layout)
    versions = repository.versions(MODEL)
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        manifest = Manifest.read(repository.manifest_path(MODEL, version))
        assert damaged(manifest, repository.path / MODEL) == []
    assert os.listdir(repository.path) == [MODEL]  # noqa: PTH208 - hidden ones too
    return len(versions)


@contextmanager
def reader(layout: Layout) -> Iterator[list[int]]:
    """Somebody who looks at the latest version all the time; how many versions were seen."""
    repository = Repository(layout)
    done = threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not done.is_set():
            manifest = repository.latest(MODEL)
            assert manifest is not None
            assert damaged(manifest, repository.path / MODEL) == []
            assert os.listdir(repository.path) == [MODEL]  # noqa: PTH208 - hidden ones too
            seen.append(manifest.version)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            done.set()
        looking.result()


def test_killed_at_any_instant_leaves_a_repository_that_serves(
    layout: Layout, installation: ServerInstallation, small: Path, installers: Installers
) -> None:
    """`kill -9` at 20 random instants of installing, under a reader; then the real server."""
    install_small(layout, small)
    chance = random.Random(20)  # noqa: S311 - when to kill is no secret
    left_over = 0
    with reader(layout) as seen:
        for _ in range(KILLS):
            process = installers.start(10**6)
            time.sleep(chance.uniform(0.02, 0.2))
            process.kill()
            psutil.wait_procs([process], timeout=10)
            left_over += bool(list((layout.root / ".staging").iterdir()))
            check_whole(layout)
    assert left_over > 0, "no kill came in the middle"
    assert len(set(seen)) > 3
    assert seen == sorted(seen)
    last = install_small(layout, small)
    assert check_whole(layout) == last.version
    assert list((layout.root / ".staging").iterdir()) == []
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32)
    with server.temporary(layout, installation) as record, TritonClient(record.url) as client:
        assert np.array_equal(client.logits(MODEL, image), logits(small, image))


def test_two_at_once_lose_no_version(layout: Layout, installers: Installers) -> None:
    processes = [installers.start(5), installers.start(5)]
    gone, alive = psutil.wait_procs(processes, timeout=60)
    assert len(gone) == 2
    assert alive == []
    assert check_whole(layout) == 10


def test_taken_model_is_an_error_for_who_does_not_wait(layout: Layout) -> None:
    repository = Repository(layout)
    with repository.exclusive(MODEL, None):
        with (
            pytest.raises(BusyError, match="deploy small") as caught,
            repository.exclusive(MODEL, None),
        ):
            pytest.fail("held twice")
        with repository.exclusive("other", None):
            assert caught.value.exit_code == 14


def test_versions_are_kept_by_hard_links(layout: Layout, small: Path) -> None:
    first = install_small(layout, small)
    folder = layout.models / MODEL
    before = {name: (folder / name).stat() for name in first.files}
    config = (folder / "config.pbtxt").read_text()
    (layout.root / "my config").hardlink_to(folder / "config.pbtxt")
    second = install_small(layout, small, size=0)
    assert (first.version, second.version) == (1, 2)
    assert Repository(layout).versions(MODEL) == [1, 2]
    for name in ("1/model.onnx", "1/model.py"):
        assert (folder / name).stat().st_ino == before[name].st_ino
        assert (folder / name).stat().st_mtime_ns == before[name].st_mtime_ns
    # What is new is a new file: whoever holds the old one keeps it as it was.
    assert (folder / "config.pbtxt").read_text() != config
    assert (layout.root / "my config").read_text() == config


def test_leftovers_of_a_killed_run_are_cleared(layout: Layout, small: Path) -> None:
    install_small(layout, small)
    staged = layout.root / ".staging" / MODEL
    shutil.copytree(layout.models / MODEL, staged)
    (staged / "2").mkdir()
    (staged / "2" / "model.onnx").write_text("half")
    (staged / "stray").touch()
    assert install_small(layout, small).version == 2
    assert check_whole(layout) == 2
    assert not staged.exists()
    assert not (layout.models / MODEL / "stray").exists()


def test_what_the_user_keeps_in_a_models_folder_stays(layout: Layout, small: Path) -> None:
    install_small(layout, small)
    folder = layout.models / MODEL
    (folder / "NOTES").write_text("mine")
    (folder / "old").symlink_to("1", target_is_directory=True)
    (folder / "deep" / "down").mkdir(parents=True)
    (folder / "deep" / "down" / "file").touch()
    install_small(layout, small)
    assert (folder / "NOTES").read_text() == "mine"
    assert (folder / "old").readlink() == Path("1")
    assert (folder / "deep" / "down" / "file").is_file()


def test_failed_install_changes_nothing(layout: Layout, small: Path, tmp_path: Path) -> None:
    install_small(layout, small)
    source = shutil.copytree(SOURCE, tmp_path / MODEL)
    (source / "labels.txt").write_text("ONE\n")
    before = sorted(layout.models.rglob("*"))
    with pytest.raises(ConfigError, match="dims"):  # it is the model's own, and of another shape
        install_small(layout, small, source=source)
    config = (SOURCE / "config.pbtxt").read_text()
    (source / "config.pbtxt").write_text(config.replace("224", "32"))
    with pytest.raises(ConfigError, match="has 1 labels"):
        install_small(layout, small, source=source)
    (source / "config.pbtxt").write_text(config.replace("label_filename", "# label_filename"))
    with pytest.raises(ConfigError):
        install_small(layout, small, source=source)
    with pytest.raises(FileNotFoundError):
        install_small(layout, tmp_path / "not there.onnx")
    assert sorted(layout.models.rglob("*")) == before
    assert check_whole(layout) == 1
    assert list((layout.root / ".staging").iterdir()) == []


def test_linked_repository_is_changed_where_it_is(
    layout: Layout, small: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "disk" / "models"
    elsewhere.mkdir(parents=True)
    layout.models.symlink_to(elsewhere)
    install_small(layout, small)
    install_small(layout, small)
    assert check_whole(layout) == 2
    assert layout.models.is_symlink()
    assert sorted(p.name for p in elsewhere.parent.iterdir()) == [".staging", "models"]


def test_what_is_no_version_is_none(layout: Layout, small: Path) -> None:
    install_small(layout, small)
    for name in ("0", "007", "²", "1a", ".2", "v3"):  # Triton passes over them as well
        (layout.models / MODEL / name).mkdir()
    (layout.models / MODEL / "9").touch()
    (layout.models / "empty").mkdir()
    (layout.models / "file").touch()
    repository = Repository(layout)
    assert repository.versions(MODEL) == [1]
    assert repository.models() == [MODEL]
    assert repository.latest("empty") is None
    assert repository.latest("not there") is None


def test_version_without_a_manifest_is_an_error(layout: Layout) -> None:
    deploy_tiny(layout)
    (layout.models / "tiny" / "manifest-1.json").unlink()
    with pytest.raises(RepositoryError, match=r"manifest-1\.json cannot be read"):
        Repository(layout).latest("tiny")


@pytest.mark.parametrize("name", ["resnet50", "a", "0", "ViT-B_16.v2", "x" * 128])
def test_names_that_can_be_a_models(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "_null", "a/b", "a b", "a\n", "é", "x" * 129]
)
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a model's name"):
        check_name(name)


@settings(deadline=None)
@given(st.text())
def test_every_accepted_name_is_one_plain_folder(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    assert Path(name).name == name
    assert name.isascii()
    assert not name.startswith(".")
