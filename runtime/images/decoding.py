"""Decoding by Pillow: strictly, with limits, upright, to 8 bits."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
from PIL import (  # the plug-ins register themselves; Pillow's own lazy registration is not safe in threads
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from runtime.errors import ImageError, one_line
from runtime.images.limits import LIMITS, Limits
from runtime.images.pillow_guard import TooManyPixelsError, strict

DECODERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Pillow's decoders in use (JPEG's reads MPO, too). The others are not tested enough for files from strangers."""

ORIENTATION, TURNED = 0x0112, frozenset({5, 6, 7, 8})
"""EXIF tag of the camera's orientation, and its values that exchange height and width."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that turns an image of each orientation upright."""

LEVELS = "unet.levels"
"""Key in a picture's `info` for (black, white), the stored values of a picture with more than 8 bits."""

PIECE = 2**20
"""Bytes of a stream that are read at once."""


def open_image(source: Any, at_least: tuple[int, int] | None = None, limits: Limits = LIMITS) -> Image.Image:
    """Decode a path, bytes, file object or PIL image completely (first frame) and turn it upright by its EXIF.

    `at_least` and `limits` are those of `load_image`.

    Raises:
        ImageError: the image cannot be decoded, or exceeds the limits.
    """
    name = name_of(source)
    with image_errors(name, limits):
        if isinstance(source, Image.Image):
            return decoded(source, name, limits)
        with open_source(source, name, limits) as file, Image.open(file, formats=DECODERS) as picture:
            if at_least is not None:
                picture.draft(None, (max(at_least),) * 2)  # twice the larger side, since the picture may yet be turned
            return decoded(picture, name)


def image_size(path: str | os.PathLike[str], limits: Limits = LIMITS, *, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of an image file as displayed; with `upright` false, as its header says.

    Raises:
        ImageError: the file cannot be read, or exceeds the limits.
    """
    name = name_of(path)
    with (
        image_errors(name, limits),
        open_source(path, name, limits) as file,
        Image.open(file, formats=DECODERS) as picture,
    ):
        width, height = picture.size
        # Pillow turns the sides of a TIFF itself. It decodes a PNG for this, whose EXIF may come last.
        is_turned = upright and picture.format != "TIFF" and orientation(picture) in TURNED
    return (width, height) if is_turned else (height, width)


@contextmanager
def image_errors(name: str, limits: Limits) -> Iterator[None]:
    """Run the block with Pillow strict, and turn everything that it raises into an `ImageError`."""
    try:
        with strict(limits):
            yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not an image of a known format ({', '.join(DECODERS)})") from error
    except TooManyPixelsError as error:
        raise ImageError(
            f"{name}: has {error} pixels, expected at most {limits.pixels} in all; "
            "make it smaller, or allow more with Limits(pixels=...)"
        ) from error
    except Exception as error:  # decoders raise many types for damaged files: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"{name}: cannot be read as an image ({brief(error)})") from error


@contextmanager
def open_source(source: Any, name: str, limits: Limits) -> Iterator[IO[bytes]]:
    """Open a source for Pillow: a file on disk as it is, everything else from memory."""
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(memoryview(source).nbytes, name, limits)
        yield io.BytesIO(bytes(source))
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                check_bytes(status.st_size, name, limits)
                yield file
            else:
                yield io.BytesIO(read_stream(file, name, limits))
    elif hasattr(source, "read"):
        yield io.BytesIO(read_stream(source, name, limits))
    else:
        raise ImageError(
            f"{type(source).__name__}: cannot be read as an image; expected a path, bytes, a binary file object, "
            "a PIL image or an array"
        )


def read_stream(file: Any, name: str, limits: Limits) -> bytes:
    """Read a stream to its end, from its start where it can seek."""
    with suppress(AttributeError, OSError):  # pipes and sockets cannot
        file.seek(0)
    content = bytearray()
    while piece := file.read(PIECE):
        if isinstance(piece, str):
            raise ImageError(f"{name}: is a text file, expected a binary one; open it with mode 'rb'")
        content += piece
        if len(content) > limits.file_bytes:
            break
    check_bytes(len(content), name, limits)
    return bytes(content)


def check_bytes(count: int, name: str, limits: Limits) -> None:
    """Raise an ImageError for an empty source or one that exceeds the limits."""
    if not count:
        raise ImageError(f"{name}: is empty (0 bytes), expected an image")
    if count > limits.file_bytes:
        raise ImageError(
            f"{name}: has more bytes than the {limits.file_bytes} that are read; "
            "make it smaller, or allow more with Limits(file_bytes=...)"
        )


def decoded(picture: Image.Image, name: str, limits: Limits | None = None) -> Image.Image:
    """Decode a picture and turn it upright. With `limits` it is the caller's own and stays as it is."""
    if limits is not None and getattr(picture, "tile", None) and picture.width * picture.height > limits.pixels:
        raise TooManyPixelsError(f"{picture.width} x {picture.height}")  # its owner has not decoded it yet
    levels = stored_levels(picture)
    try:
        picture.load()
        turn = UPRIGHT.get(orientation(picture))
        upright = picture if turn is None else picture.transpose(turn)
    except (MemoryError, TooManyPixelsError):
        raise
    except Exception as error:
        raise ImageError(f"{name}: is damaged or truncated ({brief(error)}); replace it") from error
    if upright is picture and limits is not None:
        upright = picture.copy()
    upright.info.pop("transparency", None)  # no caller keeps alpha, and Pillow warns when a palette's is dropped
    if levels is not None:
        upright.info[LEVELS] = levels
    return upright


def orientation(picture: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if there is none or the EXIF is damaged, as in every viewer."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # of many types
        return 1


def stored_levels(picture: Image.Image) -> tuple[int, int] | None:
    """(black, white) from the file's header; None if it does not say."""
    if picture.format == "PPM":
        return 0, 65_535  # Pillow scales to these values
    tags = getattr(picture, "tag_v2", None)
    if tags is None or not picture.mode.startswith("I;16"):
        return None
    white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    return (white, 0) if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else (0, white)


def to_eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit pictures to 8 bits; Pillow's own conversion clips them to white.

    Raises:
        ImageError: the pixels are floating-point numbers, or 32-bit values out of the range of 16 bits.
    """
    if picture.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels, expected 8 or 16 bits an integer channel; convert it")
    if not picture.mode.startswith("I"):
        return picture
    values, levels = np.asarray(picture), picture.info.get(LEVELS)
    is_guess = picture.mode == "I" and levels is None  # 32-bit files hold anything
    if is_guess and (values.min() < 0 or not 255 < values.max() <= 65_535):
        raise ImageError(f"{name}: has 32-bit values {values.min()}..{values.max()}, expected 16 bits; convert it")
    black, white = levels or (0, 65_535)
    grey = (values.astype(np.uint32) * 255 // max(black, white)).astype(np.uint8)
    return Image.fromarray(grey if white else 255 - grey)


def name_of(source: object) -> str:
    """Name of an image in messages: its path if it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return str(getattr(source, "name", None) or "image")


def brief(error: Exception) -> str:
    """An error's message on one line of at most 200 characters."""
    return one_line(str(error))[:200] or type(error).__name__
