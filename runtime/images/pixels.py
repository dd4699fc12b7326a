"""The pixels of a PIL image as an array, copied in one piece.

NumPy asks Pillow for them, which copies them in pieces of 64 kB and joins these. The pieces' places are not given back
to the system where a small block that malloc has cached for a thread lies above them, so a process whose many threads
decode images of all sizes grows for hours. One piece also takes half the time.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLES = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}
"""Bytes of a pixel in each mode of 8 bits; the other modes are left to NumPy."""


def pixels(picture: Image.Image) -> NDArray[Any]:
    """Return what `np.asarray` does: uint8 [height, width] or [height, width, channels], or another type's pixels.

    The array may be read-only.
    """
    samples = SAMPLES.get(picture.mode)
    if samples is None:
        return np.asarray(picture)
    picture.load()
    width, height = picture.size
    encoder = Image._getencoder(picture.mode, "raw", (picture.mode,))
    encoder.setimage(picture.im, (0, 0, width, height))
    _, _, content = encoder.encode(width * height * samples)
    return np.frombuffer(content, np.uint8).reshape((height, width, samples) if samples > 1 else (height, width))
