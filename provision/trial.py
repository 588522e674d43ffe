"""Trying an installed server: what it says of itself, its libraries, and a real start on loopback.

Run as ``python -m provision.trial`` it starts the server in a network of its own, for servers that
cannot be told to listen on loopback alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from provision import processes
from provision.console import step
from provision.errors import BuildError
from provision.installation import ServerInstallation
from provision.layout import REPOSITORY
from provision.shared_libraries import check_libraries

LOOPBACK = "127.0.0.1"
_START_SECONDS = 60
_POLL_SECONDS = 0.1
_STOP_SECONDS = 20
_HELP_SECONDS = 60
# https://man7.org/linux/man-pages/man7/netdevice.7.html
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


@dataclass(frozen=True)
class Trial:
    """What a server answered.

    Attributes:
        version: Its version.
        extensions: What it says it can do.
        metrics: How many metrics it has.
        backends: The backends that are installed for it.
        agents: The repository agents.
        options: How many options its ``--help`` lists.
        seconds: How long it took to be ready.
    """

    version: str
    extensions: tuple[str, ...]
    metrics: int
    backends: tuple[str, ...]
    agents: tuple[str, ...]
    options: int
    seconds: float


def try_out(installation: ServerInstallation, *, version: str, log: Path) -> Trial:
    """Try a server (recipe step 2: "validate the build results"), and more than its help.

    Args:
        installation: The server.
        version: What it has to be.
        log: Where its words go.

    Raises:
        BuildError: It is not whole, does not start, or is not what it has to be.
    """
    with step(f"Try {installation.name}") as trying:
        options = _options(installation, log)
        check_libraries(installation.program.parent.parent, installation.variables, log)
        tried = _start(installation, log)
        trial = Trial(
            options=options,
            backends=_names(installation.backends),
            agents=_names(installation.agents),
            **tried,
        )
        if trial.version != version:
            raise BuildError(
                f"the server says that it is {trial.version}, and was to be {version}",
                fix="make it anew: add --clean",
                log=log,
            )
        trying.detail = (
            f"{options} options, no library missing; ready after {trial.seconds:.1f} s as "
            f"{trial.version} with {trial.metrics} metrics; backends: "
            f"{', '.join(trial.backends) or 'none'}"
        )
    return trial


def _names(folder: Path | None) -> tuple[str, ...]:
    """What is installed in a folder of backends or of agents; ensembles are part of the core."""
    found = folder.iterdir() if folder and folder.is_dir() else ()
    return tuple(sorted(path.name for path in found if path.is_dir()))


def _options(installation: ServerInstallation, log: Path) -> int:
    """How many options it lists. Older servers exit with 0 after their help, newer ones with 1."""
    with log.open("w") as file:
        try:
            said = subprocess.run(
                [installation.program, "--help"],
                env=installation.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_HELP_SECONDS,
                check=False,
            ).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(
                f"{installation.program} does not run: {error}", fix="make it anew: add --clean"
            ) from None
        file.write(said)
    count = len(re.findall(r"^\s+--[a-z]", said, re.MULTILINE))
    if not count:
        raise BuildError(
            f"{installation.program} does not print its options:\n{processes.last_lines(log)}",
            fix="read the log, which says what it lacks",
            log=log,
        )
    return count


def _start(installation: ServerInstallation, log: Path) -> dict[str, Any]:
    if installation.addresses:
        return _run(installation, log)
    return _start_apart(installation, log)


def _start_apart(installation: ServerInstallation, log: Path) -> dict[str, Any]:
    """Start it in a network of its own, where to listen on every interface reaches nobody."""
    request = {"installation": to_json(installation), "log": str(log)}
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "--net", "--map-root-user", "--"]
    command += [sys.executable, "-m", "provision.trial"]
    done = None
    if unshare:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS + _STOP_SECONDS + _HELP_SECONDS,
            check=False,
        )
    if done is None or (done.returncode and not done.stdout):
        raise BuildError(
            f"{installation.name} cannot be tried here",
            cause="It listens on every interface, so it is started in a network of its own alone, "
            f"and this host allows none: {done.stderr.strip() if done else 'there is no unshare'}",
            fix="allow unprivileged user namespaces, or install util-linux; what was built is kept",
            log=log,
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise BuildError(answer["what"], cause=answer["cause"], fix=answer["fix"], log=log)
    return answer


def _run(installation: ServerInstallation, log: Path) -> dict[str, Any]:
    """Start it with an empty repository, ask it, end it."""
    with (
        tempfile.TemporaryDirectory(prefix="slipway-trial-") as empty,
        _ports(3) as (http, grpc, m),
    ):
        command = [str(installation.program), f"--model-repository={empty}"]
        command += [f"--backend-directory={installation.backends}", f"--http-port={http}"]
        command += [f"--metrics-port={m}", "--allow-metrics=true"]
        if installation.addresses:
            command += [f"--http-address={LOOPBACK}"]
        if installation.grpc:
            command += [f"--grpc-port={grpc}"]
            command += [f"--grpc-address={LOOPBACK}"] if installation.addresses else []
        begun = time.monotonic()
        with log.open("a") as file, _running(command, installation.variables, file) as process:
            _await(process, http, log)
            seconds = time.monotonic() - begun
            about = _get(http, "/v2", log).json()
            metrics = _get(m, "/metrics", log).text
    return {
        "version": about.get("version", ""),
        "extensions": tuple(about.get("extensions", ())),
        "metrics": len(re.findall(r"^# TYPE ", metrics, re.MULTILINE)),
        "seconds": seconds,
    }


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if _session().get(f"http://{LOOPBACK}:{port}/v2/health/ready", timeout=2).ok:
                return
        time.sleep(_POLL_SECONDS)
    how = "is not ready" if process.poll() is None else f"ended with exit code {process.returncode}"
    raise BuildError(
        f"the server {how}; its last words:\n{processes.last_lines(log)}",
        fix="read the log; make it anew with --clean if it does not say why",
        log=log,
    )


def _get(port: int, path: str, log: Path) -> requests.Response:
    try:
        answer = _session().get(f"http://{LOOPBACK}:{port}{path}", timeout=10)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise BuildError(
            f"the server does not answer {path}: {error}", fix="read the log", log=log
        ) from None
    return answer


def _session() -> requests.Session:
    """A session without a proxy, and without a connection that a server waits for at its end."""
    session = requests.Session()
    session.trust_env = False
    session.headers["Connection"] = "close"
    return session


@contextlib.contextmanager
def _running(
    command: list[str], variables: dict[str, str], log: Any
) -> Iterator[subprocess.Popen[bytes]]:
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    process = subprocess.Popen(
        processes.bound_to_us(command),
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.end_group(process.pid, patience=_STOP_SECONDS)
        process.wait()


@contextlib.contextmanager
def _ports(count: int) -> Iterator[list[int]]:
    """Free ports of loopback, which others are kept from until the server binds them."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, 0))
        yield [listener.getsockname()[1] for listener in sockets]


def to_json(installation: ServerInstallation) -> dict[str, Any]:
    """An installation as plain data."""
    return json.loads(json.dumps(asdict(installation), default=str))  # type: ignore[no-any-return]


def _from_json(data: dict[str, Any]) -> ServerInstallation:
    agents = data["agents"]
    paths = {"program": Path(data["program"]), "backends": Path(data["backends"])}
    return ServerInstallation(**{**data, **paths, "agents": Path(agents) if agents else None})


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _main() -> None:
    request = json.load(sys.stdin)
    _bring_loopback_up()
    try:
        answer = _run(_from_json(request["installation"]), Path(request["log"]))
    except BuildError as error:
        answer = error.to_json()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    _main()
