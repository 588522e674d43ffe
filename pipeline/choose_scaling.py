"""Which scaling a model wants: the one that it was trained with, where its manifest says so."""

from __future__ import annotations

from pipeline.image_model import ImageModel
from pipeline.manifest import Manifest
from pipeline.preprocess import Preprocessing
from pipeline.repository import Repository
from pipeline.scaling import Name, Scaler
from provision.errors import RepositoryError
from provision.layout import Layout


def choose(
    layout: Layout, model: ImageModel, version: str, wanted: Name | None, *, fast: bool = False
) -> Scaler:
    """The scaler for a model.

    Args:
        layout: Where models are deployed from.
        model: The model, as it is served.
        version: Its version; empty for the newest that is served.
        wanted: The scaling; None for IMAGENET where the model was deployed from here, and otherwise
            the recipe's NONE.
        fast: Whether to decode JPEGs at a reduced size.

    Raises:
        UsageError: The model cannot take what the scaling makes.
    """
    trained = _trained_with(layout, model, version) if wanted in {None, "IMAGENET"} else None
    name: Name = wanted or ("IMAGENET" if trained else "NONE")
    if name == "IMAGENET" and trained is None and model.image.square:
        trained = Preprocessing.usual(model.image.height)
    return Scaler(name, model.image, trained, fast=fast)


def _trained_with(layout: Layout, model: ImageModel, version: str) -> Preprocessing | None:
    """What the manifest says, if there is one and it is of a model that takes the same."""
    number = version or max(model.versions, key=int, default="")
    if not number.isdecimal():
        return None
    path = Repository(layout).manifest_path(model.name, int(number))
    if not path.is_file():
        return None
    try:
        given = Preprocessing.from_json(Manifest.read(path).preprocessing)
    except RepositoryError:
        return None  # written by another Slipway, for all that is known of it
    return given if given.crop == model.image.height else None
