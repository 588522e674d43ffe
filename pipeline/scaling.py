"""From an image file to a model's input: the four ways of scaling pixels (recipe step 5).

NONE, INCEPTION and VGG are bit for bit what Triton's own image client makes of a file; IMAGENET is
what torchvision's classifiers were trained with, :mod:`pipeline.preprocess`.
https://github.com/triton-inference-server/client/blob/main/src/python/examples/image_client.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import Source, read_as_stored, read_image
from pipeline.preprocess import Preprocessing, preprocess
from provision.errors import UsageError

Tensor: TypeAlias = NDArray[Any]
Name: TypeAlias = Literal["NONE", "INCEPTION", "VGG", "IMAGENET"]
NAMES: tuple[Name, ...] = get_args(Name)
GREY, COLOUR = 1, 3

_VGG_MEAN = {GREY: (128,), COLOUR: (123, 117, 104)}
_SIGNED_BYTES = 2  # the fewest that hold what VGG subtracts from


@dataclass(frozen=True)
class ImageInput:
    """What a model takes for one image.

    Attributes:
        channels: 1 for grey, 3 for R, G, B.
        height: In pixels.
        width: In pixels.
        dtype: Of each value.
        channels_last: Whether it is HWC, and not CHW.
    """

    channels: int
    height: int
    width: int
    dtype: np.dtype[Any]
    channels_last: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the tensor."""
        if self.channels_last:
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width

    @property
    def square(self) -> bool:
        """Whether it is as high as wide."""
        return self.height == self.width

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return self.channels * self.height * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class Scaler:
    """Makes a model's input of image files.

    Attributes:
        name: Which scaling.
        target: What the model takes.
        preprocessing: The parameters of IMAGENET; None for the others.
        fast: Whether JPEGs are decoded at the smallest size of an eighth, a quarter or a half that
            is not below the target's, which changes pixels slightly.

    Raises:
        UsageError: The model cannot take what the scaling makes.
    """

    name: Name
    target: ImageInput
    preprocessing: Preprocessing | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        target, kind = self.target, self.target.dtype.kind
        fits = kind == "f"
        if self.name == "NONE":
            fits = kind in "fiu"
        elif self.name == "VGG":
            fits |= kind == "i" and target.dtype.itemsize >= _SIGNED_BYTES
        if not fits:
            raise UsageError(
                f"the model takes {target.dtype}, which cannot hold what {self.name} makes",
                fix="choose another scaling: `-s NONE` gives whole numbers from 0 to 255",
            )
        if self.name != "IMAGENET":
            return
        if target.channels != COLOUR or not target.square:
            raise UsageError(
                f"the model takes {target.width}x{target.height} pixels of {target.channels} "
                "channels, and IMAGENET makes squares of 3",
                fix=f"choose one of the other scalings: {', '.join(NAMES[:-1])}",
            )
        if self.preprocessing is None or self.preprocessing.crop != target.height:
            raise ValueError("IMAGENET takes parameters that crop to the target")

    def read(self, source: Source) -> Tensor:
        """The tensor of an image file, C-contiguous, in the target's shape and dtype.

        Raises:
            ImageError: It is not an image that can be read.
        """
        target = self.target
        if self.preprocessing:
            short = self.preprocessing.resize
            image = read_image(source, reduced_to=max(short, target.height) if self.fast else 0)
            tensor: Tensor = preprocess(image, self.preprocessing)
            if target.channels_last:
                tensor = tensor.transpose(1, 2, 0)
            return np.ascontiguousarray(tensor, target.dtype)
        reduced_to = max(target.width, target.height) if self.fast else 0
        mode = "L" if target.channels == GREY else "RGB"
        image = read_as_stored(source, mode, reduced_to=reduced_to)
        return self.scale(image)

    def scale(self, image: Image.Image) -> Tensor:
        """The tensor of an image of the target's channels, for the scalings of Triton's client."""
        target = self.target
        resized = image.resize((target.width, target.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized).reshape(target.height, target.width, target.channels)
        if not target.channels_last:
            pixels = pixels.transpose(2, 0, 1)
        # In this order, each step rounded to the model's dtype, or the last bits are others.
        values: Tensor = pixels.astype(target.dtype, order="C")
        if self.name == "INCEPTION":
            values /= 127.5
            values -= 1
        elif self.name == "VGG":
            mean = np.asarray(_VGG_MEAN[target.channels], target.dtype)
            values -= mean if target.channels_last else mean.reshape(-1, 1, 1)
        return values

    def describe(self) -> str:
        """What is done to an image, in words."""
        given = self.preprocessing
        if given is None:
            return f"{self.name}: resized to {self.target.width}x{self.target.height}"
        return (
            f"{self.name}: shorter side {given.resize}, {given.interpolation}, "
            f"centre {given.crop}, mean {given.mean}, std {given.std}"
        )
