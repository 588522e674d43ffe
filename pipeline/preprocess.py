"""From an image to the tensor that a torchvision classifier was trained on, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from provision.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
"""The values of torchvision's InterpolationMode, and what they mean for PIL images."""

INTERMEDIATE_LIMIT = 1 << 26
"""The most pixels that an image may be enlarged to, 256 MiB at Pillow's 4 bytes a pixel.

At a resize to 256 this is an aspect ratio of 1024.
"""

_REACH = 4  # in source pixels: the widest filter, Lanczos, has 3 to each side
_CHANNELS = 3
_HUGE = 1e30  # fp32 holds this and its inverse


@dataclass(frozen=True)
class Preprocessing:
    """The parameters of torchvision's ``ImageClassification`` preset.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the centre crop, in pixels.
        interpolation: One of :data:`FILTERS`.
        mean: What is subtracted from each channel, R, G, B, of a range from 0 to 1.
        std: What each channel is then divided by.

    Raises:
        ConfigError: A value is of the wrong type or out of its range.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise _wrong(name, value, "a whole number of pixels from 1")
        if self.interpolation not in FILTERS:
            raise _wrong("interpolation", self.interpolation, f"one of {', '.join(FILTERS)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != _CHANNELS or not all(
                isinstance(v, (int, float)) and abs(v) < _HUGE for v in values
            ):
                raise _wrong(name, values, "three numbers")
        if min(self.std) < 1 / _HUGE:
            raise _wrong("std", self.std, "three numbers greater than 0")

    def to_json(self) -> dict[str, Any]:
        """The parameters as plain data."""
        return {
            "resize": self.resize,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def usual(cls, side: int = 224) -> Preprocessing:
        """What nearly every classifier was trained with, at the size that it takes.

        Args:
            side: Of the network's square input, in pixels.
        """
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return cls(round(side * 256 / 224), side, "bilinear", mean, std)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: A key is missing or unknown, or a value is wrong.
        """
        expected = [field.name for field in fields(cls)]
        if sorted(data) != sorted(expected):
            raise _wrong("preprocessing", sorted(data), f"the keys {', '.join(expected)}")
        for name in ("mean", "std"):
            if not isinstance(data[name], (list, tuple)):
                raise _wrong(name, data[name], "three numbers")
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def _wrong(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"{name} is {value!r} and has to be {expected}",
        cause="the preprocessing was edited by hand, or written by another version",
        fix="export the model again",
    )


def preprocess(image: Image.Image, spec: Preprocessing) -> NDArray[np.float32]:
    """Turns an image into what the network expects.

    The shorter side is resized to `spec.resize`, the centre square of `spec.crop` is cut out,
    with black where the image is smaller, and the values are scaled to 0 to 1 and normalised in
    fp32 (``torchvision.transforms._presets.ImageClassification`` on a PIL image).

    The result is torchvision's bit for bit where both run the same Pillow (Pillow 13 resizes
    tall images in another order than 12, which shows). Only of an extremely long image, beyond
    :data:`INTERMEDIATE_LIMIT`, no more is resized than the crop sees, and a few pixels may differ:
    by one grey level, ``1 / 255 / std``, with bilinear and hamming, by two with bicubic and
    Lanczos; nearest and box may take the source pixel next to it.

    Args:
        image: An RGB image, as from :func:`pipeline.images.read_image`.
        spec: The parameters of the network's preset.

    Returns:
        An array CHW, (3, crop, crop), float32, C-contiguous, without unit.

    Raises:
        ValueError: The image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"preprocess takes RGB images, not {image.mode}")
    return _normalise(np.asarray(_resized_crop(image, spec)), spec)


def batch(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Joins preprocessed images of one shape, CHW, into an array NCHW, C-contiguous.

    Raises:
        ValueError: There are none, or their shapes differ.
    """
    return np.stack(images)


def _normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """HWC, uint8, to CHW, float32; each operation rounds, so their order is torchvision's."""
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    values /= np.float32(255)
    values -= np.array(spec.mean, np.float32).reshape(-1, 1, 1)
    values /= np.array(spec.std, np.float32).reshape(-1, 1, 1)
    return values


def _resized_crop(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The centre crop of the resized image, (crop, crop) pixels."""
    short, long = sorted(image.size)
    new_long = int(spec.resize * long / short)
    wide = image.width > image.height
    width, height = (new_long, spec.resize) if wide else (spec.resize, new_long)
    left, top = _offset(width, spec.crop), _offset(height, spec.crop)
    # An image that shrinks has proved that it fits. And the order in which Pillow resizes the axes
    # is known for enlarging alone: rows first.
    if width * height <= max(INTERMEDIATE_LIMIT, short * long):
        resized = image.resize((width, height), FILTERS[spec.interpolation])
    elif wide:
        resized = _strip(image, (width, height), 0, spec)
        left = min(left, 0)
    else:
        resized = _strip(image, (width, height), 1, spec)
        top = min(top, 0)
    return resized.crop((left, top, left + spec.crop, top + spec.crop))


def _offset(extent: int, crop: int) -> int:
    """Where a centre crop begins, negative where it has to be padded (both as torchvision)."""
    return round((extent - crop) / 2) if extent >= crop else -((crop - extent) // 2)


def _strip(
    image: Image.Image, size: tuple[int, int], axis: int, spec: Preprocessing
) -> Image.Image:
    """The part of the enlarged image that the crop sees along one axis (0: x, 1: y).

    Only the source pixels that reach it are touched. Its position is given to Pillow as float32,
    which is where the result may deviate; cutting the source first keeps the numbers small.
    """
    start = max(_offset(size[axis], spec.crop), 0)
    stop = min(start + spec.crop, size[axis])
    scale = image.size[axis] / size[axis]
    low = max(math.floor(start * scale) - _REACH, 0)
    high = min(math.ceil(stop * scale) + _REACH, image.size[axis])
    ends = (start * scale - low, min(stop * scale, high) - low)
    kind = FILTERS[spec.interpolation]
    # In two steps, rows first: of a small target Pillow might do the columns first.
    if axis == 0:
        cut = image.crop((low, 0, high, image.height))
        rows = cut.resize((stop - start, cut.height), kind, (ends[0], 0, ends[1], cut.height))
        return rows.resize((rows.width, size[1]), kind)
    cut = image.crop((0, low, image.width, high))
    rows = cut.resize((size[0], cut.height), kind)
    return rows.resize((size[0], stop - start), kind, (0, ends[0], size[0], ends[1]))
