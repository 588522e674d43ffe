"""A full disk, a read-only one, and a repository on a file system of its own: real ones.

Each is a small tmpfs, mounted where only the test's processes see it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_repository import check_whole, install_small, small_onnx
from upstream import Upstream

from provision import failures
from provision.errors import StorageError
from provision.layout import REPOSITORY, Layout

# The job that brings sources, with the facts of the repositories in small.
FETCH = """
import sys
from pathlib import Path
from provision import failures, layout, releases
from provision.fetch_sources import fetch
from provision.sources import wanted
releases.FACTS, releases.LOCK = Path(sys.argv[1]), Path(sys.argv[2])
def main():
    features = frozenset({"server", "http", "metrics", "checksum"})
    takes = wanted(releases.release("99.01"), releases.catalogue(), features)
    fetch(layout.Layout.from_environment(), takes, sys.argv[3], what="a test")
    return 0
sys.exit(failures.run(main, None))
"""
DEPLOY = (sys.executable, "-m", "pipeline", "deploy", "squeezenet1_1", "--weights", "random:1")


class Mount:
    """A tmpfs in a mount namespace of its own, which needs no root where the kernel allows it."""

    def __init__(self, holder: subprocess.Popen[str], path: Path) -> None:
        self._holder = holder
        self.path = path
        self.inside = Path(f"/proc/{holder.pid}/root") / path.relative_to("/")
        """The same folder for processes that are not in the namespace."""

    def command(self, *command: str | Path) -> list[str]:
        """A command, to be run where the file system is mounted."""
        enter = ("nsenter", f"--target={self._holder.pid}", "--user", "--mount")
        where = ("--preserve-credentials", "--", "env", f"--chdir={REPOSITORY}")
        return [*enter, *where, *map(str, command)]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end, on the root that is mounted."""
        paths = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
        return subprocess.run(
            self.command(*command),
            env={**os.environ, "SLIPWAY_ROOT": str(self.path), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def call(self, function: Callable[[Path], None]) -> list[list[int]]:
        """Run a function of this module there, with the path; the lines of JSON it prints."""
        code = "import sys, test_storage as t; from pathlib import Path; "
        code += f"t.{function.__name__}(Path(sys.argv[1]))"
        answer = self.run(sys.executable, "-c", code, self.path)
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    def read_only(self) -> None:
        """From here on it cannot be written."""
        self.run("mount", "-o", "remount,ro", self.path).check_returncode()


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Mount]:
    """Mount a tmpfs; the test is skipped where that is not possible."""
    missing = [name for name in ("unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    path.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o {options} slipway-test "$0" && echo mounted && exec sleep 600'
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != "mounted\n":
                pytest.skip(f"this host lets nobody mount: {holder.stderr.read().strip()}")
            yield Mount(holder, path)
        finally:
            holder.kill()


def fill_bytes(root: Path, left: int) -> None:
    """Leave so many pages free."""
    filler = root / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(root)
    with filler.open("wb") as file:
        file.write(bytes((free.f_bavail - left) * free.f_frsize))


def fill_inodes(root: Path, left: int) -> None:
    """Leave so many inodes free."""
    filler = root / "fillers"
    shutil.rmtree(filler, ignore_errors=True)
    filler.mkdir()
    for number in range(os.statvfs(root).f_favail - left):
        (filler / str(number)).touch()


def exhaust(root: Path, fill: Callable[[Path, int], None]) -> None:
    """Install with ever more room, until it succeeds; print what came of each attempt."""
    layout = Layout(root)
    file = small_onnx(root.parent / "small.onnx")
    install_small(layout, file)
    before = sorted(layout.models.rglob("*"))
    for left in range(100):
        fill(root, left)

        def install() -> int:
            install_small(layout, file)
            return 0

        code = failures.run(install, None)
        versions = check_whole(layout)
        unchanged = sorted(layout.models.rglob("*")) == before
        staged = list((root / ".staging").glob("*"))
        print(json.dumps([left, code, versions, unchanged, len(staged)]))
        if code == 0:
            return


def exhaust_bytes(root: Path) -> None:
    exhaust(root, fill_bytes)


def exhaust_inodes(root: Path) -> None:
    exhaust(root, fill_inodes)


def install_first(root: Path) -> None:
    """Have something to lose."""
    install_small(Layout(root), small_onnx(root.parent / "small.onnx"))


@pytest.mark.parametrize("function", [exhaust_bytes, exhaust_inodes])
def test_disk_full_at_any_step_of_an_install(
    tmp_path: Path, function: Callable[[Path], None]
) -> None:
    """With one more page, or one more file, free at each attempt: refused, until it fits."""
    with mounted(tmp_path / "root", "size=512k,nr_inodes=200") as mount:
        attempts = mount.call(function)
    *refused, done = attempts
    assert done[1:] == [0, 2, False, 0]
    assert len(refused) > 5
    assert all(attempt[1:] == [13, 1, True, 0] for attempt in refused), refused


def test_full_disk_is_one_sentence_and_the_fix(tmp_path: Path) -> None:
    with mounted(tmp_path / "root", "size=64k") as mount:
        fill_bytes(mount.inside, 0)
        result = mount.run(*DEPLOY)
    assert result.returncode == 13
    what, fix = result.stderr.splitlines()
    assert what.startswith("error: cannot write ")
    assert what.endswith("no space left on device")
    assert fix == "fix: free some space there, or point SLIPWAY_ROOT at a larger disk"


def test_read_only_root_is_one_sentence_and_the_fix(tmp_path: Path) -> None:
    with mounted(tmp_path / "root", "size=512k") as mount:
        mount.call(install_first)
        mount.read_only()
        result = mount.run(*DEPLOY)
        assert check_whole(Layout(mount.inside)) == 1
    assert result.returncode == 13
    assert result.stderr == (
        f"error: cannot write {mount.path}/run/deploy-squeezenet1_1.lock: read-only file system\n"
        "fix: mount it writable, or point SLIPWAY_ROOT at a folder that is\n"
    )


@pytest.mark.export
@pytest.mark.parametrize("size", ["1m", "9m"])
def test_disk_full_while_exporting(
    tmp_path: Path, host: Layout, export_python: Path, size: str
) -> None:
    """Full when torch writes the model of 5 MB, and when that is installed."""
    assert export_python.is_file()
    with mounted(tmp_path / "root", f"size={size}") as mount:
        (mount.inside / "vendor").symlink_to(host.vendor)
        mount.call(install_first)
        result = mount.run(*DEPLOY)
        assert check_whole(Layout(mount.inside)) == 1
        assert not (mount.inside / "transit" / "deploy" / "squeezenet1_1").exists()
        assert list((mount.inside / ".staging").iterdir()) == []
    assert result.returncode == 13, result.stderr
    assert "no space left on device" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def reinstall(root: Path) -> None:
    """Install into a repository on a file system of its own, empty and not; both exit codes."""
    file = small_onnx(root.parent / "small.onnx")

    def install() -> int:
        install_small(Layout(root.parent), file)
        return 0

    first = failures.run(install, None)
    (root / "small" / "1").mkdir(parents=True)
    (root / "small" / "1" / "model.onnx").touch()
    second = failures.run(install, None)
    print(json.dumps([first, second, len(list((root.parent / ".staging").iterdir()))]))


def test_repository_on_a_file_system_of_its_own(tmp_path: Path) -> None:
    with mounted(tmp_path / "models", "size=1m") as mount:
        (first,) = mount.call(reinstall)
        assert first == [13, 13, 0]
        assert sorted(path.name for path in mount.inside.rglob("*")) == ["1", "model.onnx", "small"]


def test_mount_is_seen_by_nobody_else(tmp_path: Path) -> None:
    with mounted(tmp_path / "root", "size=64k") as mount:
        (mount.inside / "file").touch()
        assert list(mount.path.iterdir()) == []
        with pytest.raises(OSError, match="No space left") as caught:
            (mount.inside / "file").write_bytes(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_ends_the_fetching_of_sources_and_space_lets_it_go_on(tmp_path: Path) -> None:
    upstream = Upstream.create(tmp_path / "upstream")
    facts = upstream.facts(tmp_path / "facts")
    with mounted(tmp_path / "disk", "size=400k") as disk:
        command = (sys.executable, "-c", FETCH, *facts, upstream.folder)
        full = disk.run(*command)
        assert full.returncode == StorageError.exit_code, full.stderr
        assert "no space left on device" in full.stderr
        assert "SLIPWAY_ROOT" in full.stderr
        disk.run("mount", "-o", "remount,size=20m", disk.path).check_returncode()
        done = disk.run(*command)
        assert done.returncode == 0, done.stderr
