"""The first frame of a WebP file.

libwebp refuses a lossy file that is cut off, unless so little is missing that it can do with zero bits in its place.
These are the lowest of all bits that might have been there. If the highest, appended, give the same pixels, all do,
since arithmetic coding is monotonic; then nothing was missing that matters. The pixels are compared up to whole blocks
of 16x16, since what is missing may show in the part of the last one that the picture does not have. Of a lossless file
libwebp reads the padding.
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits
from runtime.image_files.starts import WEBP

SIDES, MAX_SIDE = (6, 8), 2**14 - 1
"""Places of width and height in a lossy frame (RFC 6386, 9.1), and the bits that hold them; two are for scaling."""

BYTES_PER_PIXEL = 52
"""Measured: 16 (canvases and output of libwebp, Pillow's image, the result). The rest bounds the time of lossy files,
which are decoded three times: 41 million pixels take about 3 s."""

HIGHEST = b"\xff" * 64
"""Bits after the end of a lossy frame."""

STRIP = 2**20
"""Number of pixels that are hashed at once."""


def decode_webp(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first frame.

    Raises:
        DamageError: the file is cut off.
        LimitError: it exceeds the limits.
    """
    check_size(content, limits)
    lossy, changed = lossy_frame(content), changed_padding(content)
    if lossy is not None and cv2.norm(whole_blocks(lossy), whole_blocks(lossy + HIGHEST), cv2.NORM_INF):
        raise DamageError("the last bits of its pixels are missing")
    picture = first_frame(content)
    if changed is not None and digest(first_frame(changed)) != digest(picture):
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


def frame_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk the chunks up to the end of the first frame; yields (kind, start, length) of their content."""
    position = 12
    while position + 8 <= len(content):
        kind, length = content[position : position + 4], struct.unpack_from("<I", content, position + 4)[0]
        yield kind, position + 8, length
        if kind in (b"VP8 ", b"VP8L"):
            return
        position += 24 if kind == b"ANMF" else 8 + length + length % 2  # chunks are within a frame, after 16 bytes


def lossy_frame(content: bytes) -> bytes | None:
    """Return the lossy part of the first frame, which is without alpha; None if it is lossless."""
    found = (content[start : start + length] for kind, start, length in frame_chunks(content) if kind == b"VP8 ")
    return next(found, None)


def whole_blocks(frame: bytes) -> NDArray[np.uint8]:
    """Decode a lossy frame up to whole blocks of 16x16; by OpenCV, which needs two thirds of Pillow's time.

    Raises:
        DamageError: libwebp refuses it.
    """
    pixels = cv2.imdecode(np.frombuffer(lossy_file(frame), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DamageError("its pixels are cut off or damaged")
    return cast(NDArray[np.uint8], pixels)


def lossy_file(frame: bytes) -> bytes:
    """Return a file of one lossy frame, which shows its last blocks in whole."""
    sides = (int.from_bytes(frame[start : start + 2], "little") for start in SIDES)
    width, height = (min((side & MAX_SIDE) + 15 & ~15, MAX_SIDE) | side & ~MAX_SIDE for side in sides)
    frame = frame[: SIDES[0]] + struct.pack("<HH", width, height) + frame[SIDES[1] + 2 :]
    chunk = b"VP8 " + struct.pack("<I", len(frame)) + frame + b"\0" * (len(frame) % 2)
    return WEBP + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def changed_padding(content: bytes) -> bytes | None:
    """Return the file with other padding after a lossless first frame; None if it has none."""
    for kind, start, length in frame_chunks(content):
        if kind == b"VP8L" and length % 2:
            return content[: start + length] + HIGHEST[:1] + content[start + length + 1 :]
    return None


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
