"""Stored values of 8 and 16 bits to the levels that a model gets, by the (black, white) of its card."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.card import MAX_LEVEL, Levels
from runtime.image_files.warned import warn_once

OUTSIDE = 0.1
"""Share of a picture's values beyond black and white above which it is likely to be stored in another way."""


@lru_cache(maxsize=4)
def table_of(levels: Levels) -> NDArray[np.uint8]:
    """Return the level of every stored value of 16 bits, uint8 [65536]; the whole range gives a division by 257."""
    black, white = levels
    values = np.clip(np.arange(MAX_LEVEL + 1), black, white) - black
    return (values * 255 // (white - black)).astype(np.uint8)


def from_sixteen_bits(values: NDArray[np.integer], levels: Levels, name: str) -> NDArray[np.uint8]:
    """Convert stored values 0..65535, of any integer type, to uint8; one warning if many are beyond the levels."""
    black, white = levels
    share = float(((values < black) | (values > white)).mean())
    if share > OUTSIDE:
        warn_once(
            "outside",
            f"{name}: {share:.0%} of its values, which are {values.min()} to {values.max()}, are beyond the levels of "
            f"this model, {black} to {white}, and become black or white; scale them as the training images were",
        )
    result: NDArray[np.uint8] = table_of(levels)[values]
    return result


def from_eight_bits(pixels: NDArray[np.uint8], levels: Levels | None, name: str) -> NDArray[np.uint8]:
    """Apply levels to values of 8 bits.

    Values of 8 bits cannot be those of a model whose white is above 255: they count as scaled to its levels already,
    and one warning says so.
    """
    if levels is None or levels == (0, 255):
        return pixels
    black, white = levels
    if white <= 255:
        return table_of(levels)[pixels]
    warn_once(
        "8 bits",
        f"{name}: has 8 bits, and this model was trained on values from {black} to {white}; it is taken as scaled to "
        "0..255 from these already; give the original of 16 bits if it was scaled otherwise",
    )
    return pixels
