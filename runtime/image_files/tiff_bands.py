"""All channels of a TIFF file as they are stored, up to any number of them, which Pillow does not read.

Each plane, or all channels together, is handed to libtiff as a grey picture of bytes: what undoes the compression does
not know of channels. So a file is decoded as strictly as every other TIFF.
"""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.limits import Limits
from runtime.image_files.pillow_guard import strict
from runtime.image_files.tiff import COUNTS, OFFSETS, check_directory, check_pieces, decode_tiff, piece_size
from runtime.image_files.tiff_kinds import GREY, TiffKind, first, read_tags

ORIENTATION, LONG = 274, 4
MAX_FILE = 2**32
"""A TIFF file has fewer bytes than this."""


def kind_of(content: bytes) -> TiffKind:
    """Return the kind of a file's first picture; raises as `read_tags`."""
    check_directory(content)
    return TiffKind.of(read_tags(content))


def decode_bands(content: bytes, limits: Limits) -> NDArray[Any]:
    """Return the values of a kind with `has_bands`, [height, width, channels], turned upright.

    Their type is that of the file: uint8, uint16, float32 or float64, in the byte order of this machine.

    Raises:
        DamageError: strips or tiles are missing or damaged.
        LimitError: it exceeds the limits.
    """
    kind, tags = kind_of(content), read_tags(content)
    width, height = int(tags[256]), int(tags[257])
    pixel = kind.depth // 8 * (1 if kind.is_planar else kind.samples)  # bytes side by side
    planes = kind.samples if kind.is_planar else 1
    limits.check_pixels(width, height)
    biggest = check_pieces(content, tags, kind, limits)
    # The file, its pieces, one of them decoded, Pillow's picture, the values, and what is made of them.
    limits.check_memory(2 * (len(content) + biggest) + 4 * width * height * pixel * planes)
    across, down = piece_size(tags)
    is_tiled = OFFSETS[1] in tags
    if COUNTS[is_tiled] not in tags:
        raise DamageError("the lengths of its strips or tiles are missing")
    places = list(zip(tags[OFFSETS[is_tiled]], tags[COUNTS[is_tiled]], strict=False))
    if any(start + count > len(content) for start, count in places):
        raise DamageError("its strips or tiles are cut off")
    pieces = [content[start : start + count] for start, count in places]
    each = -(-width // across) * -(-height // down)
    bytewise = replace(limits, pixels=limits.pixels * pixel, memory=2**62)
    values = np.empty((height, width, kind.samples), f"u{kind.depth // 8}")
    for plane in range(planes):
        size, piece = (width * pixel, height), (across * pixel, down)
        grey = grey_file(size, piece, pieces[plane * each : (plane + 1) * each], kind.compression, is_tiled=is_tiled)
        with strict(bytewise):
            stored = np.ascontiguousarray(decode_tiff(grey, bytewise))
        found = stored.view(f"{kind.order}u{kind.depth // 8}").reshape(height, width, -1)
        values[:, :, plane : plane + found.shape[2]] = found
    if kind.predictor == 2:  # each value is stored as its difference to the one before, in the row of a strip or tile
        for left in range(0, width, across):
            part = values[:, left : left + across]
            part[:] = np.cumsum(part, axis=1, dtype=values.dtype)
    if kind.is_float:
        values = values.view(f"f{kind.depth // 8}")
    return turned(values, first(tags, ORIENTATION, 1))


def grey_file(
    size: tuple[int, int], piece: tuple[int, int], pieces: list[bytes], compression: int, *, is_tiled: bool
) -> bytes:
    """Return a grey TIFF of 8 bits with these strips or tiles; `size` and that of a `piece` are (width, height)."""
    fields: dict[int, tuple[int, ...]] = {256: (size[0],), 257: (size[1],), 258: (8,), 259: (compression,)}
    fields |= {262: (GREY,), 277: (1,), COUNTS[is_tiled]: tuple(map(len, pieces))}
    fields |= {322: (piece[0],), 323: (piece[1],)} if is_tiled else {278: (piece[1],)}
    end = 8 + 2 + 12 * (len(fields) + 1) + 4
    place = end + (8 * len(pieces) if len(pieces) > 1 else 0)
    if place + sum(map(len, pieces)) >= MAX_FILE:
        raise UnreadKindError("has more than 4 GB of compressed channels; save it as several files")
    starts = [place]
    for one in pieces[:-1]:
        starts.append(starts[-1] + len(one))
    fields[OFFSETS[is_tiled]] = tuple(starts)
    entries, values = b"", b""
    for tag, numbers in sorted(fields.items()):
        stored = struct.pack(f"<{len(numbers)}L", *numbers)
        inline = stored if len(numbers) == 1 else struct.pack("<L", end + len(values))
        entries += struct.pack("<HHL", tag, LONG, len(numbers)) + inline
        values += stored if len(numbers) > 1 else b""
    head = b"II*\0" + struct.pack("<LH", 8, len(fields)) + entries + bytes(4)
    return b"".join((head, values, *pieces))


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an array [height, width, channels] of an EXIF orientation upright."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return values[:: -1 if down else 1, :: -1 if across else 1]
