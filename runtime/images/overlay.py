"""Classes as colours over a picture, worked on in strips so that large pictures need little besides themselves."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = ((255, 64, 64), (64, 160, 255), (255, 208, 48), (96, 208, 96), (208, 96, 224), (64, 216, 216))
"""Overlay colours (RGB) of the foreground classes, repeated in turn."""

STRIP = 2**20
"""Pixels of a strip, at least one row."""


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of [height, ...], some at a time."""
    rows = max(1, STRIP * shape[0] // max(1, int(np.prod(shape))))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def tinted(image: NDArray[np.uint8], mask: NDArray[np.uint8], opacity: float) -> NDArray[np.uint8]:
    """Lay the colour of each class above 0 in `mask` [height, width] over uint8 [height, width, 3 or 1]: new RGB."""
    values = np.arange(256, dtype=np.float32)[:, None]
    tables = np.rint(values + float(opacity) * (np.array(COLOURS, np.float32)[:, None] - values)).astype(np.uint8)
    picture = np.array(np.broadcast_to(image, (*mask.shape, 3)), order="C")
    for rows in strips(mask.shape):
        part, colours = picture[rows], (mask[rows] - 1) % len(COLOURS)
        for index in range(min(len(COLOURS), int(mask[rows].max()))):
            chosen = ((colours == index) & (mask[rows] > 0)).view(np.uint8)
            cv2.copyTo(cv2.LUT(part, tables[index : index + 1]), chosen, part)
    return picture


def shrunk(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Classes [height, width] at another size (height, width), each as that of the pixel nearest to its centre."""
    smaller: NDArray[np.uint8] = np.asarray(
        cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), mask.dtype
    )
    return smaller
