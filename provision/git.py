"""Git, run as a program: never asking, in English, with its own reason where it fails."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from provision import processes
from provision.errors import DownloadError, StorageError

# Repositories may be somebody else's, as in a mirror that was carried here: commits are told by
# their content. A connection over which nothing comes for a minute is given up.
# https://git-scm.com/docs/git-config#Documentation/git-config.txt-httplowSpeedLimit
_SETTINGS = ("safe.directory=*", "http.lowSpeedLimit=1000", "http.lowSpeedTime=60")


_STORAGE = re.compile("No space left on device|Disk quota exceeded|Read-only file system")


class GitError(DownloadError):
    """Git failed; where nobody knows better what that means, this is what is said."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"git failed: {reason}",
            fix="run the same command again; if it fails again, remove transit/mirror",
        )
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def variables(settings: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """Environment variables that give git settings, in this process's children and theirs.

    https://git-scm.com/docs/git-config#Documentation/git-config.txt-GITCONFIGCOUNT (git 2.31)
    """
    given = {"GIT_TERMINAL_PROMPT": "0"}
    pairs = list(settings)
    if pairs:
        given["GIT_CONFIG_COUNT"] = str(len(pairs))
    for n, (key, value) in enumerate(pairs):
        given[f"GIT_CONFIG_KEY_{n}"] = key
        given[f"GIT_CONFIG_VALUE_{n}"] = value
    return given


def git(
    *arguments: str | Path,
    folder: Path | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> str:
    """What git prints to standard output.

    Args:
        arguments: Its arguments.
        folder: The repository: a bare one, or a ``.git``.
        stdin: What it reads.
        timeout: In seconds.

    Raises:
        GitError: It failed, or did not end in time.
        StorageError: There is no space for what it writes, or it may not write.
    """
    try:
        done = subprocess.run(
            command(*arguments, folder=folder),
            env=environment(),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"it did not answer within {timeout:g} s") from None
    if done.returncode != 0:
        raise GitError(reason(done.stderr, folder))
    return done.stdout


def reason(said: str, folder: Path | None) -> str:
    """Why a program that writes for us failed, from its words to standard error.

    Raises:
        StorageError: There was no space for what it writes, or it may not write.
    """
    storage = _STORAGE.search(said)
    if storage:
        raise StorageError(
            f"git cannot write in {folder or 'a folder'}: {storage.group().lower()}",
            fix="free some space there, or point SLIPWAY_ROOT at a folder that has it",
        )
    return complaint(said)


def command(*arguments: str | Path, folder: Path | None = None) -> list[str]:
    """The command line of a git of ours, which ends with this process."""
    # Named, not entered: in a folder that is no repository git would take one further up.
    where = (f"--git-dir={folder}",) if folder else ()
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    return processes.bound_to_us(["git", *settings, *where, *map(str, arguments)])


def environment() -> dict[str, str]:
    """The environment for a git of ours: it never asks, and speaks English."""
    return {**os.environ, **variables(), "LC_ALL": "C"}


def complaint(said: str) -> str:
    """Git's own reason, which is not always on its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return (fatal or lines or ["git said nothing"])[0]
