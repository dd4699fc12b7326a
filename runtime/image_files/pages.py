"""Files of several pages or frames, of which the first one is read."""

import struct

from runtime.errors import ImageWarning, warn_user
from runtime.image_files import gif, starts
from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits

MOST_NAMES = 10_000
"""Maximum number of file names that are remembered, so that a program that runs for years does not grow."""

MOST_PARTS = 1_000
"""Maximum number of directories or chunks that are looked at."""

MOST_TAGS = 20_000
"""Maximum number of tags of all directories: a directory may lead to itself."""

SMALLER_OR_MASK = 1 | 4
"""Bits of a TIFF page's kind: the same picture, smaller; or its mask."""

TOLD: set[str] = set()
"""Names of files that a warning told of."""


def warn_of_pages(content: bytes, name: str, limits: Limits) -> None:
    """Warn once a file if it has more pages or frames than the one that is read."""
    if name in TOLD or len(TOLD) >= MOST_NAMES or not has_several(content, limits):
        return
    TOLD.add(name)
    warn_user(f"{name}: has several pages or frames, and only the first one is read", ImageWarning)


def has_several(content: bytes, limits: Limits) -> bool:
    """Return True if there is a second page or frame; a file that is damaged behind the first one has none."""
    try:
        if content.startswith(starts.GIF):
            return gif.has_second_frame(content, limits)
        if content.startswith(starts.PNG):
            return frames_of_png(content) > 1
        if content.startswith(starts.WEBP):
            return frames_of_webp(content) > 1
        return content.startswith(starts.TIFF) and has_second_page(content)
    except (struct.error, DamageError):
        return False


def frames_of_png(content: bytes) -> int:
    """Number of frames of an animation; 1 for a picture."""
    position = len(starts.PNG)
    for _ in range(MOST_PARTS):
        length, name = struct.unpack_from(">I4s", content, position)
        if name == b"acTL":
            return int(struct.unpack_from(">I", content, position + 8)[0])
        if name == b"IDAT":
            break
        position += 12 + length
    return 1


def frames_of_webp(content: bytes) -> int:
    """Number of frames of an animation, counted up to 2; 1 for a picture."""
    position, count = 12, 0
    while position + 8 <= len(content) and count < 2:
        name, length = struct.unpack_from("<4sI", content, position)
        count += name == b"ANMF"
        position += 8 + length + length % 2
    return max(1, count)


def has_second_page(content: bytes) -> bool:
    """Return True if a TIFF has another page than smaller versions and masks of the first one."""
    order, is_big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    number, count_form, entry, step = ("Q", "Q", "HHQ", 20) if is_big else ("L", "H", "HHL", 12)
    start = struct.unpack_from(order + number, content, 8 if is_big else 4)[0]
    tags = kind = 0
    for index in range(MOST_PARTS):
        count = struct.unpack_from(order + count_form, content, start)[0]
        tags += count
        if tags > MOST_TAGS:
            break
        first, kind = start + struct.calcsize(order + count_form), 0
        for position in range(first, first + count * step, step):
            tag = struct.unpack_from(order + entry, content, position)[0]
            if tag == 254:
                kind = struct.unpack_from(order + "L", content, position + struct.calcsize(order + entry))[0]
        if index and not kind & SMALLER_OR_MASK:
            return True
        start = struct.unpack_from(order + number, content, first + count * step)[0]
        if not start:
            break
    return False
