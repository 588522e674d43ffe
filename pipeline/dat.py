"""A model's input as a file: what the C++ client sends (recipe step 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.images import received
from pipeline.preprocess import Preprocessing
from pipeline.repository import Repository
from pipeline.scaling import COLOUR, ImageInput, Name, Scaler
from provision.console import say
from provision.errors import RepositoryError, StorageError, storage_error
from provision.files import write_atomically
from provision.layout import Layout

_SIDE = 224


@dataclass(frozen=True)
class DatRequest:
    """What to write.

    Attributes:
        image: An image file, or ``-`` for standard input.
        output: The file to write.
        model: A deployed model that it is for; None for the usual parameters.
        scaling: How pixels become values.
        side: Of the input, in pixels; None for the model's, or else 224.
    """

    image: str
    output: Path
    model: str | None = None
    scaling: Name = "IMAGENET"
    side: int | None = None


def write_dat(layout: Layout, request: DatRequest) -> None:
    """Preprocess an image as :mod:`pipeline.classify` does, into a file: fp32, CHW, little-endian.

    The file is the input of one image, with or without a batch dimension, and nothing else.

    Raises:
        RepositoryError: The model is not deployed here.
        ImageError: The image cannot be read.
        StorageError: The file cannot be written.
    """
    given = _preprocessing(layout, request)
    side = given.crop
    scaler = Scaler(
        request.scaling,
        ImageInput(COLOUR, side, side, np.dtype(np.float32)),
        given if request.scaling == "IMAGENET" else None,
    )
    tensor = scaler.read(received(request.image))
    try:
        write_atomically(request.output, tensor.astype("<f4").tobytes())
    except OSError as error:
        raise _unwritten(request.output, error) from None
    size = f"{tensor.nbytes} bytes, fp32 {list(tensor.shape)}, little-endian"
    say(f"{request.output}: {size}; {scaler.describe()}")


def _preprocessing(layout: Layout, request: DatRequest) -> Preprocessing:
    if request.model is None:
        return Preprocessing.usual(request.side or _SIDE)
    manifest = Repository(layout).latest(request.model)
    if manifest is None:
        raise RepositoryError(
            f"{request.model} is not deployed in {layout.models}",
            fix="name a model of `nox -s status`, or leave out -m for the usual parameters",
        )
    return Preprocessing.from_json(manifest.preprocessing)


def _unwritten(path: Path, error: OSError) -> StorageError:
    known = storage_error(error, path)
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        known.what if known else f"cannot write {path}: {reason}", fix="name another file"
    )
