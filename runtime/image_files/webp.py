"""The first frame of a WebP file.

libwebp refuses a lossy file that is cut off, unless so little is missing that it can do with zero bits in its place.
These are the lowest of all bits that might have been there. If the highest, appended, give the same pixels, all do,
since arithmetic coding is monotonic; then nothing was missing that matters. Of a lossless file it reads the padding.
"""

import hashlib
import io
import struct

from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits

START = b"RIFF"

BYTES_PER_PIXEL = 24
"""Measured: 16 (canvases and output of libwebp, Pillow's image, the result). The rest bounds the time of lossy files,
which are decoded twice: 89 million pixels take less than 5 s."""

HIGHEST = b"\xff" * 64
"""Bits after the end of a lossy frame."""

STRIP = 2**20
"""Number of pixels that are hashed at once."""


def decode_webp(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first frame.

    Raises:
        DamageError: the file is cut off.
        LimitError, TooManyPixelsError: it exceeds the limits.
    """
    check_size(content, limits)
    other = with_other_end(content)
    expected = None if other is None else digest(first_frame(other))
    picture = first_frame(content)
    if expected is not None and digest(picture) != expected:
        raise DamageError("the last bits of its pixels are missing")
    return picture


def digest(picture: Image.Image) -> bytes:
    """Hash the pixels, in strips: two pictures at once would take much memory."""
    found, rows = hashlib.blake2b(), max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        found.update(picture.crop((0, top, picture.width, min(picture.height, top + rows))).tobytes())
    return found.digest()


def first_frame(content: bytes) -> Image.Image:
    """Decode by Pillow."""
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as picture:
        picture.load()
        return picture


def with_other_end(content: bytes) -> bytes | None:
    """Return the file with other bits after the pixels of the first frame; None if libwebp reads none there."""
    chunks, position = [0], 12
    while position + 8 <= len(content):
        kind, length = content[position : position + 4], struct.unpack_from("<I", content, position + 4)[0]
        if kind == b"VP8 ":
            return lengthened(content, [*chunks, position])
        if kind == b"VP8L":  # its padding is read as if it were data
            end = position + 8 + length
            return content[:end] + HIGHEST[:1] + content[end + 1 :] if length % 2 else None
        if kind == b"ANMF" and len(chunks) == 1:
            chunks.append(position)
            position += 24  # a frame's chunks follow its place and duration
        else:
            position += 8 + length + length % 2
    return None


def lengthened(content: bytes, chunks: list[int]) -> bytes:
    """Append the highest bits to the innermost of these chunks."""
    changed, inner = bytearray(content), chunks[-1]
    lengths = [struct.unpack_from("<I", content, position + 4)[0] for position in chunks]
    end = inner + 8 + lengths[-1]
    changed[end : end + lengths[-1] % 2] = b""  # the padding of an odd length
    more = len(HIGHEST) + lengths[-1] % 2  # an even length again
    changed[end:end] = HIGHEST[:1] * more
    for position, length in zip(chunks, lengths, strict=True):
        grown = more if position == inner else more - lengths[-1] % 2
        struct.pack_into("<I", changed, position + 4, min(2**32 - 2, length + grown))
    return bytes(changed)


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
