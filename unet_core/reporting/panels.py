"""Panels of validation images: picture, truth, prediction and their difference side by side."""

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
from runtime.images.overlay import COLOURS, displayable
from runtime.support.files import replacing
from unet_core.data.labels import IGNORED, Labels, LabelSpec, present_labels, resize_labels

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
PANELS = 8
"""Number of validation images, those with the lowest Dice, that are drawn after each best epoch."""

PANEL_SIDE = 480
"""Maximum length of a picture's longer side in a panel, in pixels."""

READABLE_SIDE = 160
"""Length of the longer side below which a picture is enlarged by a whole factor, in pixels."""

CELL_WIDTH = 120
"""Minimum width of a picture's column, in pixels, so that its caption and legend have room."""

MARGIN, GAP = 16, 8
"""Width of the white margin of a panel, and of the gap between its pictures, in pixels."""

PICTURES_TOP = MARGIN + 54
"""First pixel row of the pictures; title and captions are above it."""

RIGHT, MISSED, FALSE = (0, 158, 115), (0, 114, 178), (213, 94, 0)
"""Colours (RGB) of the difference: bluish green, blue and vermillion of Okabe and Ito's "Color Universal Design"
(2008), which colour-blind readers can tell apart too. A wrong class among several has the colour of `FALSE`."""

FADED = (128, 240)
"""Greys that stand for black and white in the difference; its three colours are darker than all of them."""

NOT_COUNTED: Colour = (38, 38, 38)
HATCH: Colour = (92, 92, 92)
"""Colours of `IGNORED` pixels: a dark ground, and diagonal lines that tell them from dark parts of the photograph."""

FIRST_COLOURS: tuple[Colour, ...] = (
    (48, 32, 208),
    *COLOURS,
    (176, 240, 0),
    (255, 0, 144),
    (255, 136, 24),
    (0, 120, 88),
    (136, 80, 24),
)
"""Tints (RGB) of the labels 0 to 11; those of 1 to 6 are the colours of `Segmentation.overlay`. Any two differ by 40 in
CIELAB. `class_colours` has the tints of all labels."""

TINT, PALE_TINT = 0.5, 0.25
"""Opacity of a class's tint (its outline is opaque), and of right pixels with several classes, since most are right."""

WHITE, INK, PALE_INK = (255, 255, 255), (24, 24, 24), (96, 96, 96)
TITLE_SIZE, CAPTION_SIZE, LEGEND_SIZE = 18, 14, 13

LEGEND_LINE, SWATCH = 22, 17
"""Distance from one line of a panel's legend to the next, and from an entry's swatch to its text, in pixels."""

LEGEND_ENTRIES = 24
"""Maximum number of classes that a panel's legend names."""

Legend = Sequence[tuple[Colour, str]]


def panel(image: Picture, predicted: Labels, truth: Labels, classes: tuple[str, ...], title: str) -> Picture:
    """Draw image | truth | prediction | difference side by side, with captions, a title and a legend.

    Truth and prediction are tinted by class; the background is left as it is. The difference is the image in faded
    grey. With one class, right pixels of the class are tinted `RIGHT`, missed ones are `MISSED` and false ones `FALSE`.
    With several, right pixels are tinted `RIGHT`, except those of the background, and wrong ones are `FALSE`. Pixels
    that do not count are hatched in the truth and the difference.

    Args:
        image: uint8 [height, width, channels]; of other channels than colour or grey, see `displayable`.
        predicted, truth: labels, uint8 [height, width]; the truth may hold `IGNORED`.
        classes: the name of each class.
        title: one line above the panel; the middle of a long title is left out.

    Returns:
        uint8 RGB [rows, columns, 3]. The longer side of each picture is at most `PANEL_SIDE`.

    Raises:
        ValueError: the sizes differ.
    """
    if not image.shape[:2] == predicted.shape == truth.shape:
        raise ValueError(f"image of {image.shape[:2]}, labels of {predicted.shape} and {truth.shape} do not match")
    longer = max(truth.shape)
    scale, factor = min(1.0, PANEL_SIDE / longer), math.ceil(READABLE_SIDE / longer)
    size = max(1, round(truth.shape[0] * scale)), max(1, round(truth.shape[1] * scale))
    caption = f"image, {shown_channels(image.shape[2])}".removesuffix(", ")
    image = enlarged(np.broadcast_to(resize(displayable(image), size), (*size, 3)), factor)
    predicted, truth = (enlarged(resize_labels(labels, size), factor) for labels in (predicted, truth))
    background = LabelSpec(classes=classes).background
    pictures = {
        caption: image,
        "truth": draw_labels(image, truth, background),
        "prediction": draw_labels(image, predicted, background),
        "difference": draw_difference(image, predicted, truth, len(classes), background),
    }
    wrong = [(MISSED, "missed"), (FALSE, "false")] if len(classes) == 1 else [(FALSE, "wrong")]
    ignored = [(NOT_COUNTED, "not counted")] if (truth == IGNORED).any() else []
    return draw_page(title, pictures, class_legend(predicted, truth, classes), [(RIGHT, "right"), *wrong, *ignored])


def shown_channels(count: int) -> str:
    """Name the channels of an image of so many that a picture shows; "" for colour and grey."""
    return "" if count in (1, 3) else "mean of 2 channels" if count == 2 else f"channels 1-3 of {count}"


def save_panel(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write uint8 RGB [height, width, 3] as a PNG file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def enlarged(picture: Picture, factor: int) -> Picture:
    """Repeat every pixel `factor` times to the right and down; uint8 [height, width, ...]."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@cache
def class_colours() -> tuple[Colour, ...]:
    """The colour (RGB) of each label, 0 to 254: `FIRST_COLOURS`, then always the colour farthest from all before it.

    Distances are those in CIELAB; greys and colours near black or white are left out.
    """
    steps = np.arange(0, 256, 15).astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=3).reshape(-1, 3)  # [18, 18, 18, 3] -> [5832, 3]
    places = to_cielab(candidates)
    vivid = (np.abs(places[:, 0] - 57) < 28) & (np.hypot(places[:, 1], places[:, 2]) > 35)
    candidates, places = candidates[vivid], places[vivid]
    found = list(FIRST_COLOURS)
    distances = np.full(len(places), np.inf)
    for place in to_cielab(np.array(found, np.uint8)):
        distances = np.minimum(distances, np.linalg.norm(places - place, axis=1))
    while len(found) < IGNORED:
        farthest = int(distances.argmax())
        red, green, blue = candidates[farthest].tolist()
        found.append((red, green, blue))
        distances = np.minimum(distances, np.linalg.norm(places - places[farthest], axis=1))
    return tuple(found)


def to_cielab(colours: Picture) -> NDArray[np.float32]:
    """Convert uint8 RGB [colours, 3] to lightness 0..100, a and b."""
    return np.asarray(cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0], np.float32)


def draw_labels(image: Picture, labels: Labels, background: int | None) -> Picture:
    """Lay the colour of each label over the image, with opaque outlines; pixels of `background` stay as they are."""
    colours = np.array((*class_colours(), NOT_COUNTED), np.float32)[labels]  # [h, w, 3]
    foreground = labels != IGNORED if background is None else (labels != IGNORED) & (labels != background)
    outline = np.zeros(labels.shape, bool)  # pixels that have a neighbour of another label
    beside, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    outline[:, 1:] |= beside
    outline[:, :-1] |= beside
    outline[1:] |= below
    outline[:-1] |= below
    return hatched(blended(image, colours, np.where(outline, 1.0, TINT) * foreground), labels == IGNORED)


def draw_difference(image: Picture, predicted: Labels, truth: Labels, classes: int, background: int | None) -> Picture:
    """Draw right and wrong pixels over the image in faded grey; see `panel`."""
    luminance = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # [h, w], of ITU-R BT.601
    faded = np.rint(FADED[0] + luminance * (FADED[1] - FADED[0]) / 255).astype(np.uint8)
    wrong = predicted != truth
    right = ~wrong if background is None else ~wrong & (truth != background)
    opacity = right * (TINT if classes == 1 else PALE_TINT)
    result = blended(np.repeat(faded[:, :, None], 3, axis=2), np.array(RIGHT, np.float32), opacity)
    result[wrong] = FALSE
    if classes == 1:
        result[wrong & (truth == 1)] = MISSED
    return hatched(result, truth == IGNORED)


def blended(image: Picture, colours: NDArray[np.float32], opacity: NDArray[np.floating]) -> Picture:
    """Lay colours [height, width, 3] or [3] over the image with an opacity of 0..1, [height, width]."""
    below = image.astype(np.float32)
    return np.rint(below + opacity[:, :, None].astype(np.float32) * (colours - below)).astype(np.uint8)


def hatched(image: Picture, where: NDArray[np.bool_]) -> Picture:
    """Hatch the pixels that do not count, in place."""
    diagonal = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) % 8 < 2
    image[where] = NOT_COUNTED
    image[where & diagonal] = HATCH
    return image


def class_legend(predicted: Labels, truth: Labels, classes: tuple[str, ...]) -> Legend:
    """The colours and names of the classes that occur, without the background, and the number of those left out."""
    if len(classes) == 1:
        return [(class_colours()[1], classes[0])]
    left_out = {IGNORED, LabelSpec(classes=classes).background}
    shown = sorted({*present_labels(predicted), *present_labels(truth)} - left_out)
    legend = [(class_colours()[label], classes[label]) for label in shown[:LEGEND_ENTRIES]]
    rest = [(WHITE, f"and {len(shown) - LEGEND_ENTRIES} more")] if len(shown) > LEGEND_ENTRIES else []
    return [*legend, *rest]


def draw_page(title: str, pictures: Mapping[str, Picture], classes: Legend, differences: Legend) -> Picture:
    """Draw the pictures with their captions under a title, and below them the two legends."""
    height, width = next(iter(pictures.values())).shape[:2]
    cell = max(width, CELL_WIDTH, *(math.ceil(sans(CAPTION_SIZE).getlength(name)) for name in pictures))
    lefts = [MARGIN + index * (cell + GAP) for index in range(len(pictures))]
    keys = [*placed(classes, lefts[1], 2 * cell + GAP), *placed(differences, lefts[3], cell)]
    bottom = PICTURES_TOP + height
    rows = bottom + 8 + LEGEND_LINE * (1 + max(line for _, line, _, _ in keys)) + MARGIN // 2
    page = Image.new("RGB", (lefts[-1] + cell + MARGIN, rows), WHITE)
    draw = ImageDraw.Draw(page)
    font = sans(TITLE_SIZE, "bold")
    draw.text((MARGIN, MARGIN + 14), fit_text(title, font, page.width - 2 * MARGIN), INK, font, anchor="ls")
    for left, (name, picture) in zip(lefts, pictures.items(), strict=True):
        draw.text((left, PICTURES_TOP - 8), name, PALE_INK, sans(CAPTION_SIZE), anchor="ls")
        page.paste(Image.fromarray(picture), (left, PICTURES_TOP))
    for left, line, colour, text in keys:
        top = bottom + 8 + LEGEND_LINE * line
        draw.rectangle((left, top + 4, left + 11, top + 15), colour)
        draw.text((left + SWATCH, top + 15), text, INK, sans(LEGEND_SIZE), anchor="ls")
    return np.array(page)


def placed(legend: Legend, left: int, width: int) -> list[tuple[int, int, Colour, str]]:
    """Set the entries of a legend in lines of `width` pixels: (column, line, colour, text) of each."""
    entries, column, line, font = [], 0, 0, sans(LEGEND_SIZE)
    for colour, name in legend:
        text = fit_text(name, font, width - SWATCH)
        length = SWATCH + math.ceil(font.getlength(text))
        if column and column + length > width:
            column, line = 0, line + 1
        entries.append((left + column, line, colour, text))
        column += length + 12
    return entries


@cache
def sans(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    """DejaVu Sans in a size in pixels, which comes with matplotlib; Pillow's own font has ASCII only."""
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Leave out the middle of a text that is longer than `width` pixels."""
    text = printable(text)
    kept = len(text)
    result = text
    while kept and font.getlength(result) > width:
        kept -= 1
        result = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
    return result


def printable(text: str) -> str:
    """Replace characters that cannot be drawn: file names may hold line breaks and halves of surrogate pairs."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
