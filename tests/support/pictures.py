"""Pictures to encode and decode."""

import io

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), np.uint8)
GREY = PIXELS[:, :, 0]
BLACK_WHITE = np.array([[0, 255, 255], [255, 0, 255]], np.uint8)


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def palette_picture(indices, colours):
    """A palette image: indices [h, w], colours [(r, g, b), ...]."""
    picture = Image.fromarray(np.asarray(indices, np.uint8)).copy()
    result = Image.new("P", picture.size)
    result.putdata(list(np.asarray(indices).ravel().tolist()))
    result.putpalette([value for colour in colours for value in colour])
    return result
