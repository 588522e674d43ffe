"""Reading image files: whatever a camera or a converter wrote, as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

from provision.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_LIMIT = 160_000_000
"""The most pixels that a file may hold: 640 MB at Pillow's 4 bytes a pixel, for a moment twice.

The largest cameras (151 million) stay below, and Pillow's own limits, a warning from 89 million
and an error from 179 million, leave the decision to this one.
"""

_TRANSPOSE = Image.Transpose
_UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
"""EXIF orientation (EXIF 2.32, tag 0x0112) to what undoes it; 1 and anything else: nothing."""

_BITS_PER_SAMPLE = 258  # TIFF 6.0
_WHITE_16 = 0xFFFF


@dataclass(frozen=True)
class Received:
    """An image file that came another way than from a disk.

    Attributes:
        name: What messages call it.
        data: What is in it.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source: TypeAlias = Path | Received
_STANDARD_INPUT = "-"


def received(name: str) -> Source:
    """What a command line means by an image: a file, or ``-`` for standard input, read now."""
    if name == _STANDARD_INPUT:
        return Received("standard input", sys.stdin.buffer.read())
    return Path(name)


def read_image(path: Source, *, reduced_to: int = 0) -> Image.Image:
    """Reads an image file as upright RGB, 8 bits a channel.

    Colour is what ``PIL.Image.open(path).convert("RGB")`` gives: alpha is dropped, palettes are
    looked up, embedded colour profiles are not applied. Three things differ, because that idiom
    gets them wrong: the EXIF orientation is applied, grey with more than 8 bits keeps its 8
    highest (Pillow clips it, although it does this for colour), and floating-point grey from
    0 (black) to 1 (white) is scaled. Of an animation, the first frame is read.

    Args:
        path: A file in any format that Pillow decodes by itself.
        reduced_to: A length in pixels. A JPEG is decoded to a half, a quarter or an eighth of its
            size, which is quicker, as long as both its sides stay at least that long; 0 decodes it
            in full.
            https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.Image.draft

    Returns:
        The pixels and no metadata, so that nothing turns the image a second time.

    Raises:
        ImageError: There is no such file, or it is not an image that can be read.
    """
    return _read(path, lambda image: _upright(image, path), reduced_to)


def read_as_stored(path: Source, mode: str, *, reduced_to: int = 0) -> Image.Image:
    """Reads an image file just as ``PIL.Image.open(path).convert(mode)``, Triton's client's way.

    Unlike :func:`read_image` it does not turn a photo upright, and clips deep grey. Arguments and
    errors are otherwise those.

    Args:
        path: The file.
        mode: Pillow's mode of the result, such as "RGB", or "L" for grey.
        reduced_to: As for :func:`read_image`.
    """
    return _read(path, lambda image: _converted(image, mode), reduced_to)


def _read(
    path: Source, finish: Callable[[Image.Image], Image.Image], reduced_to: int
) -> Image.Image:
    with _silence:
        try:
            with _opened(path) as file:
                return _decode(file, path, finish, reduced_to)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(
                f"{path} is not an image in a format that can be read",
                cause="it is another kind of file, or its beginning is damaged",
                fix="convert it to JPEG or PNG",
            ) from None
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        except MemoryError:
            raise ImageError(
                f"{path} does not fit into memory",
                fix="scale it down, or free some memory",
            ) from None
        except PermissionError as error:
            raise _unreadable(path, error) from error
        # Pillow's decoders let through whatever a damaged file provokes, from struct.error to
        # IndexError; the list of these has never been complete.
        except Exception as error:
            raise ImageError(
                f"{path} cannot be decoded: {str(error) or type(error).__name__}",
                cause="the file is cut short or damaged, or uses a rare variant of its format",
                fix="fetch it again, or save it anew as JPEG or PNG",
            ) from error


def _opened(path: Source) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file, open; an :class:`ImageError` unless it is a file with something in it."""
    if isinstance(path, Received):
        if not path.data:
            raise _empty(path)
        return io.BytesIO(path.data)
    _check_file(path)
    return path.open("rb")


def _check_file(path: Path) -> None:
    """Raises an :class:`ImageError` unless the path is a file with something in it."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path} does not exist", fix="check the path") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder, not an image", fix="name an image file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is not a regular file", fix="copy the image into a file")
    if status.st_size == 0:
        raise _empty(path)


def _empty(path: Source) -> ImageError:
    return ImageError(
        f"{path} is empty", cause="a download or a copy did not finish", fix="fetch it again"
    )


def _unreadable(path: Source, error: Exception) -> ImageError:
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"{path} cannot be read: {reason.lower()}", fix="make it readable")


def _too_large(path: Source) -> ImageError:
    return ImageError(
        f"{path} has more than {PIXEL_LIMIT:,} pixels",
        cause="it is a map or a scan, or a small file made to fill the memory",
        fix="scale it down",
    )


def _decode(
    file: BinaryIO,
    path: Source,
    finish: Callable[[Image.Image], Image.Image],
    reduced_to: int,
) -> Image.Image:
    """Decodes the open file; `path` is for messages. Lets Pillow's exceptions through."""
    with Image.open(file) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError(f"{path} has no pixels", fix="save it anew as JPEG or PNG")
        if width * height > PIXEL_LIMIT:
            raise _too_large(path)
        if image.format == "EPS":
            # Pillow would run Ghostscript on it: a program, and no pixels of its own.
            raise ImageError(
                f"{path} is PostScript, a drawing and not a photo",
                fix="convert it to JPEG or PNG",
            )
        if reduced_to:
            image.draft(None, (reduced_to, reduced_to))
        image.load()
        finished = finish(image)
    finished.info = {}
    return finished


def _upright(image: Image.Image, path: Source) -> Image.Image:
    """A decoded image as RGB, turned as its EXIF block says."""
    # Only now: some formats keep their metadata behind the pixels, and Pillow's TIFF reader
    # turns the image itself and then forgets the tag.
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image, path)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or 1 where there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # noqa: BLE001 - the pixels are fine, and as varied as in read_image
        return 1


def _rgb(image: Image.Image, path: Source) -> Image.Image:
    """A decoded image of any mode as RGB, 8 bit, in memory of its own."""
    if image.mode.startswith("I"):
        return _grey(_high_bits(image, path))
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # also False for NaN
            raise _unknown_white(path, f"floating-point numbers from {low:g} to {high:g}")
        return _grey((values * np.float32(255)).round())
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    # Pillow would copy what is in that mode already, which of a photo takes as long as decoding it.
    return image if image.mode == mode else image.convert(mode)


def _high_bits(image: Image.Image, path: Source) -> NDArray[Any]:
    """Grey of 12 or 16 bits, which Pillow also keeps in 32, cut to its 8 highest bits."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WHITE_16:
        raise _unknown_white(path, f"integers from {low} to {high}")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return values >> (4 if bits == (12,) else 8)


def _unknown_white(path: Source, values: str) -> ImageError:
    return ImageError(
        f"{path} holds {values}, and does not say which of them is white",
        cause="it is a measurement and not a photo",
        fix="save it with 8 or 16 bits, or as floating point from 0 to 1",
    )


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


class _Silence:
    """Ignores all warnings, in every thread, while at least one thread is inside.

    Pillow warns of odd metadata and of large images, which is ours to judge. The filters belong
    to the process: if each thread saved and restored them, one could restore what another set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_silence = _Silence()
