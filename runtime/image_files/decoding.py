"""Decoding: strictly, with limits, upright. A file gives all of its pixels, or an `ImageError`.

A JPEG file is decoded without Pillow, unless it is in CMYK or has EXIF; everything else is the work of `formats`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError, ImageMemoryError, ImageWarning, warn_user
from runtime.image_files import jpeg, starts
from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.limits import LIMITS, LimitError, Limits
from runtime.image_files.sources import is_picture, name_of, open_source, read_source, reason

if TYPE_CHECKING:
    from PIL import Image

TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange height and width."""

TURNS: Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}
"""Functions that turn an array [height, width, channels] of each EXIF orientation upright."""

DAMAGED = re.compile(r"truncated|broken|decod|data stream|^-\d+$", re.IGNORECASE)
"""Words by which Pillow tells a damaged file from one of a kind that it does not read. Pillow 11 gives numbers."""

UNSUPPORTED = re.compile(r"unsupported BMP", re.IGNORECASE)
"""Words by which Pillow names a kind of BMP that it does not read."""

HEADER = 2**16
"""Bytes that are read first when a header is all that is asked for."""


class Decoded(NamedTuple):
    """A picture: a PIL image, or uint8 [height, width, 3 or 1] where that saves a copy.

    Of a JPEG that was decoded at a part of its size, `whole_size` is its own (height, width) and `content` the file.
    """

    picture: "Image.Image | NDArray[np.uint8]"
    whole_size: tuple[int, int] | None = None
    content: bytes = b""


def open_image(source: Any, limits: Limits = LIMITS) -> "Image.Image":
    """Decode a path, bytes, file object or PIL image completely (first frame) and turn it upright by its EXIF.

    Raises:
        ImageError: the image cannot be decoded, lacks pixels, or exceeds the limits.
    """
    from PIL import Image

    picture = decode(source, limits).picture
    if is_picture(picture):
        return picture
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def decode(source: Any, limits: Limits = LIMITS, at_least: tuple[int, int] | float | None = None) -> Decoded:
    """Decode as `open_image`; `at_least` is as of `load_image`."""
    name = name_of(source)
    with image_errors(name):
        if not is_picture(source):
            content = read_source(source, name, limits)
            if content.startswith(starts.JPEG):
                return decode_jpeg(content, name, limits, at_least)
            source = content
        from runtime.image_files import formats

        return Decoded(formats.decode(source, name, limits))


def decode_jpeg(content: bytes, name: str, limits: Limits, at_least: tuple[int, int] | float | None) -> Decoded:
    """Decode a JPEG and turn it upright."""
    picture, header = jpeg.decode_jpeg(content, limits, at_least)
    if header.fault:
        warn_user(f"{name}: {header.fault}", ImageWarning)
    size = picture.size if is_picture(picture) else picture.shape[1::-1]
    turn = jpeg_orientation(header, limits)
    if is_picture(picture):
        from runtime.image_files.formats import turned

        picture = turned(picture, turn)
    elif turn in TURNS:
        picture = np.ascontiguousarray(TURNS[turn](picture))
    if size == header.size:
        return Decoded(picture)
    return Decoded(picture, header.size if turn in TURNED else header.size[::-1], content)


def jpeg_orientation(header: jpeg.Header, limits: Limits) -> int:
    """EXIF orientation of a JPEG file; 1 (upright) if it has no EXIF."""
    if not header.exif:
        return 1
    from runtime.image_files import formats

    return formats.jpeg_orientation(header.exif, limits)


def image_size(path: str | os.PathLike[str], limits: Limits = LIMITS, *, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of an image file as displayed; with `upright` false, as its header says.

    Raises:
        ImageError: the file cannot be read, or exceeds the limits.
    """
    name = name_of(path)
    with image_errors(name), open_source(path, name, limits) as file:
        start = file.read(HEADER)
        if start.startswith(starts.JPEG):
            header = jpeg.read_start(start, file, limits)
            (width, height), turn = header.size, jpeg_orientation(header, limits)
        else:
            from runtime.image_files.formats import size_and_orientation

            (width, height), turn = size_and_orientation(start + file.read(), limits)
    return (width, height) if upright and turn in TURNED else (height, width)


def current_frame(source: Any, limits: Limits) -> Any:
    """Return the decoded frame of a PIL image that has several, since its owner may go on to the next; else `source`.

    A frame that cannot be decoded is left to `decode`, which raises an error that names it.
    """
    if not is_picture(source):
        return source
    from runtime.image_files import formats

    return formats.current_frame(source, limits)


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn everything that the block raises into an `ImageError`."""
    try:
        yield
    except (ImageError, ImageWarning):  # where warnings are errors
        raise
    except MemoryError as error:
        raise out_of_memory(name) from error
    except (LimitError, UnreadKindError) as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image") from error
    except DamageError as error:
        raise ImageError(f"{name}: is damaged or truncated ({error}); replace it") from error
    except Exception as error:  # decoders raise many types for damaged files: OSError, SyntaxError, struct.error, ...
        if "out of memory" in str(error):
            raise out_of_memory(name) from error
        if DAMAGED.search(str(error)):
            raise ImageError(f"{name}: is damaged or truncated ({reason(error)}); replace it") from error
        if UNSUPPORTED.search(str(error)):
            raise ImageError(f"{name}: is of a kind that is not read ({reason(error)}); save it as PNG") from error
        raise ImageError(f"{name}: cannot be read as an image ({reason(error)})") from error


def out_of_memory(name: str) -> ImageMemoryError:
    """Return the error of an image that the memory of this machine cannot hold."""
    return ImageMemoryError(f"{name}: decoding ran out of memory; make it smaller, or free memory")
