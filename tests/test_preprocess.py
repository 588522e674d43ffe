"""From images to tensors: torchvision's preset, bit for bit, and never gigabytes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import preprocess as module
from pipeline.images import read_image
from pipeline.photos import sample_photos
from pipeline.preprocess import FILTERS, Preprocessing, batch, preprocess
from provision.errors import ConfigError
from provision.layout import REPOSITORY

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUEEZENET = Preprocessing(256, 224, "bilinear", MEAN, STD)
RESNET50 = replace(SQUEEZENET, resize=232)
SWIN = replace(SQUEEZENET, resize=246, interpolation="bicubic")
GREY_LEVELS = Preprocessing(256, 224, "bilinear", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
FIXTURES = REPOSITORY.parent / "shared" / "fixtures"

SIZES = [
    *[(1, 1), (1, 7), (7, 1), (2, 3), (17, 500), (500, 17), (3, 200), (200, 3)],
    *[(223, 224), (224, 224), (225, 223), (256, 256), (255, 257), (341, 256), (640, 481)],
    *[(1000, 333), (333, 1000), (301, 999), (400, 1600), (1600, 1200)],
]
SPECS = [
    *[SQUEEZENET, RESNET50, SWIN],
    replace(SWIN, resize=384, crop=384),
    replace(SQUEEZENET, resize=64, crop=100),  # black around it, evenly
    replace(SQUEEZENET, resize=65, crop=100),  # and not
    replace(SQUEEZENET, resize=65, crop=64),  # rounds half to even
    replace(SQUEEZENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    *[replace(SQUEEZENET, interpolation=name) for name in FILTERS],
]


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random pixels: nothing is as hard on a filter."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.export
def test_equals_torchvision_bit_for_bit(export_python: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, Preprocessing]] = []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{size[0]}x{size[1]}.png"
        noise(size, seed=number).save(path)
        cases += [(path, spec) for spec in SPECS]
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "LAB"):
        path = tmp_path / f"{mode}.tiff"
        if mode == "LAB":
            Image.frombytes("LAB", (97, 61), noise((97, 61)).tobytes()).save(path)
        else:
            noise((97, 61), mode).save(path)
        cases.append((path, SQUEEZENET))
    photos = [photo.path for photo in sample_photos()] + list(FIXTURES.glob("*.jpg"))
    cases += [(path, spec) for path in photos for spec in (SQUEEZENET, RESNET50, SWIN)]
    described = [{"file": str(path), **spec.to_json()} for path, spec in cases]
    (tmp_path / "cases.json").write_text(json.dumps(described))

    script = Path(__file__).with_name("torchvision_preset.py")
    result = subprocess.run(
        [export_python, script, tmp_path], check=True, capture_output=True, text=True
    )

    same_pillow = result.stdout.strip() == PIL.__version__
    for number, (path, spec) in enumerate(cases):
        image = read_image(path)
        if image.height > image.width and not same_pillow:
            continue  # Pillow 13 resizes some of these in another order than 12
        theirs = np.load(tmp_path / f"{number}.npy")
        ours = preprocess(image, spec)
        assert ours.shape == theirs.shape, (path, spec)
        assert ours.dtype == theirs.dtype == np.float32
        assert np.abs(ours - theirs).max() == 0.0, (path, spec)


def test_a_fixture_becomes_an_input_of_the_network() -> None:
    path = FIXTURES / "mug.jpg"
    if not path.is_file():
        pytest.skip(f"{FIXTURES} is absent: the photos are not part of the clone")
    tensor = preprocess(read_image(path), SQUEEZENET)
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous


def test_values_are_scaled_then_normalised_in_float32() -> None:
    tensor = preprocess(Image.new("RGB", (300, 300), (255, 0, 51)), SQUEEZENET)
    red, green, blue = tensor[:, 100, 100]
    assert red == (np.float32(1) - np.float32(0.485)) / np.float32(0.229)
    assert green == -np.float32(0.456) / np.float32(0.224)
    assert blue == (np.float32(51) / np.float32(255) - np.float32(0.406)) / np.float32(0.225)


def test_the_centre_is_what_remains_of_a_wide_image() -> None:
    image = Image.new("RGB", (768, 256), "black")
    image.paste((255, 255, 255), (256, 0, 512, 256))
    assert preprocess(image, GREY_LEVELS).min() > 254


def test_a_crop_larger_than_the_image_is_surrounded_by_black() -> None:
    spec = replace(GREY_LEVELS, resize=4, crop=7)
    levels = preprocess(Image.new("RGB", (4, 4), "white"), spec)[0]
    assert np.rint(levels[:, 3]).tolist() == [0, 255, 255, 255, 255, 0, 0]
    assert np.rint(levels[3]).tolist() == [0, 255, 255, 255, 255, 0, 0]


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resize=st.integers(1, 64),
    crop=st.integers(1, 64),
    interpolation=st.sampled_from(list(FILTERS)),
)
def test_any_size_becomes_the_shape_that_the_network_expects(
    size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    tensor = preprocess(noise(size), Preprocessing(resize, crop, interpolation, MEAN, STD))
    assert tensor.shape == (3, crop, crop)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert np.isfinite(tensor).all()


PEAK = """
import sys
from PIL import Image
from pipeline.preprocess import Preprocessing, preprocess
size = int(sys.argv[1]), int(sys.argv[2])
spec = Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
assert preprocess(Image.new("RGB", size, "white"), spec).min() == 1
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (10_000_000, 1), (1, 1)])
def test_an_extreme_shape_takes_no_more_memory_than_a_photo(size: tuple[int, int]) -> None:
    command = [sys.executable, "-c", PEAK, *map(str, size)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert int(result.stdout) < 300_000, "kB; resized in full, 20000 x 1 would take 5 GB"


def differences(image: Image.Image, spec: Preprocessing) -> NDArray[Any]:
    """In grey levels, between an image resized in full and where the crop sees it."""
    whole = np.rint(preprocess(image, spec)).astype(np.int64)
    with mock.patch.object(module, "INTERMEDIATE_LIMIT", 1):
        seen = np.rint(preprocess(image, spec)).astype(np.int64)
    difference: NDArray[Any] = np.abs(seen - whole)
    return difference


@settings(deadline=None)
@given(
    sides=st.tuples(st.integers(50, 2000), st.integers(1, 40)),
    tall=st.booleans(),
    resize=st.integers(41, 100),
    crop=st.integers(1, 120),
)
@pytest.mark.parametrize(
    ("interpolation", "levels"), [("bilinear", 1), ("hamming", 1), ("bicubic", 2), ("lanczos", 2)]
)
def test_resizing_what_the_crop_sees_is_the_same_up_to_rounding(
    sides: tuple[int, int], resize: int, crop: int, interpolation: str, levels: int, *, tall: bool
) -> None:
    image = noise(sides[::-1] if tall else sides)
    spec = replace(GREY_LEVELS, resize=resize, crop=crop, interpolation=interpolation)
    assert differences(image, spec).max() <= levels


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (1000, 2)])
def test_and_exactly_the_same_where_the_positions_are_binary_fractions(
    size: tuple[int, int],
) -> None:
    assert differences(noise(size), GREY_LEVELS).max() == 0


def test_other_modes_are_for_read_image_to_convert() -> None:
    with pytest.raises(ValueError, match="RGB images, not L"):
        preprocess(Image.new("L", (8, 8)), SQUEEZENET)


def test_images_are_joined_into_a_batch() -> None:
    first, second = (preprocess(noise((30, 20), seed=seed), SQUEEZENET) for seed in (1, 2))
    joined = batch([first, second])
    assert joined.shape == (2, 3, 224, 224)
    assert joined.dtype == np.float32
    assert joined.flags.c_contiguous
    assert np.array_equal(joined[1], second)


def test_a_batch_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        batch([])


def test_parameters_survive_json() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(SWIN.to_json()))) == SWIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 0}, "resize is 0"),
        ({"crop": 224.0}, "crop is 224.0"),
        ({"interpolation": "cubic"}, "one of nearest, .*bicubic"),
        ({"mean": [0.5]}, "mean is"),
        ({"mean": 0.5}, "mean is 0.5"),
        ({"mean": ["0", "0", "0"]}, "mean is"),
        ({"std": [0.2, math.nan, 0.2]}, "std is"),
        ({"std": [0.2, 0.2, 0]}, "greater than 0"),
        ({"std": [0.2, 0.2, 1e-50]}, "greater than 0"),
        ({"scaling": "VGG"}, "has to be the keys resize, crop"),
    ],
)
def test_wrong_parameters_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing.from_json({**SQUEEZENET.to_json(), **change})
