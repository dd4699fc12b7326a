"""JPEG: the header, counted before anything is decoded, and all of its pixels or none.

libjpeg fills a truncated JPEG with grey and warns. Pillow hides these warnings, simplejpeg raises them; its pixels are
the same, bit for bit, since both are libjpeg-turbo. A progressive JPEG that ends between two scans is not even worth a
warning: it is recognised by the precision that its scans reach.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from runtime.image_files.damage import DamageError, NoEndError, UnreadKindError
from runtime.image_files.limits import Limits

if TYPE_CHECKING:
    from PIL import Image

END = b"\xff\xd9"

SOF, SOS, EOI, APP1 = range(0xC0, 0xD0), 0xDA, 0xD9, 0xE1
"""Markers: start of frame (with three others among them), start of scan, end of image, EXIF."""

NOT_FRAMES = frozenset({0xC4, 0xC8, 0xCC})
"""Markers among `SOF` that are none."""

KINDS = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
"""Frames that are read. Others are lossless, hierarchical or arithmetic, whose truncation libjpeg does not notice."""

SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
"""simplejpeg's colour space for each number of components."""

NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a scan's data: a marker, but for zero bytes, restarts and fill bytes."""

MAX_JUNK = 100
"""Maximum number of places between segments where bytes are passed over: each of them takes memory."""

SURPLUS = re.compile(r"extraneous bytes before marker 0xd9")
"""The one warning that is no loss: bytes too many between the last scan and the end."""


@dataclass
class Component:
    """A component of the frame: its sampling factors, and the precision that the scans so far give each coefficient.

    `left` has, for each of the 64 coefficients, the number of low bits that are not known yet; 255 if none is known.
    """

    horizontal: int
    vertical: int
    left: list[int] = field(default_factory=lambda: [255] * 64)


@dataclass
class Header:
    """The facts of a JPEG that stand in its markers. `size` is (width, height)."""

    size: tuple[int, int] = (0, 0)
    kind: int = 0
    bits: int = 8
    components: dict[int, Component] = field(default_factory=dict)
    exif: bytes = b""
    scans: int = 0
    bytes_before_scans: int = 0
    junk: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of the bytes between the segments before the first scan. Some cameras write them."""
    fault: str = ""
    """A warning about a file that is decoded though it is truncated."""

    @property
    def is_whole(self) -> bool:
        """True if the scans give every coefficient with all of its bits."""
        return all(not any(one.left) for one in self.components.values())


def read_header(content: bytes | memoryview, limits: Limits, *, whole: bool = True) -> Header:
    """Walk the markers of a JPEG to its end, or without `whole` to its first scan.

    Raises:
        DamageError: the file ends early, or a marker makes no sense.
        LimitError: the header is larger than the limits.
    """
    header, position = Header(), 2
    while True:
        found = NEXT_MARKER.search(content, position)
        if found is None:
            raise NoEndError("it ends before its end marker")
        if not header.scans and found.start() > position:
            header.junk.append((position, found.start()))
            if len(header.junk) > MAX_JUNK:
                raise DamageError("there are bytes between the segments of its header")
        marker, position = content[found.end() - 1], found.end()
        if marker == EOI:
            return header
        if marker == 0x01:  # TEM: the one marker without a length
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        body = bytes(content[position + 2 : position + length])
        if length < 2 or len(body) != length - 2:
            raise DamageError("a segment of its header is cut off")
        position += length
        if marker == SOS:
            header.scans += 1
            read_scan(header, body)
            if not whole:
                return header
            limits.check_scans(header.scans, header.size[0] * header.size[1])
            continue
        if not header.scans:
            header.bytes_before_scans = position
            limits.check_header(position)
        if marker in SOF and marker not in NOT_FRAMES:
            read_frame(header, marker, body)
            limits.check_pixels(*header.size)
        elif marker == APP1 and body.startswith(b"Exif\0\0"):
            header.exif = header.exif or body


def read_start(start: bytes, rest: IO[bytes], limits: Limits) -> Header:
    """Read the header from the start of a file, or if that does not reach to the first scan, from all of it."""
    with suppress(DamageError):
        return read_header(start, limits, whole=False)
    return read_header(start + rest.read(), limits, whole=False)


def read_frame(header: Header, marker: int, body: bytes) -> None:
    """Take size and components from a start of frame."""
    if header.components:
        raise DamageError("it has two frames")
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise DamageError("a segment of its header is cut off")
    header.kind, header.bits = marker, body[0]
    header.size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    for start in range(6, 6 + 3 * body[5], 3):
        factors = body[start + 1]
        header.components[body[start]] = Component(factors >> 4, factors & 15)
    if 0 in header.size or len(header.components) != body[5]:
        raise DamageError("its size or its components make no sense")


def read_scan(header: Header, body: bytes) -> None:
    """Note what a scan gives."""
    count = body[0] if body else 0
    if not header.components or not 1 <= count <= 4 or len(body) != 4 + 2 * count:
        raise DamageError("a scan makes no sense")
    first, last, low = body[-3], body[-2], body[-1] & 15
    if header.kind != 0xC2:
        first, last, low = 0, 63, 0
    for start in range(1, 1 + 2 * count, 2):
        component = header.components.get(body[start])
        if component is None or not first <= last <= 63:
            raise DamageError("a scan makes no sense")
        component.left[first : last + 1] = [low] * (last + 1 - first)


def memory_needed(header: Header) -> int:
    """Bytes that decoding takes: the pixels, and of several scans all coefficients (16 bits each)."""
    pixels, parts = header.size[0] * header.size[1], header.components.values()
    most = max(1, max(one.horizontal for one in parts) * max(one.vertical for one in parts))
    coefficients = sum(one.horizontal * one.vertical for one in parts) / most
    several = header.scans > 1
    return int(pixels * (max(3, len(parts)) + several * 2 * coefficients))


def decode_jpeg(
    content: bytes, limits: Limits, scale_for: Callable[[Header], int] = lambda _: 1
) -> "tuple[NDArray[np.uint8] | Image.Image, Header]":
    """Decode to uint8 [height, width, 3 or 1], or a PIL image in CMYK, as stored (not turned upright).

    `scale_for` returns 8, 4, 2 or 1: the picture is decoded at 1/8, 1/4, 1/2 or all of its size.

    Raises:
        DamageError: the file lacks pixels, or libjpeg says that it is damaged.
        UnreadKindError: it is lossless, arithmetic, of 12 bits or of unusual sampling factors.
        LimitError: it exceeds the limits.
    """
    try:
        header = read_header(content, limits)
    except NoEndError:
        if limits.truncated != "warn":
            raise
        content = content + END
        header = read_header(content, limits)
        if not header.scans:
            raise
        header.fault = "has no end marker, but all of its pixels"
    space = SPACES.get(len(header.components))
    if header.kind not in KINDS or header.bits != 8 or space is None:
        raise UnreadKindError(
            f"is a JPEG of a kind that is not read (frame 0xff{header.kind:02x}, {header.bits} bits, "
            f"{len(header.components)} components); save it as a baseline or progressive JPEG of 8 bits"
        )
    if not header.is_whole and not header.fault:
        raise DamageError("scans are missing at its end")
    size = len(content) * (1 + bool(header.junk))
    limits.check_memory(size + memory_needed(header) + 3 * header.size[0] * header.size[1] * (space == "CMYK"))
    if header.junk:  # no loss, but libjpeg's warning of it would hide those that are
        content = without(content, header.junk)
    width, height = header.size
    scale = scale_for(header)
    pixels = pixels_of(content, space, (-(-width // scale), -(-height // scale)), header)
    if space != "CMYK":
        return pixels, header
    from PIL import Image

    np.invert(pixels, out=pixels)  # Adobe stores the opposite
    return Image.frombuffer("CMYK", pixels.shape[1::-1], pixels, "raw", "CMYK", 0, 1), header


def pixels_of(content: bytes, space: str, size: tuple[int, int], header: Header) -> NDArray[np.uint8]:
    """Decode strictly; a file with a `fault` leniently where it lacks pixels, which the fault then tells."""
    try:
        pixels = strictly(content, space, size)
        if not header.fault or header.is_whole:
            return pixels
    except DamageError:
        if not header.fault:
            raise
        pixels = decode(content, space, size, strict=False)
    header.fault = "is truncated, and the pixels that are missing are grey or blurred; replace it"
    return pixels


def without(content: bytes, parts: list[tuple[int, int]]) -> bytes:
    """Return the content without the parts (start, end), which are in order."""
    starts, ends = [0, *(end for _, end in parts)], [*(start for start, _ in parts), len(content)]
    return b"".join([content[start:end] for start, end in zip(starts, ends, strict=True)])


def strictly(content: bytes, space: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode by simplejpeg; raise a DamageError for whatever libjpeg warns of but surplus bytes."""
    try:
        return decode(content, space, size)
    except ValueError as error:
        text = str(error)
        if SURPLUS.search(text):  # the first warning of this file, and nothing comes after its end
            return decode(content, space, size, strict=False)
        if "subsampling" in text:
            raise UnreadKindError(
                "is a JPEG of unusual sampling factors, which is not read; save it with 4:4:4, 4:2:2 or 4:2:0"
            ) from error
        if "memory" in text:
            raise MemoryError from error
        raise DamageError((text.partition("(): ")[2] or text).replace(":", ",")) from error


def decode(content: bytes, space: str, size: tuple[int, int], *, strict: bool = True) -> NDArray[np.uint8]:
    """Decode by simplejpeg to a `size`, (width, height), that is a whole or a part of the picture's."""
    options: dict[str, Any] = {"colorspace": space, "min_width": size[0], "min_height": size[1], "strict": strict}
    return np.asarray(simplejpeg.decode_jpeg(content, **options))
