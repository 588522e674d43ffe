"""Ending what runs in other threads: by itself a thread goes on until it has ended its work."""

from __future__ import annotations

import contextlib
import threading

import psutil

from provision.errors import InterruptedByUser

_asked = threading.Event()


def ask() -> None:
    """Have the threads end at their next :func:`check`, and end the programs that they wait for."""
    _asked.set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            child.terminate()


def check() -> None:
    """Go on, unless this process was asked to end.

    Raises:
        InterruptedByUser: It was.
    """
    if _asked.is_set():
        raise InterruptedByUser("interrupted", fix="run the same command again to go on")
