"""Files that are whole or not there, seen by readers at work at the same time."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision import files
from provision.errors import BusyError
from provision.layout import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from provision.files import lock
with lock(Path(sys.argv[1]), holder="a test"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something over and over in a thread while the block runs."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(repeat)
        try:
            yield
        finally:
            done.set()
        running.result()


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@given(st.binary(max_size=3 << 20) | st.just(bytes(3 << 20)))
def test_sha256_is_hashlibs(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "hashed"
    file.write_bytes(data)
    assert files.sha256(file) == hashlib.sha256(data).hexdigest()


def test_reader_sees_the_old_content_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "down" / "file"
    contents = [letter * 200_000 for letter in "abc"]
    files.write_atomically(file, contents[0])
    seen = set()

    def read() -> None:
        text = file.read_text()
        assert text in contents
        seen.add(text[0])

    with beside(read):
        deadline = time.monotonic() + 5
        while len(seen) < 3 and time.monotonic() < deadline:
            for content in contents:
                files.write_atomically(file, content)
    assert seen == set("abc")
    assert [p.name for p in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_written_file_can_be_read_by_a_server_of_another_user(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "config.pbtxt", "x")
        files.write_atomically(tmp_path / "config.pbtxt", b"\xff")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "config.pbtxt").stat().st_mode) == 0o644
    assert (tmp_path / "config.pbtxt").read_bytes() == b"\xff"


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_atomically(tmp_path / "taken", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_folder_is_exchanged_under_a_reader(tmp_path: Path) -> None:
    """The target is never missing and never a mixture of two."""
    live, staged = tmp_path / "live", tmp_path / "staged"

    def fill(folder: Path, generation: int) -> None:
        folder.mkdir()
        for name in "abc":
            (folder / name).write_text(str(generation))

    seen = set()

    def read() -> None:
        # One descriptor is one generation, whatever takes its place meanwhile.
        folder = os.open(live, os.O_RDONLY | os.O_DIRECTORY)
        try:
            texts = []
            for name in "abc":
                with open(name, opener=lambda n, f: os.open(n, f, dir_fd=folder)) as file:
                    texts.append(file.read())
        except FileNotFoundError:
            return  # it was the old generation, which the writer deletes
        finally:
            os.close(folder)
        assert len(set(texts)) == 1
        seen.add(texts[0])

    fill(live, 0)
    with beside(read):
        for generation in range(1, 301):
            fill(staged, generation)
            files.put_folder(staged, live)
            assert (staged / "a").read_text() == str(generation - 1)
            for file in staged.iterdir():
                file.unlink()
            staged.rmdir()
    assert (live / "a").read_text() == "300"
    assert len(seen) > 3


def test_folder_is_put_where_there_was_none(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "file").touch()
    files.put_folder(tmp_path / "staged", tmp_path / "live")
    assert (tmp_path / "live" / "file").is_file()
    assert not (tmp_path / "staged").exists()


def test_exchange_between_file_systems_fails_and_changes_nothing(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"slipway-test-{os.getpid()}"  # noqa: S108 - a file system of its own
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, and /dev/shm is not one here")
    (tmp_path / "live").mkdir()
    elsewhere.mkdir()
    try:
        with pytest.raises(OSError, match="Invalid cross-device link"):
            files.put_folder(elsewhere, tmp_path / "live")
        assert (tmp_path / "live").is_dir()
    finally:
        elsewhere.rmdir()


def test_taken_lock_is_an_error_that_names_who_has_it(tmp_path: Path) -> None:
    with (
        holder(tmp_path / "lock") as other,
        pytest.raises(BusyError, match=rf"mine: a test \(process {other.pid}\) is at work already"),
        files.lock(tmp_path / "lock", holder="mine"),
    ):
        pytest.fail("held twice")


def test_taken_lock_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path / "lock") as other, ThreadPoolExecutor(1) as pool:

        def wait() -> float:
            with files.lock(tmp_path / "lock", holder="mine", waiting=said.append):
                return time.monotonic()

        waiter = pool.submit(wait)
        time.sleep(0.3)
        assert said == [f"a test (process {other.pid})"]
        assert not waiter.done()
        ended = time.monotonic()
        other.send_signal(signal.SIGTERM)
        assert waiter.result(10) > ended


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as other:
        other.kill()
        other.wait()
        with files.lock(tmp_path / "lock", holder="mine"):
            assert (tmp_path / "lock").read_text() == f"mine (process {os.getpid()})"


def test_lock_is_not_inherited(tmp_path: Path) -> None:
    """A program that outlives its starter does not go on holding the starter's lock."""
    with files.lock(tmp_path / "lock", holder="mine"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with files.lock(tmp_path / "lock", holder="mine again"):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_lock_can_be_held_by_the_root_being_made(tmp_path: Path) -> None:
    with files.lock(tmp_path / "not" / "there" / "lock", holder="mine"):
        assert (tmp_path / "not" / "there" / "lock").is_file()
