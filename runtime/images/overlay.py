"""Classes as colours over a picture, in strips, so that large pictures need little more memory."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = ((255, 64, 64), (64, 160, 255), (255, 208, 48), (96, 208, 96), (208, 96, 224), (64, 216, 216))
"""Overlay colours (RGB) of the foreground classes; further classes start again with the first."""

OPACITY = 0.5
"""Opacity of the tint, unless told otherwise: 0 leaves the image, 1 is the colour alone."""

STRIP = 2**20
"""Number of values in a strip, which has at least one row."""


def strips(shape: tuple[int, ...], size: int = STRIP) -> Iterator[slice]:
    """Split the rows of an array of this shape, [height, ...], into strips of `size` values."""
    rows = max(1, size * shape[0] // max(1, int(np.prod(shape))))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def displayable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [height, width, channels] as it can be shown, [height, width, 1 or 3].

    Of more than three channels the first three are shown, as red, green and blue; two become their mean.
    """
    if image.shape[2] != 2:
        return image[:, :, :3]
    grey: NDArray[np.uint8] = np.rint(image.mean(axis=2, keepdims=True, dtype=np.float32)).astype(np.uint8)
    return grey


def tinted(image: NDArray[np.uint8], mask: NDArray[np.uint8], opacity: float = OPACITY) -> NDArray[np.uint8]:
    """Tint an image, uint8 [height, width, channels], by the classes of `mask` [height, width]; 0 stays as it is.

    Returns a new array, uint8 RGB [height, width, 3].
    """
    values = np.arange(256, dtype=np.float32)[:, None]
    tables = np.rint(values + float(opacity) * (np.array(COLOURS, np.float32)[:, None] - values)).astype(np.uint8)
    picture = np.array(np.broadcast_to(displayable(image), (*mask.shape, 3)), order="C")
    for rows in strips(mask.shape):
        part, colours = picture[rows], (mask[rows] - 1) % len(COLOURS)
        for index in range(min(len(COLOURS), int(mask[rows].max()))):
            chosen = ((colours == index) & (mask[rows] > 0)).view(np.uint8)
            cv2.copyTo(cv2.LUT(part, tables[index : index + 1]), chosen, part)
    return picture


def shrunk(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize classes [height, width] to `size`, (height, width), by the nearest pixel."""
    smaller: NDArray[np.uint8] = np.asarray(
        cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), mask.dtype
    )
    return smaller
