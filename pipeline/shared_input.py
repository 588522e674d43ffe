"""Inputs in system shared memory: the server reads them where the client wrote them.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from pipeline.connection import Connection
from provision.errors import RefusedError, SlipwayError, StorageError

_FOLDER = "/dev/shm"  # noqa: S108 - where shm_open(3) puts regions on Linux


@dataclass(frozen=True)
class Region:
    """A region that the server has mapped.

    Attributes:
        name: What the server knows it by.
        memory: The region.
    """

    name: str
    memory: SharedMemory

    def put(self, images: np.ndarray[Any, Any]) -> None:
        """Write the input of the next request, which no other may be using."""
        there = np.ndarray(images.shape, images.dtype, buffer=self.memory.buf)
        there[...] = images


@contextlib.contextmanager
def regions(connection: Connection, count: int, nbytes: int) -> Iterator[queue.SimpleQueue[Region]]:
    """Regions to take from and put back, mapped by the server; gone afterwards on both sides.

    Args:
        connection: To the server, which has to run on this host.
        count: How many.
        nbytes: The size of each.

    Raises:
        StorageError: There is no room for them.
        RefusedError: The server cannot map them.
    """
    if shutil.disk_usage(_FOLDER).free < count * nbytes:  # or the first byte too many kills us
        raise StorageError(
            f"{count} regions of {nbytes / 1e6:.1f} MB do not fit into {_FOLDER}",
            fix=f"make room there (`df {_FOLDER}`), or leave out --shared-memory",
        )
    free: queue.SimpleQueue[Region] = queue.SimpleQueue()
    with contextlib.ExitStack() as held:
        for _ in range(count):
            name = f"slipway-client-{uuid.uuid4().hex[:12]}"
            memory = SharedMemory(name, create=True, size=nbytes)
            held.callback(memory.unlink)
            held.callback(memory.close)
            try:
                connection.register(name, f"/{name}", nbytes)
            except RefusedError as refused:
                refused.fix = (
                    "leave out --shared-memory, unless the server runs on this host and sees its "
                    f"{_FOLDER}"
                )
                raise
            held.callback(_let_go, connection, name)
            free.put(Region(name, memory))
        yield free


def _let_go(connection: Connection, name: str) -> None:
    with contextlib.suppress(SlipwayError):  # a server that is gone has let go
        connection.unregister(name)
