"""A sheet of samples: images beside themselves with their masks laid over."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runtime.image import resize
from runtime.images.overlay import displayable
from unet_core.config import TrainConfig
from unet_core.data.labels import IGNORED, Labels, LabelSpec, present_labels, resize_labels
from unet_core.inspection.checking import ImageFacts, whole_images
from unet_core.reporting.panels import (
    CAPTION_SIZE,
    GAP,
    INK,
    LEGEND_SIZE,
    MARGIN,
    NOT_COUNTED,
    WHITE,
    Picture,
    class_colours,
    draw_labels,
    fit_text,
    placed,
    sans,
    save_panel,
    shown_channels,
)

SAMPLES, COLUMNS = 10, 2
"""Number of samples on a sheet, and in a row."""

SIDE = 280
"""Length of a picture's longer side, in pixels."""

TITLE, LEGEND = 26, 22
"""Height of a sample's title, and of a line of the legend, in pixels."""


def spread(count: int, most: int = SAMPLES) -> list[int]:
    """At most this many of `count` indices, evenly spaced."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, most)).round()]


def save_sheet(path: Path, samples: Sequence[ImageFacts], config: TrainConfig) -> None:
    """Draw samples, two in a row, with a legend of the classes that occur.

    Raises:
        OutputError: the file cannot be written.
    """
    spec, decoder = config.labels, whole_images(config)
    cells, titles, present = [], [], set[int]()
    for sample in samples:
        image, labels = decoder.make(sample.pair)
        cells.append([small(image), tinted(small(image), labels, spec)])
        height, width = sample.size
        size = ", ".join(filter(None, (f"{width}x{height}", shown_channels(image.shape[2]))))
        titles.append(f"{sample.pair.image.parent.name}/{sample.pair.label}   {size}")
        present |= {*present_labels(labels)}
    width = 2 * SIDE + GAP
    rows = [range(start, min(start + COLUMNS, len(cells))) for start in range(0, len(cells), COLUMNS)]
    heights = [TITLE + max(cells[index][0].shape[0] for index in row) + MARGIN for row in rows]
    names = ["", *spec.classes] if spec.binary else [*spec.classes]
    legend = [
        (NOT_COUNTED, "not counted") if label == IGNORED else (class_colours()[label], names[label])
        for label in sorted(present - {spec.background})
    ]
    page_width = 2 * MARGIN + COLUMNS * width + (COLUMNS - 1) * MARGIN
    entries = placed(legend, MARGIN, page_width - 2 * MARGIN)
    lines = 1 + max((line for _, line, _, _ in entries), default=-1)
    page = Image.new("RGB", (page_width, MARGIN + sum(heights) + LEGEND * lines + MARGIN // 2), WHITE)
    draw, top = ImageDraw.Draw(page), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            font = sans(CAPTION_SIZE)
            draw.text((left, top + TITLE - 8), fit_text(titles[index], font, width), INK, font, anchor="ls")
            for place, picture in enumerate(cells[index]):
                page.paste(Image.fromarray(picture), (left + place * (SIDE + GAP), top + TITLE))
        top += height
    for left, line, colour, text in entries:
        draw.rectangle((left, top + LEGEND * line, left + 11, top + LEGEND * line + 11), colour)
        draw.text((left + 17, top + LEGEND * line + 11), text, INK, sans(LEGEND_SIZE), anchor="ls")
    save_panel(path, np.array(page))


def small(image: Picture) -> Picture:
    """Resize uint8 [height, width, channels] to RGB with a longer side of `SIDE`; small images are enlarged."""
    scale = SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    return np.ascontiguousarray(np.broadcast_to(resize(displayable(image), size), (*size, 3)))


def tinted(image: Picture, labels: Labels, spec: LabelSpec) -> Picture:
    """Lay labels of any size over an image."""
    return draw_labels(image, resize_labels(labels, image.shape[:2]), spec.background)
