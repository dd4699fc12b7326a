"""Run lengths of a BMP file. Pillow decodes them a pixel at a time, and fills what is missing."""

import io

from PIL import Image, ImageFile

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits, of_picture

NIBBLES = [bytes([value >> 4, value & 15]) for value in range(256)]
"""The two pixels of a byte in RLE4."""


def decode_bmp(content: bytes, limits: Limits) -> Image.Image:
    """Decode a BMP file; Pillow reads its header, and its pixels unless they are run lengths.

    Raises:
        DamageError: run lengths leave pixels out. Pillow has errors of its own for other kinds that do.
        LimitError: it exceeds the limits.
    """
    with Image.open(io.BytesIO(content), formats=("BMP",)) as picture:
        width, height = picture.size
        limits.check_memory(len(content) + of_picture(width, height, 7 if picture.mode in ("RGB", "RGBA") else 5))
        name, extents, offset, args = picture.tile[0]
        if name == "bmp_rle":
            assert isinstance(args, tuple)
            _, is_rle4, direction = args
            picture.fp = io.BytesIO(decode_runs(content[offset:], width, height, is_rle4=is_rle4))
            kind = "P" if picture.mode == "P" else "L"
            picture.tile = [ImageFile._Tile("raw", extents, 0, (kind, 0, direction))]
        picture.load()
        return picture


def decode_runs(runs: bytes, width: int, height: int, *, is_rle4: bool) -> bytearray:
    """Decode RLE8 or RLE4 to palette indices, a byte for each pixel, in the file's order of rows.

    Raises:
        DamageError: the runs leave pixels out, or go beyond a row.
    """
    out, position, row_end = bytearray(), 0, width
    while len(out) < width * height:
        if position + 2 > len(runs):
            raise DamageError("its runs end early")
        count, value = runs[position], runs[position + 1]
        position += 2
        if count:
            out += (NIBBLES[value] * ((count + 1) // 2))[:count] if is_rle4 else runs[position - 1 : position] * count
        elif value > 2:
            size = (value + 1) // 2 if is_rle4 else value
            piece = runs[position : position + size]
            if len(piece) < size:
                raise DamageError("its runs end early")
            out += b"".join([NIBBLES[one] for one in piece])[:value] if is_rle4 else piece
            position += size + size % 2
        elif value == 0 and len(out) == row_end:
            row_end += width
        else:
            raise DamageError("its runs leave pixels out")
        if len(out) > row_end:
            raise DamageError("a run goes beyond its row")
    return out
