"""What the clients that users start answer, for the smoke test to compare."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.client import Classification
from provision.errors import SmokeError
from provision.layout import REPOSITORY, Layout

_TIMEOUT_SECONDS = 120


def ask_python(
    layout: Layout, url: str, model: str, photo: Path, *, classes: int
) -> list[Classification]:
    """What the Python client prints of a photo.

    Raises:
        SmokeError: It failed.
    """
    options = ["-m", model, "-u", url, "-s", "IMAGENET", "-c", str(classes)]
    command = [sys.executable, "-m", "pipeline", "classify", *options, str(photo.absolute())]
    first, *lines, last = _run("Python", command, layout)
    if (first, last) != ("Request 1, batch size 1", "DONE"):
        raise _odd("Python", [first, *lines, last])
    return _read("Python", lines)


def ask_cpp(
    program: Path,
    layout: Layout,
    url: str,
    model: str,
    tensor: NDArray[np.float32],
    *,
    classes: int,
) -> list[Classification]:
    """What the C++ client prints of an input.

    Raises:
        SmokeError: It failed.
    """
    with tempfile.NamedTemporaryFile(suffix=".dat") as file:
        file.write(tensor.astype("<f4").tobytes())
        file.flush()
        command = [str(program), "-u", url, "-c", str(classes), model, file.name]
        first, *lines = _run("C++", command, layout)
        if first != f"Image '{file.name}':":
            raise _odd("C++", [first, *lines])
    return _read("C++", lines)


def _run(which: str, command: Sequence[str], layout: Layout) -> list[str]:
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "SLIPWAY_ROOT": str(layout.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SmokeError(
            f"the {which} client cannot be run: {error}", fix="build or install it anew"
        ) from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) < 2:  # noqa: PLR2004 - a heading and a class
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise SmokeError(
            f"the {which} client failed (exit {done.returncode}): {said.removeprefix('error: ')}",
            fix="put right what it names",
        )
    return lines


def _read(which: str, lines: Sequence[str]) -> list[Classification]:
    """Classes from the recipe's lines, ``    SCORE (INDEX) = LABEL``."""
    found = []
    for line in lines:
        score, _, rest = line.strip().partition(" (")
        index, _, label = rest.partition(")")
        try:
            found.append(Classification(float(score), int(index), label.removeprefix(" = ")))
        except ValueError:
            raise _odd(which, lines) from None
    return found


def _odd(which: str, lines: Sequence[str]) -> SmokeError:
    return SmokeError(f"the {which} client printed {lines!r}", fix="report this")
