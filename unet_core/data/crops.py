"""Crops of training pictures, some of which are chosen to contain foreground."""

import cv2
import numpy as np
from numpy.typing import NDArray

from unet_core.data.labels import IGNORED, Labels


def crop(
    image: NDArray[np.uint8],
    labels: Labels,
    size: tuple[int, int],
    random: np.random.Generator,
    foreground_share: float,
    background: int | None = 0,
) -> tuple[NDArray[np.uint8], Labels]:
    """Cut a random window of `size` (height, width) out of image and labels.

    A smaller image is padded by repeating its edge, with `IGNORED` labels. In `foreground_share` of the cases the
    window contains foreground, if there is any: first a class other than `background` is drawn, then one of its pixels,
    so that rare classes come up too (as in nnU-Net, Isensee et al., 2021).
    """
    height, width = size
    bottom, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if bottom or right:
        image = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge")
        labels = np.pad(labels, ((0, bottom), (0, right)), constant_values=IGNORED)
    point = foreground_point(labels, random, background) if random.random() < foreground_share else None
    corner = []
    for axis, side in enumerate(size):
        low, high = 0, image.shape[axis] - side
        if point is not None:
            low, high = max(low, point[axis] - side + 1), min(high, point[axis])
        corner.append(int(random.integers(low, high + 1)))
    window = np.s_[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    return image[window], labels[window]


def foreground_point(labels: Labels, random: np.random.Generator, background: int | None) -> tuple[int, int] | None:
    """Draw a class other than the background, then one of its pixels (row, column); None if there is none."""
    counts = cv2.calcHist([labels], [0], None, [IGNORED + 1], [0, IGNORED + 1])
    if background is not None:
        counts[background] = 0
    classes = np.flatnonzero(counts[:IGNORED])
    if not len(classes):
        return None
    pixels = np.flatnonzero(labels == random.choice(classes))
    row, column = divmod(int(random.choice(pixels)), labels.shape[1])
    return row, column
