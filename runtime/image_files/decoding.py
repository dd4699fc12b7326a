"""Decoding: strictly, with limits, upright. A file gives all of its pixels, or an `ImageError`.

A JPEG file is decoded without Pillow, unless it is in CMYK or has EXIF; everything else is the work of `formats`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import cv2
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

TURNS: Mapping[int, Callable[[Any], Any]] = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda array: cv2.flip(cv2.transpose(array), -1),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""Functions that turn an array of each EXIF orientation upright; NumPy's copy of a turned view takes three to five
times as long."""

DAMAGED = re.compile(r"truncated|broken|decod|data stream|^-\d+$", re.IGNORECASE)
"""Words by which Pillow tells a damaged file from one of a kind that it does not read. Pillow 11 gives numbers."""

UNSUPPORTED = re.compile(r"unsupported BMP", re.IGNORECASE)
"""Words by which Pillow names a kind of BMP that it does not read."""

HEADER = 2**16
"""Bytes that are read first when a header is all that is asked for."""


Enough = tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]]
"""`at_least` of `load_image`."""


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


def decode(source: Any, limits: Limits = LIMITS, at_least: Enough | None = None) -> Decoded:
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


def decode_jpeg(content: bytes, name: str, limits: Limits, at_least: Enough | None) -> Decoded:
    """Decode a JPEG and turn it upright."""
    picture, header = jpeg.decode_jpeg(content, limits, lambda header: scale_for(header, at_least, limits))
    if header.fault:
        warn_user(f"{name}: {header.fault}", ImageWarning)
    size = picture.size if is_picture(picture) else picture.shape[1::-1]
    turn = jpeg_orientation(header, limits)
    if is_picture(picture):
        from runtime.image_files.formats import turned

        picture = turned(picture, turn)
    elif turn in TURNS:
        picture = turned_array(picture, turn)
    if size == header.size:
        return Decoded(picture)
    return Decoded(picture, header.size if turn in TURNED else header.size[::-1], content)


def scale_for(header: jpeg.Header, at_least: Enough | None, limits: Limits) -> int:
    """Return 8, 4 or 2 if a JPEG at 1/8, 1/4 or 1/2 of its size is enough, else 1."""
    width, height = header.size
    if at_least is None:
        return 1
    if not callable(at_least):
        return next((one for one in (8, 4, 2) if min(width, height) // one >= max(at_least)), 1)
    if jpeg_orientation(header, limits) in TURNED:
        width, height = height, width
    least = at_least((height, width))
    return next((one for one in (8, 4, 2) if -(-height // one) >= least[0] and -(-width // one) >= least[1]), 1)


def turned_array(array: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn an array [height, width, channels] of this EXIF orientation upright."""
    try:
        result: NDArray[Any] = TURNS[turn](array)
    except cv2.error as error:  # the one that is possible
        raise MemoryError from error
    return result.reshape(*result.shape[:2], -1)  # OpenCV drops a last axis of 1


def jpeg_orientation(header: jpeg.Header, limits: Limits) -> int:
    """EXIF orientation of a JPEG file; 1 (upright) if it has no EXIF."""
    if not header.exif:
        return 1
    from runtime.image_files import formats

    return formats.jpeg_orientation(header.exif, limits)


def image_size(
    source: str | os.PathLike[str] | IO[bytes], limits: Limits = LIMITS, *, upright: bool = True
) -> tuple[int, int]:
    """Return (height, width) of an image file as displayed; with `upright` false, as its header says.

    `source` is a path, or a file that is open at its beginning and can seek.

    Raises:
        ImageError: the file cannot be read, or exceeds the limits.
    """
    name = name_of(source)
    with image_errors(name), open_source(source, name, limits) as file:
        start = file.read(HEADER)
        if start.startswith(starts.JPEG):
            header = jpeg.read_start(start, file, limits)
            (width, height), turn = header.size, jpeg_orientation(header, limits)
        else:
            from runtime.image_files.formats import size_and_orientation

            (width, height), turn = size_and_orientation(start + file.read(), limits)
    return (width, height) if upright and turn in TURNED else (height, width)


def has_deep_values(path: str | os.PathLike[str], limits: Limits = LIMITS) -> bool:
    """Return True for an image file with integers of more than 8 bits in a channel, by its header.

    Raises:
        ImageError: the file cannot be read, or exceeds the limits.
    """
    name = name_of(path)
    with image_errors(name), open_source(path, name, limits) as file:
        start = file.read(HEADER)
        if not start.startswith((starts.PNG, *starts.TIFF, starts.NPY, starts.ZIP)) and not starts.NETPBM.match(start):
            return False
        from runtime.image_files import deep_colours

        whole = start.startswith((*starts.TIFF, starts.ZIP))  # what tells may be at the end
        return deep_colours.has_deep_values(start + file.read() if whole else start)


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
