"""The photos that the smoke test sends: the samples with their references, then the user's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import read_image
from pipeline.manifest import Manifest
from pipeline.photos import sample_photos
from pipeline.preprocess import Preprocessing, preprocess
from provision.errors import RepositoryError
from provision.files import sha256

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A photo of the user's, read.

    Attributes:
        path: Its file.
        image: RGB.
        expected: The label it must get; empty where any will do.
    """

    path: Path
    image: Image.Image
    expected: str


@dataclass(frozen=True)
class Subject:
    """A photo to send.

    Attributes:
        name: What it is called, unlike any other.
        path: Its file.
        credit: Whose it is.
        accepted: The labels of which any is right, in upper case; empty where any will do.
        tensor: The preprocessed image, fp32, [3, side, side].
        reference: PyTorch's logits for it, fp32, [classes]; None where there are none.
    """

    name: str
    path: Path
    credit: str
    accepted: tuple[str, ...]
    tensor: Array
    reference: Array | None


def gather(
    models: Path,
    manifest: Manifest | None,
    preprocessing: Preprocessing,
    pictures: Sequence[Picture],
) -> list[Subject]:
    """The sample photos and the user's, preprocessed.

    Args:
        models: The model repository that the manifest is from.
        manifest: Of the version under test; without it nothing is known of the right answers.
        preprocessing: What the model was trained with.
        pictures: The user's.

    Raises:
        RepositoryError: The references are not there.
    """
    references = _references(models, manifest) if manifest else {}
    subjects = []
    for photo in sample_photos():
        known = manifest is not None and manifest.photos.get(photo.name) == sha256(photo.path)
        subjects.append(
            Subject(
                name=photo.name,
                path=photo.path,
                credit=photo.credit,
                accepted=photo.accepted if manifest and manifest.pretrained else (),
                tensor=preprocess(read_image(photo.path), preprocessing),
                reference=references.get(photo.name) if known else None,
            )
        )
    for picture in pictures:
        stem = picture.path.stem
        taken = {subject.name for subject in subjects}
        names = itertools.chain([stem], (f"{stem} {n}" for n in itertools.count(2)))
        subjects.append(
            Subject(
                name=next(name for name in names if name not in taken),
                path=picture.path,
                credit="",
                accepted=(picture.expected.upper(),) if picture.expected else (),
                tensor=preprocess(picture.image, preprocessing),
                reference=None,
            )
        )
    return subjects


def _references(models: Path, manifest: Manifest) -> dict[str, Array]:
    path = models / manifest.model / str(manifest.version) / "reference.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RepositoryError(
            f"{path} cannot be read: {error}", fix=f"deploy again: `{manifest.redeploy}`"
        ) from None
