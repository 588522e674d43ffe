"""Files that are whole or not there: atomic writes, durable trees, swaps and locks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from provision.errors import BusyError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a served configuration has to be readable by the server.
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make a folder and everything below it durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink():  # what a link leads to is not part of the tree
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fsync_folder(Path(parent))


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def fresh_folder(folder: Path) -> None:
    """Make a folder empty and new, whatever a killed run left in its place."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def put_folder(staged: Path, target: Path, *, exchange: bool = True) -> None:
    """Put a staged folder in a target's place; what was there goes to `staged`.

    Where the target exists the two are exchanged by renameat2(2), so that there is no instant at
    which the target is missing. https://man7.org/linux/man-pages/man2/rename.2.html

    Args:
        staged: The folder to put there.
        target: Where to.
        exchange: Whether it has to be in one step. If not, a file system that cannot exchange
            (NFS, say) gets two renames with an instant between them.

    Raises:
        OSError: The two are on different file systems, or the file system cannot exchange.
    """
    if not target.exists():
        staged.rename(target)
    else:
        try:
            _exchange(staged, target)
        except OSError as error:
            if exchange or error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            aside = target.with_name(f".{target.name}.old")
            target.rename(aside)
            staged.rename(target)
            aside.rename(staged)
    fsync_folder(staged.parent)
    fsync_folder(target.parent)


@contextlib.contextmanager
def lock(
    path: Path, *, holder: str, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a file lock; the kernel releases it however the process ends.

    Args:
        path: The lock file, which stays there.
        holder: What this process does, for the message that another one shows.
        waiting: Called once with the present holder's words before waiting for it. Without it a
            taken lock is an error.

    Raises:
        BusyError: The lock is taken, and `waiting` is None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            other = file.read().strip() or "another Slipway process"
            if waiting is None:
                raise BusyError(
                    f"{holder}: {other} is at work already",
                    fix="wait for it to end, then run the same command again",
                ) from None
            waiting(other)
            fcntl.flock(file, fcntl.LOCK_EX)
        # For the message of those who wait; a full disk must not keep a server from being stopped.
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{holder} (process {os.getpid()})".encode())
        yield
