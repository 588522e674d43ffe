"""Running programs: logged, never outliving the one who asked, found again by a mark."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_PATIENCE_SECONDS = 5.0


def bound_to_us(command: Sequence[str], *, death_signal: str = "KILL") -> list[str]:
    """The command, made to receive a signal when this process dies, however it dies.

    Uses util-linux's setpriv, part of every Debian and Ubuntu, which execs the command itself, so
    that the process id is the command's. https://man7.org/linux/man-pages/man1/setpriv.1.html
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return list(command)
    return [setpriv, "--pdeathsig", death_signal, "--", *command]


def run_logged(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> int:
    """Run a program to its end, with its output in a log file and given line by line.

    The program gets a session of its own, so that Ctrl-C reaches us alone and we end it and all
    its children in order.

    Returns:
        Its exit code, negative for a signal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", errors="replace") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        with subprocess.Popen(
            bound_to_us(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None  # noqa: S101 - stdout=PIPE
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    on_line(line.rstrip("\n"))
                return process.wait()
            except BaseException:
                end_group(process.pid)
                raise


def end_group(leader: int, *, patience: float = _PATIENCE_SECONDS) -> None:
    """End a process group: ask first, insist after `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
    members = [p for p in psutil.process_iter() if _group(p) == leader]
    psutil.wait_procs(members, timeout=patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def marked(variable: str, value: str) -> list[psutil.Process]:
    """The processes that run with an environment variable at a value, children before parents."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found.append(process)
    return sorted(found, key=lambda p: p.pid, reverse=True)


def kill_marked(variable: str, value: str) -> int:
    """Kill the processes that carry a mark, this one excepted; how many there were."""
    victims = [p for p in marked(variable, value) if p.pid != os.getpid()]
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(victims, timeout=_PATIENCE_SECONDS)
    return len(victims)


def running_from(folder: Path) -> list[psutil.Process]:
    """The processes whose program is a file below a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.exe()).is_relative_to(folder.resolve()):
                found.append(process)
    return found


def listener(port: int) -> str:
    """Who listens on a TCP port, in words; one of another user where the kernel will not say."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
                if connection.pid is None:
                    break
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(connection.pid)
                    return f"process {process.pid} ({process.name()})"
    return "a process of another user"


def last_lines(log: Path, count: int = 8) -> str:
    """The last lines of a log, indented for a message; empty where there are none."""
    try:
        lines = log.read_text(errors="replace").rstrip().splitlines()[-count:]
    except OSError:
        return ""
    return "\n".join(f"    {line}" for line in lines)


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return -1
