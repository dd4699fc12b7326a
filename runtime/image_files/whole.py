"""Pixels that a decoder leaves out: Pillow fills them with zeros and says nothing.

Pillow writes the pixels in the file's order into a picture that is given to it. So that picture is filled with a colour
first: if the pixel that comes last in the file has any other colour, all were written. If it has just this colour, the
file is decoded again onto another one.
"""

import io
import os

from PIL import Image, _imaging

from runtime.image_files.damage import DamageError

FIRST = 2 + os.urandom(1)[0] % 250
"""A level that no stranger knows, since a picture that ends in it takes twice the time; masks hardly have it."""

MARKS = (FIRST, FIRST ^ 1)
"""Levels to decode onto."""


def load_whole(content: bytes, form: str, last: tuple[int, int]) -> Image.Image:
    """Decode a file whose last pixel is at `last`, (x, y).

    Raises:
        DamageError: the file lacks pixels.
    """
    for mark in MARKS:
        picture = Image.open(io.BytesIO(content), formats=(form,))
        bands = len(picture.getbands())
        level = mark if picture.mode != "1" else 255 * (mark == MARKS[0])
        colour = level if bands == 1 else (level,) * bands
        picture.im = _imaging.fill(picture.mode, picture.size, colour)
        picture.load()
        if picture.getpixel(last) != colour:
            return picture
    raise DamageError("pixels are missing at its end")
