"""Start and stop a Triton server (recipe step 4)."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import requests

from pipeline.server_record import (
    LOOPBACK,
    MARK,
    ServerRecord,
    clear,
    clear_leftovers,
    running,
    write,
)
from provision import processes
from provision.console import say, step
from provision.embedded_server import ServerInstallation
from provision.errors import (
    BusyError,
    ModelLoadError,
    PortInUseError,
    ServerStartError,
    UsageError,
)
from provision.files import lock
from provision.layout import Layout

_EXIT_TIMEOUT_SECONDS = 10
_POLL_SECONDS = 0.05
_LOAD_FAILURE = re.compile(r"failed to load '([^']+)'(?: version (\d+))?: (.*?)\"?$", re.MULTILINE)


@dataclass(frozen=True)
class ServeOptions:
    """How to start a server.

    Attributes:
        host: The address to listen on; loopback unless the user says otherwise.
        http: The HTTP port; 0 for a free one.
        grpc: The gRPC port; 0 for a free one.
        metrics: The metrics port; 0 for a free one.
        timeout: How long loading may take, in seconds.
    """

    host: str = LOOPBACK
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    timeout: float = 180.0


def start(
    layout: Layout,
    installation: ServerInstallation,
    options: ServeOptions,
    *,
    role: str,
    bound: bool,
    repository: Path | None = None,
) -> ServerRecord:
    """Start a server on the live model repository and wait until it is ready.

    Args:
        layout: The host.
        installation: Which Triton.
        options: Where it listens, and how long it may take.
        role: "serve" or "temporary"; there is one "serve" at a time.
        bound: Whether it ends when this process dies.
        repository: The model repository; by default the live one.

    Raises:
        BusyError: A server of ours runs already.
        PortInUseError: A port is taken; the message says by which process.
        ModelLoadError: A model does not load.
        ServerStartError: It died or was not ready in time; the message shows its last words.
    """
    with lock(layout.run / f"{role}.lock", holder="start a server", waiting=say):
        clear_leftovers(layout)
        other = running(layout) if role == "serve" else None
        if other:
            raise BusyError(
                f"a server runs already, at {other.url} (process {other.pid})",
                fix="use that one, or end it with `nox -s stop`",
            )
        chosen = _ports(options)
        record = ServerRecord(
            id=uuid.uuid4().hex[:12],
            role=role,
            installation=installation.name,
            host=chosen.host,
            http=chosen.http,
            grpc=chosen.grpc,
            metrics=chosen.metrics,
            repository=str(repository or layout.models),
            log=str(layout.logs / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{chosen.http}.log"),
        )
        with step(f"Start {installation.name} on {record.url}") as starting:
            record = _spawn(layout, installation, record, bound=bound)
            begun = time.monotonic()
            try:
                _wait_until_ready(record, options.timeout)
            except BaseException:
                stop(layout, record)
                raise
            starting.detail = f"ready after {time.monotonic() - begun:.1f} s"
        return record


@contextlib.contextmanager
def temporary(
    layout: Layout, installation: ServerInstallation, *, repository: Path | None = None
) -> Iterator[ServerRecord]:
    """A server on free loopback ports that ends with the block, or with this process."""
    options = ServeOptions(http=0, grpc=0, metrics=0)
    record = start(
        layout, installation, options, role="temporary", bound=True, repository=repository
    )
    try:
        yield record
    finally:
        stop(layout, record)


def stop(layout: Layout, record: ServerRecord) -> None:
    """End a server in order, then remove whatever is left of it."""
    process = record.process()
    if process:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_EXIT_TIMEOUT_SECONDS + 5)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(_EXIT_TIMEOUT_SECONDS)
    clear(layout, record)


def command(installation: ServerInstallation, record: ServerRecord) -> list[str]:
    """The server's command line.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md
    explains the explicit mode: every model is loaded at the start, and a deploy can load its model
    again without a restart.
    """
    return [
        str(installation.program),
        f"--model-repository={record.repository}",
        f"--backend-directory={installation.backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--allow-http=true",
        f"--http-address={record.host}",
        f"--http-port={record.http}",
        f"--grpc-address={record.host}",
        f"--grpc-port={record.grpc}",
        f"--metrics-address={record.host}",
        f"--metrics-port={record.metrics}",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={record.shared_memory_prefix}",
    ]


def _spawn(
    layout: Layout, installation: ServerInstallation, record: ServerRecord, *, bound: bool
) -> ServerRecord:
    line: Sequence[str] = command(installation, record)
    if bound:
        line = processes.bound_to_us(line, death_signal="TERM")
    # Recorded before there is a process, so that nothing can start and be forgotten.
    write(layout, record)
    log = Path(record.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        child = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**installation.variables, MARK: record.id},
            start_new_session=True,
        )
    started = replace(record, pid=child.pid, created=psutil.Process(child.pid).create_time())
    write(layout, started)
    # The process is ended and awaited by its record, by whichever process does it.
    child.returncode = 0
    return started


def _wait_until_ready(record: ServerRecord, timeout: float) -> None:
    log = Path(record.log)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        process = record.process()
        if process is None:
            raise _start_failure(log, "the server ended while starting")
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(f"http://{record.url}/v2/health/ready", timeout=2)
            if answer.ok:
                return
        time.sleep(_POLL_SECONDS)
    raise _start_failure(log, f"the server was not ready after {timeout:.0f} s")


def _start_failure(log: Path, what: str) -> ServerStartError | ModelLoadError:
    text = log.read_text(errors="replace")
    failed = _LOAD_FAILURE.search(text)
    if failed:
        model, version, reason = failed.groups()
        named = f"{model} version {version}" if version else model
        return ModelLoadError(
            f"the server cannot load {named}: {reason.strip()[:500]}",
            fix=f"deploy it again (`nox -s deploy -- {model} --force`), or remove its folder from "
            "the model repository",
            log=log,
        )
    return ServerStartError(
        f"{what}; its last words:\n{processes.last_lines(log)}",
        fix="read the log; a missing library or a full /dev/shm (`df /dev/shm`) are the usual "
        "reasons",
        log=log,
    )


def _ports(options: ServeOptions) -> ServeOptions:
    """The options with real ports: given ones are tried, zeros are replaced by free ones.

    Raises:
        PortInUseError: A given one is taken.
        UsageError: The address is not one of this host's, or two ports are the same.
    """
    wanted = {"http": options.http, "grpc": options.grpc, "metrics": options.metrics}
    given = [port for port in wanted.values() if port]
    if len(given) != len(set(given)):
        raise UsageError("two of the ports are the same", fix="give three different ports")
    chosen = {}
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As the server does: a port in TIME_WAIT is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((options.host, port))
                listener.listen(1)
            except (OSError, OverflowError) as error:
                if isinstance(error, OSError) and _taken(options.host, port):
                    raise PortInUseError(
                        f"port {port} ({name}) is taken by {processes.listener(port)}",
                        fix=f"end that process, or give another port (`--{name}-port`; 0 takes a "
                        "free one)",
                    ) from None
                raise UsageError(
                    f"cannot listen on {options.host}:{port}: {error}",
                    fix="give an address of this host and a port from 1024 to 65535",
                ) from None
            chosen[name] = listener.getsockname()[1]
    return replace(options, **chosen)


def _taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            return probe.connect_ex((host, port)) == 0
        except (OSError, OverflowError):
            return False
