"""The images that a network's ranges are read from, for int8 and fp8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images import read_image
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.verify import Array
from provision.errors import UsageError

_SEED = 20220122
_CROPS = 48
_LEAST_AREA = 0.3
_MOST_IMAGES = 500


def arrays(paths: list[Path], preprocessing: Preprocessing) -> Iterator[Array]:
    """Preprocessed images, fp32, [1, 3, side, side].

    A few photos give many seeded crops, mirrored or not, as training has them; many give each one.

    Raises:
        ImageError: A file is not an image.
    """
    rng = np.random.default_rng(_SEED)
    images = [read_image(path) for path in paths]
    each = max(1, _CROPS // len(images))
    for image in images:
        yield preprocess(image, preprocessing)[None]
        for _ in range(each - 1):
            crop = preprocess(_crop(image, rng), preprocessing)
            yield np.ascontiguousarray((crop[:, :, ::-1] if rng.random() < 1 / 2 else crop)[None])


def folder(path: Path) -> list[Path]:
    """The images of a folder, at most 500 of them, evenly spread.

    Raises:
        UsageError: There are none.
    """
    known = Image.registered_extensions()
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in known) if path.is_dir() else []
    if not found:
        raise UsageError(
            f"{path} is not a folder with images",
            fix="name one: `--calibration FOLDER`, with some hundred photos as the model will see",
        )
    return found[:: max(1, len(found) // _MOST_IMAGES)][:_MOST_IMAGES]


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    share = float(np.sqrt(rng.uniform(_LEAST_AREA, 1)))
    across, down = max(1, int(width * share)), max(1, int(height * share))
    left, top = rng.integers(0, width - across + 1), rng.integers(0, height - down + 1)
    return image.crop((int(left), int(top), int(left) + across, int(top) + down))
