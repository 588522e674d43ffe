"""The servers that we started: what is written down of each, and clearing up after crashed ones.

Every server carries a mark in its environment, which its stubs inherit, and a prefix of its own
for shared memory; so what a crash left behind can be told from everybody else's.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from provision import processes
from provision.console import say
from provision.files import lock, write_atomically
from provision.layout import Layout

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - for users who ask for it
MARK = "SLIPWAY_SERVER"
"""The environment variable that our servers and their stubs carry, with the record's id."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where shm_open(3) puts regions on Linux


@dataclass(frozen=True)
class ServerRecord:
    """A server that we started, as it is written under ``run/servers/``.

    Attributes:
        id: The mark that its processes and shared memory carry.
        role: "serve", or "temporary" for one that ends with the job that started it.
        installation: Which Triton it is.
        host: Where it listens.
        http: Its HTTP port.
        grpc: Its gRPC port; 0 for a server without one.
        metrics: Its metrics port.
        repository: The model repository that it serves.
        log: Its log file.
        folder: Where it runs; it knows its files by their paths from there.
        where: The host and process namespace that its process id belongs to, since a root may be
            shared.
        pid: Its process id; 0 before it has one.
        stopping: Whether it was asked to end.
    """

    id: str
    role: str
    installation: str
    host: str
    http: int
    grpc: int
    metrics: int
    repository: str
    log: str
    folder: str
    where: str
    pid: int = 0
    stopping: bool = False

    @property
    def url(self) -> str:
        """``HOST:PORT`` for HTTP clients on this host."""
        host = LOOPBACK if self.host == EVERYWHERE else self.host
        return f"{host}:{self.http}"

    @property
    def shared_memory_prefix(self) -> str:
        """What the names of its shared-memory regions begin with."""
        return f"slipway_{self.id}_"

    def process(self) -> psutil.Process | None:
        """The server's process, if it runs here.

        A process id comes again, so it is the mark that tells; a time of creation would change
        with the clock.
        """
        with contextlib.suppress(psutil.Error):
            if self.pid and self.where == here():
                process = psutil.Process(self.pid)
                alive = process.status() != psutil.STATUS_ZOMBIE
                variables = process.environ()
                # It has none for an instant: when setpriv becomes the server.
                if alive and variables.get(MARK, "" if variables else self.id) == self.id:
                    return process
        return None


def here() -> str:
    """This host and process namespace: what a process id means something in."""
    return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"


def records(layout: Layout) -> list[ServerRecord]:
    """Every server that we started and have not cleared up after."""
    found = []
    for path in sorted(_record_path(layout, "*").parent.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(ServerRecord(**json.loads(path.read_text())))
    return found


def running(layout: Layout) -> ServerRecord | None:
    """The server of ``nox -s serve``, if it runs."""
    return next((r for r in records(layout) if r.role == "serve" and r.process()), None)


def awaited(layout: Layout) -> ServerRecord | None:
    """The server of ``nox -s serve``, waited for while it starts."""
    with in_turn(layout, "serve"):
        return running(layout)


@contextlib.contextmanager
def in_turn(layout: Layout, role: str) -> Iterator[None]:
    """Keep other starts in this role out, and wait for one that is under way."""
    with lock(
        layout.run / f"{role}.lock",
        holder="the start of a server",
        waiting=lambda other: say(f"waiting for {other} to end"),
    ):
        yield


def clear_leftovers(layout: Layout) -> list[ServerRecord]:
    """Remove what crashed servers of ours left: stubs, shared memory, records; and only those."""
    with clearing(layout):
        ours = [record for record in records(layout) if record.where == here()]
        dead = [record for record in ours if not record.process()]
        for record in dead:
            clear(layout, record)
        return dead


@contextlib.contextmanager
def clearing(layout: Layout) -> Iterator[None]:
    """Keep others from clearing up: between its record and its process a server seems dead."""
    with lock(layout.run / "servers.lock", holder="clear up", waiting=lambda _: None):
        yield


def clear(layout: Layout, record: ServerRecord) -> None:
    """Remove the processes, shared memory and record of a server that has ended."""
    processes.kill_marked(MARK, record.id)
    for region in _SHARED_MEMORY.glob(f"{record.shared_memory_prefix}*"):
        region.unlink(missing_ok=True)
    _record_path(layout, record.id).unlink(missing_ok=True)


def write(layout: Layout, record: ServerRecord) -> None:
    """Write a record down."""
    write_atomically(_record_path(layout, record.id), json.dumps(asdict(record), indent=2))


def _record_path(layout: Layout, name: str) -> Path:
    return layout.run / "servers" / f"{name}.json"
