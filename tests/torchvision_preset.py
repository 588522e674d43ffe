"""What torchvision's own preset makes of images, in a process of its own where torchvision is.

Usage: python torchvision_preset.py FOLDER. The folder holds ``cases.json``, a list of objects with
``file`` (an image there, or anywhere by absolute path) and the keys of ``Preprocessing``. It gets
``NUMBER.npy`` for each of them, CHW, float32; the version of Pillow is printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification


def main(folder: Path) -> None:
    """Computes every case of the folder."""
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        preset = ImageClassification(
            resize_size=case["resize"],
            crop_size=case["crop"],
            interpolation=InterpolationMode(case["interpolation"]),
            mean=case["mean"],
            std=case["std"],
        )
        with Image.open(folder / case["file"]) as image:
            np.save(folder / f"{number}.npy", preset(image.convert("RGB")).numpy())
    print(PIL.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
