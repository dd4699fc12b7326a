"""The first image of a TIFF file, all of its strips or tiles or none."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.fax import decode_group4
from runtime.image_files.jpeg import SPACES, read_header, strictly
from runtime.image_files.libtiff_messages import libtiff_errors
from runtime.image_files.limits import Limits, of_picture
from runtime.image_files.tiff_kinds import FAX, JPEG, RAW, TiffKind, read_tags
from runtime.image_files.tiff_planes import BYTES_PER_PIXEL, decode_planes, stored_colours

ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH, JPEG_TABLES = 278, 322, 323, 347
OFFSETS, COUNTS = (273, 324), (279, 325)
"""Tags; of strips and of tiles."""

MAX_PIECES = 100_000
"""Maximum number of strips or tiles: 200 million pixels in tiles of 64x64 have 49,000."""

MAX_TAGS = 10_000
"""Maximum number of tags. The standard and its supplements have some 500."""


def decode_tiff(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first image, turned upright by Pillow.

    Raises:
        DamageError: strips or tiles are missing or damaged.
        UnreadKindError: it is of a kind that is not read, or has too many strips or tiles.
        LimitError: it exceeds the limits.
    """
    check_directory(content)
    tags = read_tags(content)
    kind = TiffKind.of(tags)
    kind.check()
    limits.check_pixels(int(tags[256]), int(tags[257]))
    biggest = check_pieces(content, tags, kind, limits)
    if kind.is_raw_planes:
        limits.check_memory(len(content) + of_picture(int(tags[256]), int(tags[257]), BYTES_PER_PIXEL))
        return decode_planes(content, kind, tags, tags[OFFSETS[OFFSETS[1] in tags]], piece_size(tags))
    with opened(content, kind) as picture:
        sample = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(picture.mode, 4)
        copies = sample * (1 + (tags.get(274, 1) != 1))
        limits.check_memory(len(content) + 2 * biggest + of_picture(*picture.size, copies + 3))
        if kind.compression in FAX:
            return decode_fax(content, picture)
        with libtiff_errors() as said, without_xmp(picture):
            picture.load()
        if said:
            raise DamageError("libtiff reports an error in its pixels")
        return picture


@contextmanager
def without_xmp(picture: Image.Image) -> Iterator[None]:
    """Take XMP from a picture while it is decoded; else Pillow turns a TIFF as XMP says where EXIF says nothing."""
    kept = {key: picture.info.pop(key) for key in ("xmp",) if key in picture.info}
    try:
        yield
    finally:
        picture.info.update(kept)


def stored_planes(content: bytes, tags: Any, kind: TiffKind) -> NDArray[Any]:
    """Return the values of a kind with `is_raw_planes`, [height, width, colours], as they are stored."""
    return stored_colours(content, kind, tags, tags[OFFSETS[OFFSETS[1] in tags]], piece_size(tags))


def size_of(content: bytes, limits: Limits) -> tuple[int, int]:
    """Return (width, height) as displayed, of a kind that is read, if only by `tiff_bands`."""
    check_directory(content)
    tags = read_tags(content)
    kind = TiffKind.of(tags)
    if not kind.has_bands:
        kind.check()
    width, height = int(tags[256]), int(tags[257])
    limits.check_pixels(width, height)
    return (height, width) if tags.get(274, 1) in (5, 6, 7, 8) else (width, height)


def check_picture(picture: TiffImagePlugin.TiffImageFile) -> None:
    """Raise an UnreadKindError for a TIFF that its owner has opened with Pillow, which takes its pixels for others."""
    kind = TiffKind.of(picture.tag_v2)
    kind.check()
    if kind.is_raw_planes and kind.depth == 16:
        raise UnreadKindError(
            f"is a TIFF of {kind}, which Pillow reads as 8 bits; give the path or the bytes of the file"
        )


def opened(content: bytes, kind: TiffKind) -> Image.Image:
    """Open by Pillow; a kind that this version of Pillow does not know is refused by name."""
    try:
        return Image.open(io.BytesIO(content), formats=("TIFF",))
    except UnidentifiedImageError as error:
        raise kind.refusal() from error


def decode_fax(content: bytes, picture: Image.Image) -> Image.Image:
    """Decode a TIFF with fax compression, of which Group 4 in strips is read."""
    assert isinstance(picture, TiffImagePlugin.TiffImageFile)
    tags = picture.tag_v2
    if picture.info["compression"] != "group4" or OFFSETS[1] in tags or picture.mode != "1":
        raise UnreadKindError(
            "is a TIFF with fax compression other than Group 4 in strips, which is not read; save it as PNG"
        )
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


def piece_size(tags: Any) -> tuple[int, int]:
    """Return (width, height) of a strip or tile."""
    if OFFSETS[1] in tags:
        across, down = int(tags.get(TILE_WIDTH, 0)), int(tags.get(TILE_LENGTH, 0))
    else:
        across, down = int(tags[256]), min(int(tags[257]), int(tags.get(ROWS_PER_STRIP, tags[257])))
    if across < 1 or down < 1:
        raise DamageError("its strips or tiles have no size")
    return across, down


def check_pieces(content: bytes, tags: Any, kind: TiffKind, limits: Limits) -> int:
    """Raise a DamageError unless there are all strips or tiles, and as large as the pixels need where that shows.

    Returns the largest size of one when it is decoded, in bytes.
    """
    width, height = int(tags[256]), int(tags[257])
    planes = kind.samples if kind.is_planar else 1
    depth = kind.depth * (1 if kind.is_planar else kind.samples)
    is_tiled = OFFSETS[1] in tags
    across, down = piece_size(tags)
    offsets, counts = tags.get(OFFSETS[is_tiled], ()), tags.get(COUNTS[is_tiled])
    expected = -(-width // across) * -(-height // down) * planes
    if expected > MAX_PIECES:
        raise too_many_pieces(expected)
    if len(offsets) < expected or (counts is not None and len(counts) < expected):
        raise DamageError(f"it has {len(offsets)} of {expected} strips or tiles")
    tops = [] if is_tiled else [top for _ in range(planes) for top in range(0, height, down)]
    rows = [min(down, height - top) for top in tops] or [down] * expected
    row = -(-across * depth // 8)
    has_lengths = kind.compression == RAW and counts is not None
    if has_lengths and any(count < row * number for count, number in zip(counts, rows, strict=False)):
        raise DamageError("its strips or tiles are too short")
    if kind.compression == JPEG:
        tables = tags.get(JPEG_TABLES, b"\xff\xd8\xff\xd9")
        for offset, count, number in zip(offsets, counts or (), rows, strict=False):
            check_jpeg(tables[:-2] + content[offset + 2 : offset + count], (across, number), limits)
    return int(row * down)


def check_jpeg(stream: bytes, size: tuple[int, int], limits: Limits) -> None:
    """Refuse a strip or tile that lacks pixels of this `size`, (width, height), where libtiff adds grey ones.

    Raises:
        DamageError: it lacks some.
        UnreadKindError: it is of a kind in which that cannot be seen.
        LimitError: it exceeds the limits.
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
