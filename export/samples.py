"""Real images to prove, gate and calibrate on: a data set in Carvana's layout, or any folder of images."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.errors import DataError
from runtime.image import list_images, place, restore
from unet_core.cache import prepare
from unet_core.display import Display
from unet_core.labels import LabelSpec
from unet_core.metrics import Metrics
from unet_core.pairs import Layout, Pair, find_splits, has_validation, image_folder
from unet_core.records import Recipe, Records
from unet_core.validation import Prediction, measure

MOST_IMAGES = 100
"""Images of each side that are used, spread evenly over all."""

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [batch, h, w, channels] -> probability float32 [batch, classes, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images to measure on, with their masks where `labelled`, and others (or the same) to calibrate on."""

    measured: Records
    calibration: Records
    labelled: bool

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """The measured images as the network sees them, uint8 [height, width, channels]."""
        return (self.measured[index][0] for index in range(len(self.measured)))


def load_samples(
    data: str | os.PathLike[str],
    card: ModelCard,
    *,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    display: Display | None = None,
) -> Samples:
    """Find and check the images under a folder.

    With train_images/ in it, validation images are measured on and training images are calibrated on; otherwise the
    folder's own images serve for both, without masks.

    Raises:
        DataError: no images, or some that cannot be used, which are listed.
    """
    folder, display = Path(data), display or Display(quiet=True)
    labelled = image_folder(folder, "train").is_dir() or has_validation(folder)
    if labelled:
        train, val = find_splits(folder, layout)
        sides = (_spread(val), _spread(train))
    else:
        if not folder.is_dir():
            raise DataError(f"--data {folder}: no such folder; expected images, or a data set with train_images/")
        images = [Pair(image=path) for path in list_images(folder)]
        if not images:
            raise DataError(f"--data {folder}: has no images; expected .jpg or .png files, or train_images/")
        sides = (_spread(images), _spread(images))
    labels = LabelSpec(classes=card.output.classes, ignore_index=ignore_index, of_model=True)
    recipe = Recipe(input=card.input, labels=labels, truth_at_original=True)
    measured, calibration = (Records(pairs, recipe) for pairs in sides)
    sets = (measured, calibration) if labelled else (measured,)
    with display.bar("checking images", sum(map(len, sets))) as advance:
        prepare(sets, None, advance, display.note)
    return Samples(measured=measured, calibration=calibration, labelled=labelled)


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """At most `MOST_IMAGES`, evenly spaced."""
    places = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_IMAGES)).round().astype(int)
    return [pairs[index] for index in places]


def metrics_of(run: Run, records: Records, card: ModelCard) -> Metrics:
    """What a model gets on images with masks, at their original size."""
    return measure(_predictions(run, records, card), card)


def _predictions(run: Run, records: Records, card: ModelCard) -> Iterator[Prediction]:
    for index in range(len(records)):
        picture, truth = records[index]
        fitted = place(picture, (truth.shape[0], truth.shape[1]), card.input)
        yield index, restore(run(picture[None])[0], fitted), truth
