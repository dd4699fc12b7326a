"""Panels of a validation image: picture, truth, prediction and their difference side by side."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from runtime.image import resize
from runtime.images.overlay import COLOURS
from runtime.support.files import replacing
from unet_core.data.labels import BACKGROUND, IGNORED, Labels, present_labels, resize_labels

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
History = Sequence[Mapping[str, float | None]]

PANEL_SIDE = 480
"""Most pixels of the longer side of each picture in a panel."""

READABLE_SIDE = 160
"""Pixels of the longer side below which a picture is enlarged by a whole factor."""

CELL_WIDTH = 120
"""Least width of a picture's column, so that its caption and legend have room."""

MARGIN, GAP = 16, 8
"""White pixels around a panel, and between its pictures."""

PICTURES_TOP = MARGIN + 54
"""First row of the pictures; title and captions are above it."""

RIGHT, MISSED, FALSE = (0, 158, 115), (0, 114, 178), (213, 94, 0)
"""Colours (RGB) of the difference: bluish green, blue and vermillion of Okabe and Ito's "Color Universal Design"
(2008), which colour-blind readers can tell apart too. A wrong class among several has the colour of `FALSE`."""

FADED = (128, 240)
"""Greys of black and white in the difference; its three colours are darker than all of them."""

NOT_COUNTED: Colour = (38, 38, 38)
HATCH: Colour = (92, 92, 92)
"""Colours of `IGNORED` pixels: a dark ground, and diagonal lines that tell it from what is dark in the photograph."""

FIRST_COLOURS: tuple[Colour, ...] = (
    (48, 32, 208),
    *COLOURS,
    (176, 240, 0),
    (255, 0, 144),
    (255, 136, 24),
    (0, 120, 88),
    (136, 80, 24),
)
"""Tints (RGB) of the labels 0 to 11, of which 1 to 6 are those of `Segmentation.overlay`; any two differ by 40 in
CIELAB. `class_colours` has those of all labels."""

TINT, PALE_TINT = 0.5, 0.25
"""Opacity of tints: of a class (its outline is opaque), and of what is right where nearly all of the picture is."""

WHITE, INK, PALE_INK = (255, 255, 255), (24, 24, 24), (96, 96, 96)
TITLE_SIZE, CAPTION_SIZE, LEGEND_SIZE = 18, 14, 13

LEGEND_LINE, SWATCH = 22, 17
"""Pixels from one line of a panel's legend to the next, and from an entry's swatch to its text."""

LEGEND_ENTRIES = 24
"""Most classes that a panel's legend names."""

Legend = Sequence[tuple[Colour, str]]


def panel(image: Picture, predicted: Labels, truth: Labels, classes: tuple[str, ...], title: str) -> Picture:
    """Show image | truth | prediction | difference side by side, with captions, a title and a legend.

    Truth and prediction are tinted by class; with one class its 0, with several the class named "background" is left
    as it is. The difference is the image in faded grey: with one class, what is right is tinted `RIGHT`, what was
    missed is `MISSED` and what is false is `FALSE`; with several, right pixels are tinted `RIGHT`, the background's
    excepted, and wrong ones are `FALSE`. Pixels that do not count are hatched in the truth and the difference.

    Args:
        image: uint8 [height, width, 1 or 3].
        predicted, truth: labels, uint8 [height, width]; the truth may hold `IGNORED`.
        classes: the name of each class.
        title: one line above the panel; too long a one loses its middle.

    Returns:
        uint8 RGB [rows, columns, 3]. The longer side of each picture is at most `PANEL_SIDE`.

    Raises:
        ValueError: the sizes differ.
    """
    if not image.shape[:2] == predicted.shape == truth.shape:
        raise ValueError(f"image of {image.shape[:2]}, labels of {predicted.shape} and {truth.shape} do not match")
    image, predicted, truth = _shown_image(image), _shown_labels(predicted), _shown_labels(truth)
    plain = plain_label(classes)
    pictures = {
        "image": image,
        "truth": _tinted(image, truth, plain),
        "prediction": _tinted(image, predicted, plain),
        "difference": _difference(image, predicted, truth, classes),
    }
    return _page(title, pictures, _class_legend(predicted, truth, classes), _difference_legend(truth, classes))


def save_panel(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write uint8 RGB [height, width, 3] as a PNG file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _shown_image(image: Picture) -> Picture:
    size, factor = _shown_size(image.shape[0], image.shape[1])
    colour = np.broadcast_to(resize(image, size), (*size, 3))
    return colour.repeat(factor, axis=0).repeat(factor, axis=1)


def _shown_labels(labels: Labels) -> Labels:
    size, factor = _shown_size(labels.shape[0], labels.shape[1])
    return resize_labels(labels, size).repeat(factor, axis=0).repeat(factor, axis=1)


def _shown_size(height: int, width: int) -> tuple[tuple[int, int], int]:
    """Size (height, width) to resample to, and the whole factor to repeat pixels by after that."""
    longer = max(height, width)
    scale = min(1.0, PANEL_SIDE / longer)
    return (max(1, round(height * scale)), max(1, round(width * scale))), math.ceil(READABLE_SIDE / longer)


def plain_label(classes: tuple[str, ...]) -> int | None:
    """The label that is left without a tint."""
    if len(classes) == 1:
        return 0
    return classes.index(BACKGROUND) if BACKGROUND in classes else None


@cache
def class_colours() -> tuple[Colour, ...]:
    """The colour (RGB) of each label, 0 to 254: `FIRST_COLOURS`, then always the one farthest from all before it.

    Farthest is meant in CIELAB; greys and what is nearly black or white are left out.
    """
    steps = np.arange(0, 256, 15).astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=3).reshape(-1, 3)  # [18, 18, 18, 3] -> [5832, 3]
    places = _cielab(candidates)
    vivid = (np.abs(places[:, 0] - 57) < 28) & (np.hypot(places[:, 1], places[:, 2]) > 35)
    candidates, places = candidates[vivid], places[vivid]
    found = list(FIRST_COLOURS)
    distances = np.full(len(places), np.inf)
    for place in _cielab(np.array(found, np.uint8)):
        distances = np.minimum(distances, np.linalg.norm(places - place, axis=1))
    while len(found) < IGNORED:
        farthest = int(distances.argmax())
        red, green, blue = candidates[farthest].tolist()
        found.append((red, green, blue))
        distances = np.minimum(distances, np.linalg.norm(places - places[farthest], axis=1))
    return tuple(found)


def _cielab(colours: Picture) -> NDArray[np.float32]:
    """Lightness 0..100, a and b of uint8 RGB [colours, 3]."""
    return np.asarray(cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0], np.float32)


def _tinted(image: Picture, labels: Labels, plain: int | None) -> Picture:
    colours = np.array((*class_colours(), NOT_COUNTED), np.float32)[labels]  # [h, w, 3]
    foreground = labels != IGNORED if plain is None else (labels != IGNORED) & (labels != plain)
    opacity = np.where(_outline(labels), 1.0, TINT) * foreground
    return _hatched(_blended(image, colours, opacity), labels == IGNORED)


def _difference(image: Picture, predicted: Labels, truth: Labels, classes: tuple[str, ...]) -> Picture:
    luminance = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # [h, w], of ITU-R BT.601
    faded = np.rint(FADED[0] + luminance * (FADED[1] - FADED[0]) / 255).astype(np.uint8)
    wrong = predicted != truth
    right = ~wrong if (plain := plain_label(classes)) is None else ~wrong & (truth != plain)
    opacity = right * (TINT if len(classes) == 1 else PALE_TINT)
    result = _blended(np.repeat(faded[:, :, None], 3, axis=2), np.array(RIGHT, np.float32), opacity)
    result[wrong] = FALSE
    if len(classes) == 1:
        result[wrong & (truth == 1)] = MISSED
    return _hatched(result, truth == IGNORED)


def _outline(labels: Labels) -> NDArray[np.bool_]:
    """Pixels whose right or lower, left or upper neighbour has another label."""
    outline = np.zeros(labels.shape, bool)
    beside, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    outline[:, 1:] |= beside
    outline[:, :-1] |= beside
    outline[1:] |= below
    outline[:-1] |= below
    return outline


def _blended(image: Picture, colours: NDArray[np.float32], opacity: NDArray[np.floating]) -> Picture:
    below = image.astype(np.float32)
    return np.rint(below + opacity[:, :, None].astype(np.float32) * (colours - below)).astype(np.uint8)


def _hatched(image: Picture, where: NDArray[np.bool_]) -> Picture:
    """Draw the pixels that do not count, in place."""
    diagonal = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) % 8 < 2
    image[where] = NOT_COUNTED
    image[where & diagonal] = HATCH
    return image


def _class_legend(predicted: Labels, truth: Labels, classes: tuple[str, ...]) -> Legend:
    if len(classes) == 1:
        return [(class_colours()[1], classes[0])]
    shown = sorted({*present_labels(predicted), *present_labels(truth)} - {IGNORED, plain_label(classes)})
    legend = [(class_colours()[label], classes[label]) for label in shown[:LEGEND_ENTRIES]]
    rest = [(WHITE, f"and {len(shown) - LEGEND_ENTRIES} more")] if len(shown) > LEGEND_ENTRIES else []
    return [*legend, *rest]


def _difference_legend(truth: Labels, classes: tuple[str, ...]) -> Legend:
    wrong = [(MISSED, "missed"), (FALSE, "false")] if len(classes) == 1 else [(FALSE, "wrong")]
    ignored = [(NOT_COUNTED, "not counted")] if (truth == IGNORED).any() else []
    return [(RIGHT, "right"), *wrong, *ignored]


def _page(title: str, pictures: Mapping[str, Picture], class_legend: Legend, difference_legend: Legend) -> Picture:
    height, width = pictures["image"].shape[:2]
    cell = max(width, CELL_WIDTH)
    lefts = [MARGIN + index * (cell + GAP) for index in range(len(pictures))]
    keys = [*_placed(class_legend, lefts[1], 2 * cell + GAP), *_placed(difference_legend, lefts[3], cell)]
    bottom = PICTURES_TOP + height
    rows = bottom + 8 + LEGEND_LINE * (1 + max(line for _, line, _, _ in keys)) + MARGIN // 2
    page = Image.new("RGB", (lefts[-1] + cell + MARGIN, rows), WHITE)
    draw = ImageDraw.Draw(page)
    font = _font(TITLE_SIZE, "bold")
    draw.text((MARGIN, MARGIN + 14), _shortened(title, font, page.width - 2 * MARGIN), INK, font, anchor="ls")
    for left, (name, picture) in zip(lefts, pictures.items(), strict=True):
        draw.text((left, PICTURES_TOP - 8), name, PALE_INK, _font(CAPTION_SIZE), anchor="ls")
        page.paste(Image.fromarray(picture), (left, PICTURES_TOP))
    for left, line, colour, text in keys:
        top = bottom + 8 + LEGEND_LINE * line
        draw.rectangle((left, top + 4, left + 11, top + 15), colour)
        draw.text((left + SWATCH, top + 15), text, INK, _font(LEGEND_SIZE), anchor="ls")
    return np.array(page)


def _placed(legend: Legend, left: int, width: int) -> list[tuple[int, int, Colour, str]]:
    """Set the entries of a legend in lines of `width` pixels: (column, line, colour, text) of each."""
    placed, column, line, font = [], 0, 0, _font(LEGEND_SIZE)
    for colour, name in legend:
        text = _shortened(name, font, width - SWATCH)
        length = SWATCH + math.ceil(font.getlength(text))
        if column and column + length > width:
            column, line = 0, line + 1
        placed.append((left + column, line, colour, text))
        column += length + 12
    return placed


@cache
def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; Pillow's own font has ASCII only."""
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line of at most `width` pixels, its middle left out where it is longer."""
    text = printable(text)
    kept = len(text)
    result = text
    while kept and font.getlength(result) > width:
        kept -= 1
        result = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
    return result


def printable(text: str) -> str:
    """Names of files may hold line breaks and halves of surrogate pairs, which cannot be drawn."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
