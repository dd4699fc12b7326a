"""PIL images of every mode to uint8 arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import ImageError
from runtime.image_files.deep_colours import CONTENT, MOST_PIXELS, stored_colours
from runtime.image_files.formats import LEVELS
from runtime.images.arrays import FEW_LEVELS, is_told, levels_used, warn_of_few_levels
from runtime.images.pixels import pixels

STRIP = 2**20
"""Number of pixels that are converted at once."""

WHITE_16 = 0, 65_535
"""(black, white) of 16 bits."""


def to_array(picture: Image.Image, channels: str, name: str) -> NDArray[np.uint8]:
    """Convert a PIL image to uint8 [height, width, 3 or 1], in strips, so that no second copy is in memory."""
    width, height = picture.size
    array = np.empty((height, width, len(channels)), np.uint8)
    check_levels(picture, name)
    rows = max(1, STRIP // width)
    deep = DeepValues(max(picture.info.get(LEVELS) or WHITE_16))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        if strip.mode.startswith("I"):
            deep.add(np.asarray(strip))
        strip = to_eight_bits(strip)
        if strip.mode == "LAB":  # Pillow converts it to RGB only
            strip = strip.convert("RGB")
        values = pixels(strip if strip.mode == channels else strip.convert(channels))
        array[top : top + rows] = values.reshape(-1, width, len(channels))
    deep.warn_if_few(name)
    if CONTENT in picture.info:
        warn_of_lost_colours(array, picture.info[CONTENT], name)
    return array


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


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit pictures to 8 bits; Pillow's own conversion clips them to white."""
    if not picture.mode.startswith("I"):
        return picture
    black, white = picture.info.get(LEVELS) or WHITE_16
    grey = (np.asarray(picture).astype(np.uint32) * 255 // max(black, white)).astype(np.uint8)
    return Image.fromarray(grey if white else 255 - grey)
