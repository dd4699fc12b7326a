"""Pixels of files, and the masks that the brightness model makes of pictures whose channels are all the same grey."""

import numpy as np
from PIL import Image


def pixels_of(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def mask_of(path):
    return np.where(pixels_of(path)[:, :, 0] > 127, 255, 0)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())
