"""Start and stop a Triton server (recipe step 4)."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from pipeline.server_record import (
    EVERYWHERE,
    LOOPBACK,
    MARK,
    ServerRecord,
    clear,
    clear_leftovers,
    clearing,
    here,
    in_turn,
    running,
    write,
)
from provision import processes
from provision.console import step
from provision.errors import (
    BusyError,
    ModelLoadError,
    PortInUseError,
    ServerStartError,
    UsageError,
)
from provision.installation import ServerInstallation
from provision.layout import Layout

_EXIT_TIMEOUT_SECONDS = 10
_POLL_SECONDS = 0.05
_REPOSITORY_POLL_SECONDS = 1
_PROBE_SECONDS = 2
# How the log tells that a model does not load: groups model, version, reason.
_LOAD_FAILURES = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"failed to load '(?P<model>[^']+)'(?: version (?P<version>\d+))?: (?P<reason>.*?)\"?$",
        r"Poll failed for model directory '(?P<model>[^']+)': (?P<version>)(?P<reason>.*?)\"?$",
        r"Python stub: (?P<reason>Python model file .*?/(?P<model>[^/]+)/(?P<version>\d+)/.*)$",
    )
]
# A stub that ends with these words is waited for by the server, for good.
_HANGS = "Failed to preinitialize Python stub"
_CONFIG_ERROR = re.compile(r"Error parsing text-format inference\.ModelConfig: (.*)")


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
        UsageError: The server would listen elsewhere, too, than it is told to.
        PortInUseError: A port is taken; the message says by which process.
        ModelLoadError: A model does not load.
        ServerStartError: It died or was not ready in time; the message shows its last words.
    """
    if not installation.addresses and options.host != EVERYWHERE:
        raise UsageError(
            f"{installation.name} cannot be told the address to listen on, and listens on all",
            fix="if everybody who reaches this host may ask it, start it with "
            f"`nox -s serve -- --server built --host {EVERYWHERE} --detach`",
        )
    with in_turn(layout, role):
        clear_leftovers(layout)
        if role == "serve":
            refuse_second(layout)
        chosen = _ports(options, grpc=installation.grpc)
        record = ServerRecord(
            id=uuid.uuid4().hex[:12],
            role=role,
            installation=installation.name,
            host=chosen.host,
            http=chosen.http,
            grpc=chosen.grpc,
            metrics=chosen.metrics,
            repository=str(repository or layout.models),
            folder=str(layout.root),
            where=here(),
            log=str(layout.logs / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{chosen.http}.log"),
        )
        try:
            with step(f"Start {installation.name} on {record.url}") as starting:
                begun = time.monotonic()
                record = _spawn(layout, installation, record, bound=bound)
                _wait_until_ready(record, options.timeout)
                starting.detail = f"ready after {time.monotonic() - begun:.1f} s"
        except BaseException:
            stop(layout, record)
            raise
        return record


def refuse_second(layout: Layout) -> None:
    """Make sure that no server of ``nox -s serve`` runs.

    Raises:
        BusyError: One does.
    """
    other = running(layout)
    if other:
        raise BusyError(
            f"a server runs already, at {other.url} (process {other.pid})",
            fix="use that one, or end it with `nox -s stop`",
        )


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
    """End a server in order, then remove whatever is left of it.

    An interruption, such as a second Ctrl-C, ends the wait for the server and then the server.
    """
    process = record.process()
    try:
        if process:
            with contextlib.suppress(OSError, psutil.Error):
                write(layout, replace(record, stopping=True))
            with contextlib.suppress(psutil.Error):
                process.terminate()
                process.wait(_EXIT_TIMEOUT_SECONDS + 5)
    finally:
        clear(layout, record)


def command(installation: ServerInstallation, record: ServerRecord) -> list[str]:
    """The server's command line.

    The server polls its repository, so that it takes up what is deployed. The explicit mode would
    do that at once, but lets whoever reaches the port load code of his own. The fault of polling,
    that it may see half of a version, is none where versions come in one step.
    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md
    """
    line = [
        str(installation.program),
        f"--model-repository={_plain_path(record.repository, record.folder)}",
        f"--backend-directory={_plain_path(installation.backends, record.folder)}",
        "--model-control-mode=poll",
        f"--repository-poll-secs={_REPOSITORY_POLL_SECONDS}",
        # One model that loads, or cannot, does not make the others' server unready.
        "--strict-readiness=false",
        "--allow-http=true",
        f"--http-port={record.http}",
        f"--metrics-port={record.metrics}",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={record.shared_memory_prefix}",
    ]
    line += [f"--backend-config={config}" for config in installation.backend_config]
    if installation.grpc:
        line.append(f"--grpc-port={record.grpc}")
    if installation.addresses:
        endpoints = ("http", "metrics", *(("grpc",) if installation.grpc else ()))
        line += [f"--{endpoint}-address={record.host}" for endpoint in endpoints]
    if installation.agents:
        line.append(f"--repoagent-directory={_plain_path(installation.agents, record.folder)}")
    return line


def _plain_path(path: Path | str, folder: str) -> str:
    """A path as seen from the server's folder.

    Triton starts its stubs by a shell, without quoting: a blank in a path would end there.
    """
    return os.path.relpath(path, folder)


def _spawn(
    layout: Layout, installation: ServerInstallation, record: ServerRecord, *, bound: bool
) -> ServerRecord:
    line: Sequence[str] = command(installation, record)
    if bound:
        line = processes.bound_to_us(line, death_signal="TERM")
    log = Path(record.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output, clearing(layout):
        # Recorded before there is a process, so that nothing can start and be forgotten.
        write(layout, record)
        try:
            child = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**installation.variables, MARK: record.id},
                cwd=record.folder,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerStartError(
                f"{line[0]} cannot be run: {error.strerror}",
                fix="delete vendor/environments/serving under the root, then start again",
            ) from None
        started = replace(record, pid=child.pid)
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
        if _is_ready(record.url):
            return
        if _HANGS in log.read_text(errors="replace"):
            raise _start_failure(log, "the server cannot start the Python backend")
        time.sleep(_POLL_SECONDS)
    raise _start_failure(log, f"the server was not ready after {timeout:g} s")


def _is_ready(url: str) -> bool:
    """Ask without a proxy, and hang up: a server that is to end waits for open connections."""
    connection = http.client.HTTPConnection(url, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _start_failure(log: Path, what: str) -> ServerStartError | ModelLoadError:
    text = log.read_text(errors="replace")
    failed = next(filter(None, (pattern.search(text) for pattern in _LOAD_FAILURES)), None)
    if failed:
        model, version = failed["model"], failed["version"]
        named = f"{model} version {version}" if version else model
        reason, _, _ = failed["reason"].partition(r"\n\nAt:")  # a traceback follows
        detail = _CONFIG_ERROR.search(text)
        fix = (
            f"deploy it again (`nox -s deploy -- {model} --force`), or remove its folder from the "
            "model repository"
        )
        if "shared memory" in reason:
            fix = "make room in /dev/shm (`df /dev/shm`), of which every copy of a model takes 1 MB"
        return ModelLoadError(
            f"the server cannot load {named}: {reason.strip()[:500]}",
            cause=detail[1] if detail else "",
            fix=fix,
            log=log,
        )
    return ServerStartError(
        f"{what}; its last words:\n{processes.last_lines(log)}",
        fix="read the log; a missing library or a full /dev/shm (`df /dev/shm`) are the usual "
        "reasons",
        log=log,
    )


def _ports(options: ServeOptions, *, grpc: bool) -> ServeOptions:
    """The options with real ports: given ones are tried, zeros are replaced by free ones.

    A host's name is replaced by its address; a server without gRPC keeps 0 for its port.

    Raises:
        PortInUseError: A given one is taken.
        UsageError: The address is not one of this host's, or two ports are the same.
    """
    wanted = {"http": options.http, "metrics": options.metrics}
    wanted |= {"grpc": options.grpc} if grpc else {}
    if not options.host:  # which would be every address to the kernel
        raise UsageError("the address to listen on is empty", fix="give one, such as 127.0.0.1")
    given = [port for port in wanted.values() if port]
    if len(given) != len(set(given)):
        raise UsageError("two of the ports are the same", fix="give three different ports")
    host, chosen = options.host, {}
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As the server does: a port in TIME_WAIT is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((options.host, port))
                listener.listen(1)
            except (OSError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    raise PortInUseError(
                        f"port {port} ({name}) is taken by {processes.listener(port)}",
                        fix=f"end that process, or give another port (`--{name}-port`; 0 takes a "
                        "free one)",
                    ) from None
                raise UsageError(
                    f"cannot listen on {options.host}:{port}: {error}",
                    fix="give an address of this host and a port from 1024 to 65535",
                ) from None
            # As a number: Triton takes a name without a word for an address that nobody has.
            host, chosen[name] = listener.getsockname()
    return replace(options, host=host, **{"grpc": 0, **chosen})
