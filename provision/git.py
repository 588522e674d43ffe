"""Git, run as a program: never asking, in English, with its own reason where it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

# A connection over which nothing comes for a minute is given up.
# https://git-scm.com/docs/git-config#Documentation/git-config.txt-httplowSpeedLimit
_STALLED = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")


class GitError(Exception):
    """Git failed; the text is its own reason."""


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
        folder: The repository.
        stdin: What it reads.
        timeout: In seconds.

    Raises:
        GitError: It failed, or did not end in time.
    """
    where = ("-C", str(folder)) if folder else ()
    command = ["git", *_STALLED, *where, *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
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
        raise GitError(complaint(done.stderr))
    return done.stdout


def environment() -> dict[str, str]:
    """The environment for a git of ours: it never asks, and speaks English."""
    return {**os.environ, **variables(), "LC_ALL": "C"}


def complaint(said: str) -> str:
    """Git's own reason, which is not always on its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return (fatal or lines or ["git said nothing"])[0]
