"""PBM, PGM and PPM, binary and as text. Pillow reads some of them a pixel at a time in Python."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits

SPACE = re.compile(rb"(?:\s++|#[^\r\n]*+[\r\n])*+")
"""White space and comments, matched without going back, which would take memory for each of them."""

COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")

DIGITS = re.compile(rb"\d{1,10}(?=[\s#])")

MAX_SIDE = 2**31 - 1


def decode_netpbm(content: bytes, limits: Limits) -> NDArray[Any]:
    """Decode to uint8 [height, width] or [height, width, 3], 0 to 255; grey of more than 8 bits to uint16, 0 to 65535.

    Raises:
        DamageError: the file lacks pixels, or its header or text makes no sense.
        LimitError: it exceeds the limits.
    """
    kind, (width, height, most), start = read_header(content, limits)
    limits.check_pixels(width, height)
    bands = 3 if kind in (3, 6) else 1
    count, is_text, is_deep = width * height * bands, kind <= 3, most > 255
    if is_text and len(content) - start < (count if kind == 1 else 2 * count - 1):
        raise DamageError(f"it is too short for {count} values")
    limits.check_memory(len(content) * (1 + 2 * is_text) + count * (18 if is_text and kind > 1 else 6))
    values: NDArray[Any]
    if kind == 4:
        values = packed_bits(content, start, width, height)
    elif is_text:
        values = numbers(content[start:], count, most, has_spaces=kind != 1)
    else:
        dtype = np.dtype(">u2" if is_deep else "u1")
        if len(content) - start < count * dtype.itemsize:
            raise DamageError(f"it has {(len(content) - start) // dtype.itemsize} of {count} values")
        values = np.frombuffer(content, dtype, count, start)
    shape = (height, width, 3) if bands == 3 else (height, width)
    if kind in (1, 4):
        return np.where(values == 0, np.uint8(255), np.uint8(0)).reshape(shape)
    return scaled(values, most, 65_535 if is_deep and bands == 1 else 255).reshape(shape)


def read_header(content: bytes, limits: Limits) -> tuple[int, tuple[int, int, int], int]:
    """Read the kind (1 to 6), (width, height, highest value) and the position of the first pixel."""
    kind, found, position = content[1] - 48, [], 2
    for _ in range(2 if kind in (1, 4) else 3):
        space = SPACE.match(content, position, limits.header_bytes + 1)
        position = space.end() if space else position
        limits.check_header(len(content) if content[position : position + 1] == b"#" else position)
        number = DIGITS.match(content, position)
        if number is None or not 1 <= int(number[0]) <= MAX_SIDE:
            raise DamageError("its header makes no sense, or is cut off")
        found.append(int(number[0]))
        position = number.end()
    width, height, most = (*found, 255)[:3]
    if most > 65_535:
        raise DamageError(f"its highest value is {most}, expected 1 to 65535")
    return kind, (width, height, most), position + 1


def packed_bits(content: bytes, start: int, width: int, height: int) -> NDArray[np.uint8]:
    """Unpack rows of bits, each padded to bytes; 1 is black."""
    stride = -(-width // 8)
    if len(content) - start < stride * height:
        raise DamageError(f"it has {max(0, len(content) - start) // stride} of {height} rows")
    rows = np.frombuffer(content, np.uint8, stride * height, start).reshape(height, stride)
    return np.unpackbits(rows, axis=1, count=width)


def numbers(text: bytes, count: int, most: int, *, has_spaces: bool) -> NDArray[np.int64] | NDArray[np.uint8]:
    """Read `count` decimal numbers, or digits 0 and 1 that need no space between them.

    A number at the very end of the file may have been longer, unless another digit would make it more than `most`. So
    white space has to follow it. NULs at the end of the file are ignored.
    """
    text = text.rstrip(b"\0")
    if b"#" in text:
        text = COMMENT.sub(b" ", text)
    if not has_spaces:
        digits = np.frombuffer(text.translate(None, b" \t\r\n\v\f"), np.uint8)[:count] - np.uint8(48)
        if len(digits) < count or (digits > 1).any():
            raise DamageError(f"it has fewer than {count} values, or others than 0 and 1")
        return digits
    if text.translate(None, b"0123456789 \t\r\n\v\f"):
        raise DamageError("it has other characters than digits and white space")
    values = np.fromstring(text, np.int64, sep=" ")  # told a count, it makes up what is missing
    if len(values) < count:
        raise DamageError(f"it has {len(values)} of {count} values")
    if text[-1:].isdigit() and len(values) == count and 10 * values[-1] <= most:
        raise DamageError("its last number may be cut off; expected white space after it")
    return values[:count]


def scaled(values: NDArray[Any], most: int, highest: int) -> NDArray[Any]:
    """Scale 0..`most` to 0..`highest`, rounded; higher values are refused in text, and the highest in binary."""
    dtype = np.uint8 if highest == 255 else np.uint16
    if most == highest and values.dtype.itemsize <= 2:
        return values.astype(dtype)
    if values.dtype == np.int64 and (values.min() < 0 or values.max() > most):
        raise DamageError(f"it has values above {most}, the highest by its header")
    table = np.round(np.arange(most + 1) / most * highest).astype(dtype)
    found: NDArray[Any] = table[np.minimum(values, most)]
    return found
