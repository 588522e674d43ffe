"""From files to the batches that requests hold; how the last is filled is the recipe's (step 5)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.images import Source
from pipeline.scaling import Scaler, Tensor
from provision.errors import ImageError


@dataclass(frozen=True)
class Picture:
    """A file that is an image.

    Attributes:
        file: Its path.
        tensor: The model's input for it.
    """

    file: str
    tensor: Tensor


@dataclass(frozen=True)
class Bad:
    """A file that is none.

    Attributes:
        file: Its path.
        error: Why.
    """

    file: str
    error: ImageError


Decoded: TypeAlias = "Picture | Bad"


@dataclass(frozen=True)
class Batch:
    """The input of a request.

    Attributes:
        number: Of the request, from 1.
        images: As many as a request holds.
        fresh: How many of them no request before had.
    """

    number: int
    images: Sequence[Picture]
    fresh: int


def decode(scaler: Scaler, source: Source) -> Decoded:
    """Read a file into a model's input, if it is an image."""
    try:
        return Picture(str(source), scaler.read(source))
    except ImageError as error:
        return Bad(str(source), error)


def batches(images: Iterable[Picture], size: int) -> Iterator[Batch]:
    """The requests that images make.

    The last is filled with the first images again, as in the recipe.

    Args:
        images: The images.
        size: How many a request holds.
    """
    first: list[Picture] = []
    rest = iter(images)
    for number in itertools.count(1):
        batch = list(itertools.islice(rest, size))
        if not batch:
            return
        first = first or batch
        again = itertools.islice(itertools.cycle(first), size - len(batch))
        yield Batch(number, [*batch, *again], len(batch))
