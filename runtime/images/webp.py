"""The first frame of a WebP file."""

import io

from PIL import Image

from runtime.images.damage import DamageError
from runtime.images.limits import Limits

START = b"RIFF"

BYTES_PER_PIXEL = 16
"""Measured: two canvases of libwebp, its output and Pillow's image take 4 each, not all at once; the result takes 3."""


def decode_webp(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first frame.

    Raises:
        DamageError: the file is cut off.
        LimitError, TooManyPixelsError: it exceeds the limits.
    """
    check_size(content, limits)
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as picture:
        picture.load()
        return picture


def check_size(content: bytes, limits: Limits) -> None:
    """Check size and memory before Pillow opens the file, since it makes room for all pixels already then."""
    width, height = size_of(content)
    limits.check_pixels(width, height)
    limits.check_memory(2 * len(content) + BYTES_PER_PIXEL * width * height)


def size_of(content: bytes) -> tuple[int, int]:
    """Read (width, height) from the header of the first chunk; libwebp refuses files whose chunks disagree."""
    if content[8:12] != b"WEBP" or len(content) < 30:
        raise DamageError("its header is cut off, or it is no WebP file")
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[start : start + 3], "little") + 1 for start in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = (int.from_bytes(content[start : start + 2], "little") & 0x3FFF for start in (26, 28))
    return width, height
