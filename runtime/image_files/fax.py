"""TIFF with fax compression (Group 4), all rows or none.

A strip of rows ends with an end code, and libtiff takes it at its word: rows that are missing are whatever was in
memory. So other bits are put in place of the end code, in three ways: a strip that has all of its rows is never read so
far, and gives the same pixels each time; in any other the bits are an error, or pixels that differ.
"""

import io
import struct

from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.libtiff_messages import libtiff_errors

END = 0x001001
"""The end code, 24 bits."""

INSTEAD = ("0000001" * 20 + "0000001111" * 20, "1" * 200, "010" * 60)
"""Bits in its place: a mode that is not supported, rows like the one above, shifts to the right and horizontal runs."""

FLIPPED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
"""The bits of each byte in reverse order, for files of fill order 2."""


def decode_group4(strips: list[bytes], size: tuple[int, int], rows: int, tags: dict[int, int]) -> Image.Image:
    """Decode strips of `rows` rows each (the last may have fewer) to an image of `size`, (width, height).

    `tags` has the photometric interpretation, the orientation and the fill order.

    Raises:
        DamageError: rows are missing, or libtiff reports an error.
    """
    if tags.pop(266, 1) == 2:
        strips = [strip.translate(FLIPPED) for strip in strips]
    first: Image.Image | None = None
    for bits in INSTEAD:
        content = rebuilt([ended(strip, bits) for strip in strips], size, rows, tags)
        with libtiff_errors() as said, Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
            picture.load()
        first = first or picture
        if said or first.tobytes() != picture.tobytes():
            raise DamageError("rows are missing in its strips")
    assert first is not None
    return first


def ended(strip: bytes, bits: str) -> bytes:
    """Put bits in place of a strip's end code."""
    value = int.from_bytes(strip, "big")
    zeros = (value & -value).bit_length() - 1 if value else 0
    if value >> zeros & 0xFFFFFF != END:
        raise DamageError("a strip has no end")
    left = 8 * len(strip) - zeros - 24
    filled = -(left + len(bits)) % 8
    value = (value >> (zeros + 24) << len(bits) | int(bits, 2)) << filled
    return value.to_bytes((left + len(bits) + filled) // 8, "big")


def rebuilt(strips: list[bytes], size: tuple[int, int], rows: int, tags: dict[int, int]) -> bytes:
    """Make a TIFF file of Group 4 strips."""
    lengths = [len(strip) for strip in strips]
    offsets = [8 + sum(lengths[:index]) for index in range(len(strips))]
    lists = 8 + sum(lengths)
    places = (offsets[0], lengths[0]) if len(strips) == 1 else (lists, lists + 4 * len(strips))
    entries = {256: size[0], 257: size[1], 258: 1, 259: 4, 273: places[0], 277: 1, 278: rows, 279: places[1], **tags}
    counts = {273: len(strips), 279: len(strips)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, counts.get(tag, 1), entries[tag]) for tag in sorted(entries))
    arrays = struct.pack(f"<{2 * len(strips)}L", *offsets, *lengths)
    start = struct.pack("<L", lists + len(arrays))
    return b"".join([b"II*\0", start, *strips, arrays, struct.pack("<H", len(entries)), directory, bytes(4)])
