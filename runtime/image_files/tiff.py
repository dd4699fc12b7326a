"""The first image of a TIFF file, all of its strips or tiles or none."""

import io
import struct
from typing import Any

from PIL import Image, TiffImagePlugin

from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.fax import decode_group4
from runtime.image_files.jpeg import SPACES, read_header, strictly
from runtime.image_files.libtiff_messages import libtiff_errors
from runtime.image_files.limits import Limits, of_picture

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
"""Beginnings of TIFF and BigTIFF, and of two that are written wrongly but can be read."""

ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH, JPEG_TABLES = 278, 322, 323, 347
OFFSETS, COUNTS = (273, 324), (279, 325)
"""Tags; of strips and of tiles."""

FAX = frozenset({"group3", "group4", "tiff_ccitt", "tiff_raw_16"})
"""Pillow's names of fax compressions."""

MAX_PIECES = 100_000
"""Maximum number of strips or tiles: 200 million pixels in tiles of 64x64 have 49,000."""

MAX_TAGS = 10_000
"""Maximum number of tags. The standard and its supplements have some 500."""


def decode_tiff(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first image, turned upright by Pillow.

    Raises:
        DamageError: strips or tiles are missing or damaged.
        UnreadKindError: JPEG in the way of TIFF 6.0, or too many strips or tiles.
        LimitError, TooManyPixelsError: it exceeds the limits.
    """
    check_directory(content)
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
        assert isinstance(picture, TiffImagePlugin.TiffImageFile)
        tags = picture.tag_v2
        if picture.info["compression"] == "tiff_jpeg":
            raise UnreadKindError("is a TIFF with JPEG in the way of TIFF 6.0, which is not read; save it again")
        limits.check_pixels(*picture.size)
        biggest = check_pieces(content, tags, picture.info["compression"], limits)
        sample = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(picture.mode, 4)
        copies = sample * (1 + (tags.get(274, 1) != 1))
        limits.check_memory(len(content) + 2 * biggest + of_picture(*picture.size, copies + 3))
        if picture.info["compression"] in FAX:
            return decode_fax(content, picture)
        with libtiff_errors() as said:
            picture.load()
        if said:
            raise DamageError("libtiff reports an error in its pixels")
        return picture


def decode_fax(content: bytes, picture: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """Decode a TIFF with fax compression, of which Group 4 in strips is read."""
    tags = picture.tag_v2
    if picture.info["compression"] != "group4" or OFFSETS[1] in tags or picture.mode != "1":
        raise UnreadKindError("is a TIFF with fax compression other than Group 4 in strips; save it as PNG")
    if COUNTS[0] not in tags:
        raise DamageError("the lengths of its strips are missing")
    width, height = int(tags[256]), int(tags[257])
    rows = min(height, int(tags.get(ROWS_PER_STRIP, height)))
    places = list(zip(tags[OFFSETS[0]], tags[COUNTS[0]], strict=True))[: -(-height // rows)]
    kept = {tag: int(tags[tag]) for tag in (262, 266, 274) if tag in tags}
    return decode_group4([content[start : start + count] for start, count in places], (width, height), rows, kept)


def check_directory(content: bytes) -> None:
    """Refuse a directory of more tags, strips or tiles than `MAX_TAGS` and `MAX_PIECES`, before Pillow walks it."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]
    try:
        start = struct.unpack_from(order + ("Q" if is_big else "L"), content, 8 if is_big else 4)[0]
        count = struct.unpack_from(order + ("Q" if is_big else "H"), content, start)[0]
        if count > MAX_TAGS:
            raise UnreadKindError(f"has {count} tags, expected at most {MAX_TAGS}")
        first, form, step = (start + 8, "HHQ", 20) if is_big else (start + 2, "HHL", 12)
        for position in range(first, first + count * step, step):
            tag, _, values = struct.unpack_from(order + form, content, position)
            if tag in (*OFFSETS, *COUNTS) and values > MAX_PIECES:
                raise too_many_pieces(values)
    except (struct.error, OverflowError) as error:
        raise DamageError("its directory is cut off") from error


def too_many_pieces(count: int) -> UnreadKindError:
    """Return the error of a file in too many pieces."""
    return UnreadKindError(f"has {count} strips or tiles, expected at most {MAX_PIECES}; save it with larger ones")


def check_pieces(content: bytes, tags: Any, compression: str, limits: Limits) -> int:
    """Raise a DamageError unless there are all strips or tiles, and as large as the pixels need where that shows.

    Returns the largest size of one when it is decoded, in bytes.
    """
    width, height = int(tags[256]), int(tags[257])
    bits = tags.get(258, (1,))
    planes = int(tags.get(277, 1)) if tags.get(284, 1) == 2 else 1
    depth = bits[0] if planes > 1 else sum(bits) if len(bits) > 1 else bits[0] * int(tags.get(277, 1))
    is_tiled = OFFSETS[1] in tags
    if is_tiled:
        across, down = int(tags.get(TILE_WIDTH, 0)), int(tags.get(TILE_LENGTH, 0))
    else:
        across, down = width, min(height, int(tags.get(ROWS_PER_STRIP, height)))
    if across < 1 or down < 1:
        raise DamageError("its strips or tiles have no size")
    offsets, counts = tags.get(OFFSETS[is_tiled], ()), tags.get(COUNTS[is_tiled])
    expected = -(-width // across) * -(-height // down) * planes
    if expected > MAX_PIECES:
        raise too_many_pieces(expected)
    if len(offsets) < expected or (counts is not None and len(counts) < expected):
        raise DamageError(f"it has {len(offsets)} of {expected} strips or tiles")
    tops = [] if is_tiled else [top for _ in range(planes) for top in range(0, height, down)]
    rows = [min(down, height - top) for top in tops] or [down] * expected
    row = -(-across * depth // 8)
    has_lengths = compression == "raw" and counts is not None and tags.get(262) != 6
    if has_lengths and any(count < row * number for count, number in zip(counts, rows, strict=False)):
        raise DamageError("its strips or tiles are too short")
    if compression == "jpeg":
        tables = tags.get(JPEG_TABLES, b"\xff\xd8\xff\xd9")
        for offset, count, number in zip(offsets, counts or (), rows, strict=False):
            check_jpeg(tables[:-2] + content[offset + 2 : offset + count], (across, number), limits)
    return int(row * down)


def check_jpeg(stream: bytes, size: tuple[int, int], limits: Limits) -> None:
    """Refuse a strip or tile that lacks pixels of this `size`, (width, height), where libtiff adds grey ones.

    Raises:
        DamageError: it lacks some.
        UnreadKindError: it is of a kind in which that cannot be seen.
        LimitError, TooManyPixelsError: it exceeds the limits.
    """
    header = read_header(stream, limits)
    if not header.is_whole or header.size[0] < size[0] or header.size[1] < size[1]:
        raise DamageError("scans or rows are missing in a strip or tile")
    space = SPACES.get(len(header.components))
    if space is None:
        raise UnreadKindError(
            f"is a TIFF with a JPEG of {len(header.components)} channels, which is not read; save it as PNG"
        )
    strictly(stream, space, header.size)
