"""Reading facts off programs and files, where what cannot be read is empty."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SECONDS = 20


def output(program: str | Path, *arguments: str, complaints: bool = False) -> str:
    """What a program prints, in English; empty where it cannot be run or does not end.

    Args:
        program: The program.
        arguments: Its arguments.
        complaints: Whether to add what it prints to standard error.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if complaints else subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def text(path: Path) -> str:
    """What a file says."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
