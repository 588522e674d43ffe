"""What the clients that users start answer, for the smoke test to compare."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from pipeline.build_image_client import program
from pipeline.client import Classification
from pipeline.smoke_result import Prediction
from pipeline.subjects import Subject
from provision.errors import SmokeError
from provision.layout import REPOSITORY, Layout

CPP = "C++"
_TIMEOUT_SECONDS = 120


def ask(
    layout: Layout, url: str, model: str, subject: Subject, *, classes: int
) -> dict[str, list[Classification]]:
    """What each client prints of a photo, by name: Python's, and the C++ one where it is built.

    Raises:
        SmokeError: One failed.
    """
    options = ["-m", model, "-u", url, "-s", "IMAGENET", "-c", str(classes)]
    photo = str(subject.path.absolute())
    command = [sys.executable, "-m", "pipeline", "classify", *options, photo]
    first, *lines, last = _run("Python", command, layout)
    if (first, last) != ("Request 1, batch size 1", "DONE"):
        raise _odd("Python", [first, *lines, last])
    answers = {"Python": _read("Python", lines)}
    cpp = program(layout)
    if cpp.is_file():
        with tempfile.NamedTemporaryFile(suffix=".dat") as file:
            file.write(subject.tensor.astype("<f4").tobytes())
            file.flush()
            command = [str(cpp), "-u", url, "-c", str(classes), model, file.name]
            first, *lines = _run(CPP, command, layout)
            if first != f"Image '{file.name}':":
                raise _odd(CPP, [first, *lines])
        answers[CPP] = _read(CPP, lines)
    return answers


def judge(
    answers: Mapping[str, Sequence[Classification]], expected: Sequence[Prediction], allowed: float
) -> tuple[str, str]:
    """What is wrong with the clients' answers, or nothing; and what was seen.

    Args:
        answers: Of each client, by its name.
        expected: What the server answered before.
        allowed: How much a score may differ.
    """
    worst = 0.0
    for name, found in answers.items():
        ranks = [one.index for one in found]
        if ranks != [best.index for best in expected]:
            return f"the {name} client ranks other classes: {ranks}", ""
        error = max(abs(c.score - best.score) for c, best in zip(found, expected, strict=True))
        if error > allowed:
            return f"the {name} client's scores differ by {error:.1e}", ""
        worst = max(worst, error)
    exact = f"scores within {worst:.1e}" if worst else "scores equal to the last digit"
    missing = "" if CPP in answers else f"; {CPP} is not built (`nox -s build_image_client`)"
    return "", f"{' and '.join(answers)}, {exact}{missing}"


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
