"""The one way to write a PNG of each kind."""

import io
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import OutputError, one_line

if TYPE_CHECKING:
    from PIL import Image

PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
"""Encoding takes half as long as with Pillow. At 1918x1280 masks are 15 % smaller; overlays and cutouts are up to 27 %
larger."""

MAX_PNG_SIDE = 1_000_000
"""Maximum height and width that libpng writes, in pixels."""

TO_OPENCV = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}


def encode_png(picture: "NDArray[Any] | Image.Image") -> bytes:
    """Return the bytes of a PNG file.

    Args:
        picture: uint8 or uint16 [height, width] (grey), or uint8 [height, width, 3 or 4] (RGB or RGBA).

    Raises:
        OutputError: a side is longer than `MAX_PNG_SIDE`.
        MemoryError: out of memory. OpenCV reports it as an error, or as False with half a file.
    """
    pixels = np.asarray(picture)
    refuse_long_sides(pixels)
    options = list(PNG_OPTIONS)
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # older versions of OpenCV use one filter for everything
        is_mask = pixels.ndim == 2 and pixels.dtype == np.uint8
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE if is_mask else cv2.IMWRITE_PNG_FILTER_UP]
    try:
        ordered = cv2.cvtColor(pixels, TO_OPENCV[pixels.shape[2]]) if pixels.ndim == 3 else pixels
        is_whole, content = cv2.imencode(".png", ordered, options)
    except cv2.error as error:
        raise MemoryError(f"PNG: cannot encode {list(pixels.shape)} ({one_line(str(error))})") from error
    if not is_whole:
        raise MemoryError(f"PNG: cannot encode {list(pixels.shape)}")
    return content.tobytes()


def encode_palette_png(mask: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]) -> bytes:
    """Return the bytes of a PNG file whose pixels are the values of `mask` [height, width], shown in 256 RGB colours.

    Raises:
        OutputError: a side is longer than `MAX_PNG_SIDE`.
    """
    from PIL import Image

    refuse_long_sides(mask)
    picture = Image.fromarray(mask)
    picture.putpalette([channel for colour in colours for channel in colour])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def refuse_long_sides(pixels: NDArray[Any]) -> None:
    """Raise an OutputError if libpng cannot write the picture."""
    if max(pixels.shape) > MAX_PNG_SIDE:
        raise OutputError(
            f"PNG: a side of {max(pixels.shape)} pixels cannot be written, expected at most {MAX_PNG_SIDE}; "
            "write .tif, or .npy"
        )
