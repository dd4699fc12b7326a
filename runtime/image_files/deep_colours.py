"""Colours of 16 bits, of which decoders keep the upper 8: which files have them, and the values that they store."""

from contextlib import suppress
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.image_files import netpbm, numpy_files, starts, tiff
from runtime.image_files.limits import LIMITS
from runtime.image_files.tiff_kinds import PREMULTIPLIED, RGB, TiffKind, read_tags

CONTENT = "unet.deep"
"""Key in a picture's `info` for the file's content, if its colours have 16 bits."""

GREY_ALPHA = 4
"""Colour type in the header of a PNG of grey and alpha."""

MOST_PIXELS = 2**24
"""Pixels of the largest picture that is decoded a second time, which takes 8 bytes for each."""


def has_deep_colours(content: bytes, mode: str) -> bool:
    """Return True if a file that was decoded to Pillow's `mode` has more bits a channel; grey keeps its 16 bits."""
    if mode.startswith("I"):
        return False
    if content.startswith(starts.PNG):
        return content[24] == 16
    return content.startswith(starts.TIFF) and TiffKind.of(read_tags(content)).depth == 16


def stored_colours(content: bytes, *, alpha: bool = False) -> NDArray[np.uint16] | None:
    """Return the stored values, RGB without alpha, [height, width, 3], a TIFF's turned upright unless it is in planes.

    With `alpha`, a PNG that has it keeps it: grey and alpha [height, width, 2], or RGBA [height, width, 4].

    None for kinds whose stored values are not those of RGB, and for those that OpenCV decodes otherwise.
    """
    if content.startswith(starts.TIFF):
        kind = TiffKind.of(tags := read_tags(content))
        if kind.photometric != RGB or kind.extras[:1] == (PREMULTIPLIED,):
            return None
        if kind.is_raw_planes:
            return tiff.stored_planes(content, tags, kind)
        if kind.is_planar:
            return None
    with suppress(cv2.error):
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is not None and values.dtype == np.uint16 and values.ndim == 3:
            if alpha and values.shape[2] == 4:
                is_grey = content[25] == GREY_ALPHA
                return cast(NDArray[np.uint16], values[:, :, [0, 3] if is_grey else [2, 1, 0, 3]])
            return cast(NDArray[np.uint16], values[:, :, 2::-1])
    return None


def has_deep_values(content: bytes) -> bool:
    """Return True if a file has integers of more than 8 bits in a channel, by its header."""
    if content.startswith(starts.PNG):
        return content[24:25] == b"\x10"
    if content.startswith(starts.TIFF):
        kind = TiffKind.of(read_tags(content))
        return max(kind.bits) > 8 and not kind.is_float
    if numpy_files.is_numpy_file(content):
        return numpy_files.is_deep(content, LIMITS)
    return bool(starts.NETPBM.match(content)) and netpbm.read_header(content, LIMITS)[1][2] > 255


def note_deep_colours(picture: Image.Image, content: bytes) -> None:
    """Note the content of a file whose colours have 16 bits in the picture's `info`."""
    if has_deep_colours(content, picture.mode):
        picture.info[CONTENT] = content


def content_of(picture: Image.Image) -> bytes | None:
    """Return the file of a picture of deep colours that its owner has opened and not decoded yet; None for others."""
    file, tiles = getattr(picture, "fp", None), getattr(picture, "tile", ())
    if file is None or picture.tell():  # the file of a later page is not its own
        return None
    if picture.mode.startswith("I") or not any(";16" in str(tile[3]) for tile in tiles):
        return None
    with suppress(OSError, ValueError):
        position = file.tell()
        try:
            file.seek(0)
            return bytes(file.read())
        finally:
            file.seek(position)
    return None
