"""Packages of PyPI that are used for the files in them: pinned by hash, put into a folder by uv."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from uv import find_uv_bin

from provision import processes
from provision.errors import DownloadError, SlipwayError, StorageError

_MIRROR = "set UV_DEFAULT_INDEX to an index that {}, then run the same command again"
# What uv says, why that is, and what to do; the first that matches counts.
_SYMPTOMS: tuple[tuple[str, type[SlipwayError], str, str], ...] = (
    (
        r"os error (1|13|28|30|122)\b",
        StorageError,
        "The root or uv's cache is full, or not ours to write",
        "free some space there, or point SLIPWAY_ROOT and UV_CACHE_DIR at folders that have it",
    ),
    (
        "Hash mismatch",
        DownloadError,
        "It is not what was pinned; a mirror or a proxy may have altered it",
        _MIRROR.format("you trust"),
    ),
    (
        "No solution found",
        DownloadError,
        "The package index lacks it, or a wheel of it for this host",
        _MIRROR.format("has it"),
    ),
)


def put(
    name: str,
    version: str,
    hashes: Iterable[str],
    folder: Path,
    *,
    log: Path,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Put the files of a package's wheel into a folder, and nothing that it requires.

    Args:
        name: The package.
        version: Its version.
        hashes: The SHA-256 of the wheels that may be taken, one for each architecture.
        folder: Where to; it is made.
        log: Where uv's words go.
        on_line: Called with each line of them.

    Raises:
        DownloadError: It cannot be had, or is not what was pinned.
        StorageError: No space, or not ours to write.
    """
    folder.mkdir(parents=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(" ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in hashes)]))
    _put(wanted, folder, f"{name} {version}", log, on_line)
    wanted.unlink()


def put_all(
    requirements: Path,
    folder: Path,
    *,
    log: Path,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Put the files of locked requirements into a folder.

    Args:
        requirements: All of them, each with its hashes.
        folder: Where to; it is made.
        log: Where uv's words go.
        on_line: Called with each line of them.

    Raises:
        DownloadError: One cannot be had, or is not what was locked.
        StorageError: No space, or not ours to write.
    """
    folder.mkdir(parents=True)
    _put(requirements, folder, f"what {requirements.name} lists", log, on_line)


def _put(
    requirements: Path, folder: Path, what: str, log: Path, on_line: Callable[[str], None]
) -> None:
    command = [find_uv_bin(), "pip", "install", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--python", sys.executable, "--target", str(folder)]
    log.unlink(missing_ok=True)
    # Copied, not linked: what happens to a file under the root must not reach uv's cache.
    command += ["--link-mode=copy", "--requirements", str(requirements)]
    code = processes.run_logged(command, log=log, on_line=on_line)
    if code == 0:
        return
    said = " ".join(log.read_text(errors="replace").split())  # uv wraps its lines
    for symptom, kind, cause, fix in _SYMPTOMS:
        if re.search(symptom, said):
            raise kind(f"{what} cannot be had", cause=cause, fix=fix, log=log)
    raise DownloadError(
        f"{what} cannot be had (uv exited with {code}):\n{processes.last_lines(log)}",
        fix=f"check the network, or {_MIRROR.format('this host reaches')}",
        log=log,
    )
