"""Whatever a camera or a converter wrote, read as upright 8-bit RGB, or refused in one sentence."""

from __future__ import annotations

import gc
import os
import stat
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import images
from pipeline.images import PIXEL_LIMIT, read_image
from provision.errors import ImageError
from provision.layout import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ORIENTATION = 0x0112


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def levels(path: Path) -> list[int]:
    """The first row of a grey image, after a check that it is grey."""
    pixels = np.asarray(read_image(path))
    assert (pixels == pixels[..., :1]).all()
    return [int(value) for value in pixels[0, :, 0]]


# What is read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


# How a camera stores what the viewer should see, EXIF 2.32, tag 0x0112.
STORED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda seen: seen,
    2: np.fliplr,
    3: lambda seen: np.rot90(seen, 2),
    4: np.flipud,
    5: lambda seen: np.swapaxes(seen, 0, 1),
    6: np.rot90,
    7: lambda seen: np.rot90(np.swapaxes(seen, 0, 1), 2),
    8: lambda seen: np.rot90(seen, -1),
}


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    orientation=st.sampled_from(list(STORED)),
    form=st.sampled_from(["png", "tiff"]),
)
def test_any_mode_is_read_upright(
    folder: Path, size: tuple[int, int], mode: str, orientation: int, form: str
) -> None:
    seen = noise(*size).convert(mode)
    stored = Image.fromarray(STORED[orientation](np.asarray(seen)))
    if mode == "P":
        stored = stored.convert("P")
        stored.putpalette(seen.getpalette() or [])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(stored, folder / f"image.{form}", exif=exif)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", size)
    assert image.tobytes() == seen.convert("RGB").tobytes()


def test_a_photo_is_not_turned_twice(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = read_image(saved(noise(40, 20), tmp_path / "phone.jpg", exif=exif))
    assert image.size == (20, 40)
    assert ORIENTATION not in image.getexif()


@pytest.mark.parametrize("exif", [b"Exif\0\0damaged", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_metadata_does_not_spoil_the_pixels(tmp_path: Path, exif: bytes) -> None:
    assert read_image(saved(noise(8, 4), tmp_path / "a.jpg", exif=exif)).size == (8, 4)


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_colour_spaces_of_print_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 3), (0, 128, 128))
    assert read_image(saved(image, tmp_path / "a.tiff")).tobytes() == image.convert("RGB").tobytes()


def test_alpha_and_transparent_palettes_are_dropped(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert read_image(saved(clear, tmp_path / "a.png")).getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    path = saved(palette, tmp_path / "b.png", transparency=b"\x80\x10")
    assert read_image(path).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("form", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, form: str) -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16))
    assert levels(saved(image, tmp_path / f"a.{form}")) == [0, 0, 1, 128, 255]


def test_16_bits_in_32_are_scaled_too(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.int32))
    assert levels(saved(image, tmp_path / "a.tiff")) == [0, 128, 255]


def test_8_bits_stored_as_16_come_back(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint16)[None] * 257)
    assert levels(saved(image, tmp_path / "a.png")) == list(range(256))


def tiff(*, bits: int, width: int, data: bytes) -> bytes:
    """A grey TIFF of one row, as small as they come."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1)]
    tags += [(278, 1), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data


def test_12_bits_have_a_white_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "microscope.tiff"
    path.write_bytes(tiff(bits=12, width=2, data=bytes.fromhex("000FFF")))
    assert levels(path) == [0, 255]


def test_floating_point_runs_from_0_to_1(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 0.25, 0.5, 1]], np.float32))
    assert levels(saved(image, tmp_path / "a.tiff")) == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70_000]], np.int32), "integers from 0 to 70000"),
        (np.array([[-1, 5]], np.int32), "integers from -1 to 5"),
        (np.array([[0, 2.5]], np.float32), "numbers from 0 to 2.5"),
        (np.array([[0, np.nan]], np.float32), "numbers from nan to nan"),
    ],
)
def test_values_without_a_known_white_are_refused(
    tmp_path: Path, values: NDArray[Any], message: str
) -> None:
    with pytest.raises(ImageError, match=f"holds .*{message}.* white"):
        read_image(saved(Image.fromarray(values), tmp_path / "a.tiff"))


@pytest.mark.parametrize("form", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    if form == "webp":
        options["lossless"] = True
    assert read_image(saved(frames[0], tmp_path / f"a.{form}", **options)).getpixel((0, 0)) == (
        *(255, 0, 0),
    )


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (20_000, 50)])
def test_extreme_sizes_are_images_too(tmp_path: Path, size: tuple[int, int]) -> None:
    assert read_image(saved(Image.new("RGB", size), tmp_path / "a.jpg")).size == size


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = saved(noise(3, 2), tmp_path / "photo.jpg", format="PNG")
    assert read_image(path).tobytes() == noise(3, 2).tobytes()


def test_fixtures_are_read() -> None:
    fixtures = REPOSITORY.parent / "shared" / "fixtures"
    if not fixtures.is_dir():
        pytest.skip(f"{fixtures} is absent: the photos are not part of the clone")
    assert read_image(fixtures / "mug.jpg").size == (3361, 2521)
    assert read_image(fixtures / "car.jpg").size == (256, 256)


# What is refused


def refusal(path: Path) -> ImageError:
    """The error, after a check that it says which file and what to do."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in caught.value.what
    assert caught.value.fix
    return caught.value


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jpg").what.endswith("does not exist")


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).what


def test_a_pipe_is_refused_before_it_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe").what


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_of_someone_else(tmp_path: Path) -> None:
    path = saved(noise(3, 2), tmp_path / "a.png")
    path.chmod(stat.S_IWUSR)
    assert refusal(path).what.endswith("cannot be read: permission denied")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("a" * 300)).what.endswith("cannot be read: file name too long")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    error = refusal(tmp_path / "a.jpg")
    assert error.what.endswith("is empty")
    assert "did not finish" in error.cause


@pytest.mark.parametrize("content", [b"hello\n", b"%PDF-1.7\n", bytes(1000), b"<svg/>"])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    error = refusal(tmp_path / "a.jpg")
    assert "not an image" in error.what
    assert "JPEG or PNG" in error.fix


@pytest.mark.parametrize("form", ["jpeg", "png", "gif", "tiff", "webp", "bmp"])
def test_a_file_cut_short(tmp_path: Path, form: str) -> None:
    path = saved(noise(64, 64), tmp_path / f"a.{form}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refusal(path)
    assert "cannot be decoded" in error.what or "not an image" in error.what
    assert "damaged" in error.cause


@settings(deadline=None)
@given(
    form=st.sampled_from(["jpeg", "png", "gif", "tiff", "webp", "bmp", "ppm", "ico", "tga"]),
    cuts=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=20),
    length=st.integers(1, 3000),
)
def test_damage_of_any_kind_is_an_image_error_or_an_image(
    folder: Path, form: str, cuts: list[tuple[int, int]], length: int
) -> None:
    data = BytesIO()
    noise(16, 16).save(data, form)
    content = bytearray(data.getvalue())
    for place, value in cuts:
        content[place % len(content)] = value
    path = folder / "damaged"
    path.write_bytes(content[:length])
    try:
        assert read_image(path).mode == "RGB"
    except ImageError as error:
        assert str(path) in error.what  # noqa: PT017 - either outcome is right


def test_postscript_is_not_run(tmp_path: Path) -> None:
    assert "PostScript" in refusal(saved(noise(8, 8), tmp_path / "a.eps")).what


def png(width: int, height: int) -> bytes:
    """A PNG file that promises so many pixels, in hardly any bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("height", [PIXEL_LIMIT // 10_000 + 1, 17_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(10_000, height))
    error = refusal(tmp_path / "bomb.png")
    assert error.what.endswith("has more than 160,000,000 pixels")
    assert error.fix == "scale it down"


def test_up_to_the_limit_nothing_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    assert read_image(saved(noise(10, 10), tmp_path / "a.png")).size == (10, 10)


def test_files_are_closed_whatever_happens(tmp_path: Path) -> None:
    good = saved(noise(8, 8), tmp_path / "good.gif", save_all=True, append_images=[noise(8, 8, 1)])
    bad = tmp_path / "bad.tiff"
    bad.write_bytes(saved(noise(8, 8), tmp_path / "a.tiff").read_bytes()[:150])
    before = len(list(Path("/proc/self/fd").iterdir()))
    image = read_image(good)
    refusal(bad)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert image.getpixel((0, 0)) is not None


def test_warnings_are_as_before_after_reading_in_threads(tmp_path: Path) -> None:
    path = saved(noise(64, 64), tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_image, [path] * 200))) == 200
    assert list(warnings.filters) == before


def test_running_out_of_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_rgb", lambda *_: (_ for _ in ()).throw(MemoryError))
    path = saved(noise(3, 2), tmp_path / "a.png")
    assert refusal(path).what.endswith("does not fit into memory")
