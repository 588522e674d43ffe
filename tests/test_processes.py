"""Programs: logged, ended with whoever runs them, found again by a mark."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from provision import processes
from provision.layout import REPOSITORY

RUN = """
import sys
from pathlib import Path
from provision.processes import run_logged
run_logged(sys.argv[2:], log=Path(sys.argv[1]))
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def tree(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The processes below one, as soon as there are so many."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        if len(children) >= count:
            return children
        time.sleep(0.02)
    pytest.fail("they did not start")


@contextmanager
def running(log: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Another process of ours that runs a program."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, log, *command],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill $$", -15)]
)
def test_exit_code(tmp_path: Path, script: str, code: int) -> None:
    assert processes.run_logged(["sh", "-c", script], log=tmp_path / "log") == code


def test_output_goes_to_the_log_and_to_us_line_by_line(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    lines: list[str] = []
    script = r"echo one; echo two >&2; printf '\377\n'; printf end; cat"
    for _ in range(2):
        processes.run_logged(["sh", "-c", script], log=log, on_line=lines.append)
    assert lines == ["one", "two", "\ufffd", "end"] * 2
    assert log.read_text() == f"$ sh -c {script}\none\ntwo\n\ufffd\nend" * 2


def test_environment_and_folder(tmp_path: Path) -> None:
    said: list[str] = []
    processes.run_logged(
        ["sh", "-c", "echo $WORD; pwd"],
        log=tmp_path / "log",
        env={"WORD": "here", "PATH": os.defpath},
        cwd=tmp_path,
        on_line=said.append,
    )
    assert said == ["here", str(tmp_path.resolve())]


def test_program_dies_with_us_however_we_die(tmp_path: Path) -> None:
    with running(tmp_path / "log", "sleep", "60") as process:
        children = tree(process, 1)
        process.kill()
        process.wait()
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_interrupt_ends_its_children_too(tmp_path: Path) -> None:
    with running(tmp_path / "log", "sh", "-c", "sleep 60 & sleep 60 & wait") as process:
        children = tree(process, 3)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert time.monotonic() - begun < 4
    assert psutil.wait_procs(children, timeout=1)[1] == []


def test_error_while_listening_ends_it(tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise ValueError(line)

    begun = time.monotonic()
    with pytest.raises(ValueError, match="word"):
        processes.run_logged(
            ["sh", "-c", "echo word; exec sleep 60"], log=tmp_path / "log", on_line=fail
        )
    assert time.monotonic() - begun < 4


def test_stubborn_one_is_killed_after_a_while() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        processes.end_group(process.pid, patience=0.2)
        assert process.wait(5) == -signal.SIGKILL
    processes.end_group(process.pid, patience=0.2)  # nobody is there, which is fine


def test_death_signal_can_be_chosen_and_the_pid_is_the_programs() -> None:
    command = processes.bound_to_us(["sh", "-c", "echo $$"], death_signal="TERM")
    assert command[1:4] == ["--pdeathsig", "TERM", "--"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].strip() == str(process.pid)


def test_host_without_setpriv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.bound_to_us(["a", "b"]) == ["a", "b"]


def test_only_marked_processes_are_killed() -> None:
    sleepers = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, "SLIPWAY_TEST": mark})
        for mark in ("ours", "ours", "theirs")
    ]
    try:
        found = processes.marked("SLIPWAY_TEST", "ours")
        assert [p.pid for p in found] == [sleepers[1].pid, sleepers[0].pid]
        assert processes.kill_marked("SLIPWAY_TEST", "ours") == 2
        assert [s.poll() is None for s in sleepers] == [False, False, True]
        assert processes.kill_marked("SLIPWAY_TEST", "ours") == 0
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_listener_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = psutil.Process().name()
        port = server.getsockname()[1]
        assert processes.listener(port) == f"process {os.getpid()} ({name})"
    assert processes.listener(port) == "a process of another user"


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.last_lines(log) == ""
    log.write_bytes(b"".join(b"%d\n" % n for n in range(20)) + b"\xff\n\n")
    assert processes.last_lines(log, 3) == "    18\n    19\n    \ufffd"
    assert len(processes.last_lines(log).splitlines()) == 8
