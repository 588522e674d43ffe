"""The sample photos, free to use, out of scikit-image's wheel."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from provision import toml
from provision.errors import HostError

_TABLE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Photo:
    """A photo whose right answer is known.

    Attributes:
        name: What it is called on the command line and in reports.
        path: The image file.
        credit: Title, author and licence.
        accepted: The labels, in upper case, of which any is right as the first answer of a
            network trained on ImageNet; empty where there is no such class.
    """

    name: str
    path: Path
    credit: str
    accepted: tuple[str, ...]


def sample_photos() -> list[Photo]:
    """The photos of ``photos.toml``, in its order.

    scikit-image is not imported, so that nothing it requires has to be installed.

    Raises:
        HostError: scikit-image's wheel, or a photo in it, is missing.
    """
    try:
        wheel = metadata.distribution("scikit-image")
    except metadata.PackageNotFoundError:
        raise _missing("scikit-image, which brings the sample photos, is not installed") from None
    photos = []
    for entry in toml.load(_TABLE)["photo"]:
        path = Path(str(wheel.locate_file(f"skimage/data/{entry['file']}")))
        if not path.is_file():
            raise _missing(f"the sample photo {path} is missing")
        photos.append(Photo(entry["name"], path, entry["credit"], tuple(entry["accepted"])))
    return photos


def _missing(what: str) -> HostError:
    return HostError(
        what,
        cause="this Python is not the pipeline environment, or that one is incomplete",
        fix="python -m pip install --force-reinstall --no-deps scikit-image",
    )
