"""The first frame of a GIF file, with its own palette, in place on the screen."""

from dataclasses import dataclass

from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits, of_picture
from runtime.image_files.starts import GIF
from runtime.image_files.whole import load_whole

HAS_PALETTE, INTERLACED = 128, 64
"""Flags of a screen or a frame."""


@dataclass
class Frame:
    """The first frame: its place on the screen, colours and compressed pixels (with their leading code size)."""

    screen: tuple[int, int]
    x: int
    y: int
    size: tuple[int, int]
    palette: bytes
    transparent: int
    is_interlaced: bool
    pixels: bytes
    end: int

    @property
    def whole_screen(self) -> tuple[int, int]:
        """(width, height) of the screen, extended to hold the frame."""
        return max(self.screen[0], self.x + self.size[0]), max(self.screen[1], self.y + self.size[1])


def decode_gif(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first frame on the screen, in mode P, or L where its colours are the 256 greys.

    Raises:
        DamageError: the file ends early or lacks pixels.
        LimitError: it exceeds the limits.
    """
    frame = first_frame(content, limits)
    (width, height), screen = frame.size, frame.whole_screen
    limits.check_pixels(*screen)
    limits.check_memory(len(content) + 2 * len(frame.pixels) + of_picture(*screen, 5))
    last = (width - 1, height - 1 if not frame.is_interlaced or height == 1 else height // 2 * 2 - 1)
    picture = load_whole(alone(frame), "GIF", last)
    if screen == frame.size:
        return picture
    whole = Image.new(picture.mode, screen, frame.transparent)
    if picture.palette is not None:
        whole.putpalette(picture.palette)
    whole.paste(picture, (frame.x, frame.y))
    return whole


def first_frame(content: bytes, limits: Limits) -> Frame:
    """Walk the blocks of a GIF to its first frame."""
    if len(content) < 13:
        raise DamageError("its header is cut off")
    screen = little(content, 6), little(content, 8)
    palette, position = colours(content, 13, content[10])
    transparent = 0
    while True:
        limits.check_header(position)
        kind = content[position : position + 1]
        if kind == b",":
            break
        if kind == b"\0":  # some writers leave one between blocks
            position += 1
            continue
        if kind != b"!":
            raise DamageError("it has no frame")
        if content[position + 1 : position + 3] == b"\xf9\x04" and content[position + 3 : position + 4]:
            transparent = content[position + 6] if content[position + 3] & 1 and position + 6 < len(content) else 0
        position = after_blocks(content, position + 2)
    if position + 11 > len(content):
        raise DamageError("its frame is cut off")
    flags, size = content[position + 9], (little(content, position + 5), little(content, position + 7))
    own, start = colours(content, position + 10, flags)
    if 0 in size:
        raise DamageError("its frame has no pixels")
    end = after_blocks(content, start + 1)
    x, y = little(content, position + 1), little(content, position + 3)
    return Frame(screen, x, y, size, own or palette, transparent, bool(flags & INTERLACED), content[start:end], end)


def has_second_frame(content: bytes, limits: Limits) -> bool:
    """Return True if there is another frame behind the first one, and what stands between them."""
    position = first_frame(content, limits).end
    while content[position : position + 1] in (b"!", b"\0"):
        position = after_blocks(content, position + 2) if content[position] else position + 1
    return content[position : position + 1] == b","


def colours(content: bytes, start: int, flags: int) -> tuple[bytes, int]:
    """Read the palette that the flags tell of, if any, and the position after it."""
    size = 3 << ((flags & 7) + 1) if flags & HAS_PALETTE else 0
    if start + size >= len(content):
        raise DamageError("its palette is cut off")
    return content[start : start + size], start + size


def after_blocks(content: bytes, position: int) -> int:
    """Return the position after a row of blocks."""
    while position < len(content):
        size = content[position]
        position += 1 + size
        if not size:
            return position
    raise DamageError("its blocks are cut off")


def alone(frame: Frame) -> bytes:
    """A GIF file of the frame alone."""
    width, height = (side.to_bytes(2, "little") for side in frame.size)
    bits = (len(frame.palette) // 3).bit_length() - 2
    flags = bytes([HAS_PALETTE | bits if frame.palette else 0, 0, 0])
    place = b"," + bytes(4) + width + height + bytes([INTERLACED * frame.is_interlaced])
    return b"".join([GIF[1], width, height, flags, frame.palette, place, frame.pixels, b";"])


def little(content: bytes, start: int) -> int:
    """Read 16 bits."""
    return int.from_bytes(content[start : start + 2], "little")
