"""A colour for each class in a palette picture, and their legend."""

import io
from typing import NamedTuple

from runtime.card import OutputSpec
from runtime.images.overlay import COLOURS


class ClassColour(NamedTuple):
    """A value of the mask, the class that it stands for, and its colour in palette pictures (RGB)."""

    value: int
    name: str
    colour: tuple[int, int, int]


def voc_colour(index: int) -> tuple[int, int, int]:
    """Colour of the PASCAL VOC data set: the bits of `index`, in turn, from the highest bits of red, green and blue."""
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue


PALETTE = [(0, 0, 0), *COLOURS, *map(voc_colour, range(1, 256 - len(COLOURS)))]
"""Colours (RGB) of the values 0 to 255: black, those of overlays, then those of PASCAL VOC; no two are the same."""


def legend_of(output: OutputSpec) -> list[ClassColour]:
    """Return the legend of masks with one class for each pixel; with one class, 0 is the background."""
    names = ["background", *output.classes] if output.thresholded else output.classes
    return [ClassColour(*entry) for entry in zip(range(256), names, PALETTE, strict=False)]


def legend_csv(output: OutputSpec) -> bytes:
    """Return the legend as the bytes of a CSV file, with colours as in HTML."""
    import csv

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\r\n")  # names with a carriage return get quotes then
    table.writerow(("value", "class", "colour"))
    table.writerows((value, name, "#{:02x}{:02x}{:02x}".format(*colour)) for value, name, colour in legend_of(output))
    return text.getvalue().replace("\r\n", "\n").encode(errors="replace")  # a card may hold half a character
