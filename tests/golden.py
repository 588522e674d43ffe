"""Images on which every client has to agree: noise of awkward sizes and modes, and the photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.photos import sample_photos

_NOISE = [
    *[((1, 1), "RGB", "png"), ((7, 1), "L", "png"), ((3, 200), "RGB", "png")],
    *[((500, 17), "P", "png"), ((223, 225), "RGBA", "png"), ((97, 61), "LA", "png")],
    *[((61, 97), "1", "png"), ((341, 256), "CMYK", "tiff"), ((640, 481), "RGB", "jpg")],
    ((1024, 768), "RGB", "jpg"),
]


def golden_images(folder: Path) -> list[Path]:
    """Write the images into a folder, which is made; they are returned in their names' order."""
    folder.mkdir()
    for seed, ((width, height), mode, kind) in enumerate(_NOISE):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        name = f"noise-{width}x{height}-{mode}.{kind}"
        Image.fromarray(pixels).convert(mode).save(folder / name)
    for photo in sample_photos():
        shutil.copy(photo.path, folder / f"{photo.name}{photo.path.suffix}")
    return sorted(folder.iterdir())
