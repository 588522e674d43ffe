"""Pixels to values: bit for bit what Triton's client sends, and what torchvision trains with."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import Received, read_as_stored, read_image
from pipeline.photos import sample_photos
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.scaling import NAMES, ImageInput, Name, Scaler
from provision.errors import ImageError, UsageError

RESNET = ImageInput(3, 224, 224, np.dtype(np.float32))
SMALL = ImageInput(3, 12, 9, np.dtype(np.float32))
ORIENTATION = 0x0112
# What undoes each EXIF orientation (EXIF 2.32) as Pillow's own ImageOps does it.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]


def picture(
    size: tuple[int, int], mode: str, *, orientation: int = 1, seed: int = 0
) -> tuple[Image.Image, Received]:
    """Noise of a mode, and a file of it that loses nothing."""
    width, height = size
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = image.convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image.save(file, kind, exif=exif)
    return image, Received(f"{mode}.{kind}", file.getvalue())


def tritons(image: Image.Image, target: ImageInput, scaling: Name) -> NDArray[Any]:
    """What Triton's client makes of an opened image, step by step, each in the model's dtype."""
    size = (target.width, target.height)
    grey = target.channels == 1
    small = image.convert("L" if grey else "RGB").resize(size, Image.Resampling.BILINEAR)
    values: NDArray[Any] = np.array(small).astype(target.dtype)
    values = values.reshape(target.height, target.width, target.channels)
    if scaling == "INCEPTION":
        values = values / 127.5 - 1
    if scaling == "VGG":
        values = values - np.array([128] if grey else [123, 117, 104], target.dtype)
    return values if target.channels_last else values.transpose(2, 0, 1)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    mode=st.sampled_from(MODES),
    orientation=st.integers(1, 8),
    channels=st.sampled_from([1, 3]),
    channels_last=st.booleans(),
    dtype=st.sampled_from(["<f2", "<f4", "<f8"]),
    scaling=st.sampled_from(NAMES[:3]),
)
def test_the_recipes_scalings_are_those_of_tritons_client(
    size: tuple[int, int],
    mode: str,
    orientation: int,
    channels: int,
    channels_last: bool,  # noqa: FBT001 - hypothesis gives it by name
    dtype: str,
    scaling: Name,
) -> None:
    target = ImageInput(channels, 12, 9, np.dtype(dtype), channels_last=channels_last)
    _, file = picture(size, mode, orientation=orientation)
    # It does not look at the orientation either.
    with Image.open(io.BytesIO(file.data)) as opened:
        expected = tritons(opened, target, scaling)
    tensor = Scaler(scaling, target).read(file)
    assert (tensor.shape, tensor.dtype) == (target.shape, target.dtype)
    assert tensor.flags.c_contiguous
    assert np.array_equal(tensor, expected)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    mode=st.sampled_from(MODES[:-1]),
    orientation=st.integers(1, 8),
    channels_last=st.booleans(),
)
def test_imagenet_is_the_preset_of_the_upright_image(
    size: tuple[int, int],
    mode: str,
    orientation: int,
    channels_last: bool,  # noqa: FBT001 - hypothesis gives it by name
) -> None:
    spec = Preprocessing.usual(28)
    image, file = picture(size, mode, orientation=orientation)
    upright = image.convert("RGB")
    if orientation in TURNS:
        upright = upright.transpose(TURNS[orientation])
    target = ImageInput(3, 28, 28, np.dtype(np.float32), channels_last=channels_last)
    tensor = Scaler("IMAGENET", target, spec).read(file)
    expected = preprocess(upright, spec)
    assert tensor.shape == target.shape
    assert np.array_equal(tensor, expected.transpose(1, 2, 0) if channels_last else expected)


@pytest.mark.parametrize("scaling", NAMES[:3])
def test_photos_too_are_those_of_tritons_client(scaling: Name) -> None:
    for photo in sample_photos():
        with Image.open(photo.path) as opened:
            expected = tritons(opened, RESNET, scaling)
        assert np.array_equal(Scaler(scaling, RESNET).read(photo.path), expected)


@pytest.mark.parametrize(
    ("scaling", "dtype"),
    [
        *[("INCEPTION", kind) for kind in ("u1", "i4")],
        *[("IMAGENET", kind) for kind in ("u1", "i8")],
        *[("VGG", kind) for kind in ("u1", "i1", "u2")],
    ],
)
def test_numbers_that_a_model_cannot_take_are_refused(scaling: Name, dtype: str) -> None:
    target = replace(RESNET, dtype=np.dtype(dtype))
    with pytest.raises(UsageError, match=f"cannot hold what {scaling} makes"):
        Scaler(scaling, target, Preprocessing.usual() if scaling == "IMAGENET" else None)


def test_whole_numbers_for_models_that_take_them() -> None:
    image, file = picture((30, 20), "RGB")
    target = replace(SMALL, dtype=np.dtype(np.uint8))
    assert np.array_equal(Scaler("NONE", target).read(file), tritons(image, target, "NONE"))
    target = replace(SMALL, dtype=np.dtype(np.int16))
    assert np.array_equal(Scaler("VGG", target).read(file), tritons(image, target, "VGG"))


def test_imagenet_makes_colour_squares() -> None:
    for target in (SMALL, replace(RESNET, channels=1)):
        with pytest.raises(UsageError, match="and IMAGENET makes squares of 3"):
            Scaler("IMAGENET", target, Preprocessing.usual())


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((1024, 768), (512, 384)),  # a quarter would be 256 x 192, less than the model takes
        ((3000, 2000), (375, 250)),
        ((4000, 3000), (500, 375)),
        ((447, 447), (447, 447)),
    ],
)
def test_a_fast_decode_reads_no_fewer_pixels_than_the_model_takes(
    size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    source = Received("gradient.jpg", file.getvalue())
    assert read_as_stored(source, "RGB", reduced_to=224).size == decoded
    assert read_image(source, reduced_to=224).size == decoded
    for scaling in NAMES:
        spec = Preprocessing.usual() if scaling == "IMAGENET" else None
        whole = Scaler(scaling, RESNET, spec).read(source)
        fast = Scaler(scaling, RESNET, spec, fast=True).read(source)
        spread = float(whole.max() - whole.min())
        assert float(np.abs(whole - fast).max()) < 0.02 * spread


def test_what_is_no_jpeg_is_decoded_in_full() -> None:
    _, file = picture((1000, 800), "RGB")
    whole, fast = (Scaler("VGG", RESNET, fast=fast).read(file) for fast in (False, True))
    assert np.array_equal(whole, fast)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    with pytest.raises(ImageError, match=f"{text} is not an image"):
        Scaler("VGG", RESNET).read(text)
    with pytest.raises(ImageError, match="standard input is empty"):
        Scaler("VGG", RESNET).read(Received("standard input", b""))
