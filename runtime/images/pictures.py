"""PIL images of every mode to uint8 arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.card import Levels
from runtime.errors import ImageError
from runtime.image_files.decoding import TURNS, turned_array
from runtime.image_files.deep_colours import CONTENT, MOST_PIXELS, stored_colours
from runtime.image_files.formats import LEVELS, MOST, TURN
from runtime.image_files.warned import is_told
from runtime.images.arrays import FEW_LEVELS, from_array, levels_used, to_levels, warn_of_few_levels
from runtime.images.levels import from_eight_bits, from_sixteen_bits
from runtime.images.pixels import pixels

STRIP = 2**20
"""Number of pixels that are converted at once."""

WHITE_16 = 0, 65_535
"""(black, white) of 16 bits."""


def to_array(picture: Image.Image, channels: str, name: str, levels: Levels | None = None) -> NDArray[np.uint8]:
    """Convert a PIL image to uint8 [height, width, 3 or 1], in strips, so that no second copy is in memory.

    `levels` are the (black, white) of stored values.
    """
    width, height = picture.size
    if levels is not None and CONTENT in picture.info:
        return from_array(from_sixteen_bits(deep_colours(picture, name), levels, name), channels)
    array = np.empty((height, width, len(channels)), np.uint8)
    check_levels(picture, name)
    rows = max(1, STRIP // width)
    deep = DeepValues(max(picture.info.get(LEVELS) or WHITE_16))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        if strip.mode.startswith("I"):
            deep.add(np.asarray(strip))
        strip = to_eight_bits(strip, levels, name)
        if strip.mode == "LAB":  # Pillow converts it to RGB only
            strip = strip.convert("RGB")
        values = pixels(strip if strip.mode == channels else strip.convert(channels))
        array[top : top + rows] = values.reshape(-1, width, len(channels))
    if levels is not None:
        return array if picture.mode.startswith("I") else from_eight_bits(array, levels, name)
    deep.warn_if_few(name)
    if CONTENT in picture.info:
        warn_of_lost_colours(array, picture.info[CONTENT], name)
    return array


def all_channels(picture: Image.Image, name: str, levels: Levels | None = None) -> NDArray[np.uint8]:
    """Convert a PIL image to uint8 [height, width, channels] with all of its channels: grey or RGB, and alpha.

    Other colours become RGB. `levels` are the (black, white) of stored values.
    """
    if CONTENT in picture.info:
        stored = stored_colours(picture.info[CONTENT], alpha=True)
        if stored is not None:
            turn = picture.info.get(TURN, 1)
            return to_levels(turned_array(stored, turn) if turn in TURNS else stored, levels, name)
    mode = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode)
    if mode in ("LA", "RGBA"):
        return from_eight_bits(pixels(picture if mode == picture.mode else picture.convert(mode)), levels, name)
    is_grey = mode in ("1", "L", "F") or mode.startswith("I")
    return to_array(picture, "L" if is_grey else "RGB", name, levels)


def deep_colours(picture: Image.Image, name: str) -> NDArray[np.uint16]:
    """Return the stored colours of a file of 16 bits, uint16 [height, width, 3], upright.

    Raises:
        ImageError: they are of a kind of which decoders give 8 bits alone.
    """
    stored = stored_colours(picture.info[CONTENT])
    if stored is None:
        raise ImageError(
            f"{name}: has colours of 16 bits of which decoders keep 8, and this model needs their stored values; save "
            "it as an RGB PNG or TIFF of 16 bits, or give the array"
        )
    turn = picture.info.get(TURN, 1)
    return turned_array(stored, turn) if turn in TURNS else stored


def stored_values(picture: Image.Image, name: str) -> tuple[NDArray[Any], int]:
    """Return the integers that a picture's file stores, in any shape, and the largest that its header allows.

    Raises:
        ImageError: as `to_array`.
    """
    check_levels(picture, name)
    if picture.mode.startswith("I"):
        return stored_greys(picture), picture.info.get(MOST) or max(picture.info.get(LEVELS) or WHITE_16)
    if CONTENT in picture.info:
        return deep_colours(picture, name), WHITE_16[1]
    return pixels(picture if picture.mode in ("L", "RGB") else picture.convert("RGB")), 255


def stored_greys(picture: Image.Image) -> NDArray[Any]:
    """Return the values of a grey picture of 16 bits as its file has them, where a PGM's were scaled."""
    values, most = np.asarray(picture), picture.info.get(MOST, WHITE_16[1])
    return values if most == WHITE_16[1] else np.rint(values * (most / WHITE_16[1])).astype(np.uint16)


def warn_of_lost_colours(array: NDArray[np.uint8], content: bytes, name: str) -> None:
    """Warn, once, of a file with colours of 16 bits that become few levels; of a large one by its upper bits alone."""
    if is_told("16-bit") or levels_used(array) >= FEW_LEVELS:
        return
    stored = stored_colours(content) if array.shape[0] * array.shape[1] <= MOST_PIXELS else None
    if stored is None:
        stored = np.array([257 * int(array.min()), min(257 * int(array.max()) + 256, WHITE_16[1])], np.uint16)
    deep = DeepValues(WHITE_16[1])
    deep.add(stored)
    deep.warn_if_few(name)


class DeepValues:
    """The range of a picture's values of more than 8 bits, seen in parts; `white` is the value that becomes 255."""

    def __init__(self, white: int) -> None:
        self.white, self.low, self.high, self.is_rounded = white, white, 0, False

    def add(self, values: NDArray[Any]) -> None:
        """Take note of a part."""
        self.low, self.high = min(self.low, int(values.min())), max(self.high, int(values.max()))
        self.is_rounded = self.is_rounded or bool((values.astype(np.uint32) * 255 % self.white).any())

    def warn_if_few(self, name: str) -> None:
        """Warn, once, of different values that become few levels of 8 bits."""
        used = self.high * 255 // self.white - self.low * 255 // self.white + 1
        if self.is_rounded and used < FEW_LEVELS:
            warn_of_few_levels(name, "16-bit", (self.low, self.high), used, self.white)


def check_levels(picture: Image.Image, name: str) -> None:
    """Raise an ImageError for floating-point pixels, or 32-bit values out of the range of 16 bits."""
    if picture.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels, expected 8 or 16 bits an integer channel; convert it")
    if picture.mode == "I" and LEVELS not in picture.info:  # 32-bit files hold anything
        low, high = (int(value) for value in np.asarray(picture.getextrema()).tolist())
        if low < 0 or not 255 < high <= 65_535:
            raise ImageError(f"{name}: has 32-bit values {low}..{high}, expected 16 bits; convert it")


def to_eight_bits(picture: Image.Image, levels: Levels | None, name: str) -> Image.Image:
    """Scale 16-bit pictures to 8 bits; Pillow's own conversion clips them to white."""
    if not picture.mode.startswith("I"):
        return picture
    black, white = picture.info.get(LEVELS) or WHITE_16
    if levels is not None:
        grey = from_sixteen_bits(stored_greys(picture), levels, name)
        return Image.fromarray(grey if white else 255 - grey)
    grey = (np.asarray(picture).astype(np.uint32) * 255 // max(black, white)).astype(np.uint8)
    return Image.fromarray(grey if white else 255 - grey)
