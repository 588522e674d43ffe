"""How a client shows answers: the recipe's lines (step 5), or JSON lines for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from pipeline.client import Classification

Row = Sequence[str]
"""The classes of one image, best first, each as the server's ``score:index:LABEL``."""


@dataclass(frozen=True)
class Answer:
    """What came back for a request.

    Attributes:
        number: Of the request, from 1.
        files: The image files, one each image.
        rows: Their classes.
        fresh: How many of the files no request before had; the others fill the batch.
    """

    number: int
    files: Sequence[str]
    rows: Sequence[Row]
    fresh: int


class Lines:
    """The recipe's output."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def answer(self, answer: Answer) -> None:
        """Print the answer to a request."""
        self._out.write(f"Request {answer.number}, batch size {len(answer.rows)}\n")
        for row in answer.rows:
            self._out.writelines(f"    {line(text)}\n" for text in row)

    def bad(self, file: str, why: str) -> None:
        """The recipe has no line for that; standard error has."""

    def done(self) -> None:
        """Print that all went well."""
        self._out.write("DONE\n")


class JsonLines:
    """An object a line, one for each file."""

    def __init__(self, out: TextIO, about: dict[str, Any]) -> None:
        self._out = out
        self._about = about

    def answer(self, answer: Answer) -> None:
        """Print an object for each file that no request before had."""
        for file, row in list(zip(answer.files, answer.rows, strict=True))[: answer.fresh]:
            classes = [_plain(Classification.parse(text)) for text in row]
            self._print({"file": file, "request": answer.number, **self._about, "classes": classes})

    def bad(self, file: str, why: str) -> None:
        """Print that a file is not an image."""
        self._print({"file": file, "error": why})

    def done(self) -> None:
        """Nothing: each line says all."""

    def _print(self, line: dict[str, Any]) -> None:
        self._out.write(json.dumps(line) + "\n")


def line(text: str) -> str:
    """A class as the recipe prints it, with the digits that the server sent."""
    score, index, *label = text.split(":", 2)
    return f"{score} ({index})" + (f" = {label[0]}" if label else "")


def _plain(found: Classification) -> dict[str, Any]:
    # JSON has neither NaN nor infinity.
    score = found.score if math.isfinite(found.score) else None
    return {"score": score, "index": found.index, "label": found.label}
