"""Pictures for the proof, the gate and calibration: of a data set, of any folder of images, or synthetic ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.card import Images, ModelCard
from runtime.errors import DataError
from runtime.image import LIMITS, Limits, list_images
from runtime.model_file.golden import synthetic_image
from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.pairs import SPLITS, Layout, Pair, find_splits, image_folder
from unet_core.data.records import Record, Records, SampleDecoder
from unet_core.data.skipping import check_or_leave_out
from unet_core.reporting.progress import Display

MOST_IMAGES = 100
"""Number of images to measure on, and of those that int8 is calibrated on some of; they are spread evenly over all."""

SYNTHETIC_IMAGES = 8
"""Number of synthetic pictures that stand in for real ones."""

FittedImage = NDArray[np.uint8]
"""An image fitted to the network: uint8 [height, width, channels]."""

T = TypeVar("T")


class Examples(Protocol):
    """Pictures with labels at their original size, decoded on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures to measure on and pictures to calibrate on, which may be the same; labels count if `labelled`."""

    measured: Examples
    calibration: Examples
    labelled: bool
    images: Images = "data"

    def pictures(self, most: int) -> list[FittedImage]:
        """Return at most this many of the measured pictures, spread evenly over all."""
        return [self.measured[index][0] for index in spread(range(len(self.measured)), most)]


def load_samples(
    data: str | os.PathLike[str],
    card: ModelCard,
    *,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    calibrate: bool = True,
    skip_bad: bool = False,
    limits: Limits = LIMITS,
    display: Display | None = None,
) -> Samples:
    """Find and check the images under a folder, and their masks where it is laid out as for training.

    A data set's validation images are measured on and its training images calibrated on. Any other folder's images,
    or those of the one split that there is, serve for both; so do the measured ones, unless `calibrate`. A mask holds
    one class for each pixel, so where classes overlap no masks are read, and a note says so.

    Raises:
        DataError: there are no images, or some cannot be used, unless `skip_bad` leaves these out; the message lists
            them.
    """
    folder, display = Path(data), display or Display(quiet=True)
    layout = replace(layout or Layout(), arrays=card.input.channels == "raw")
    splits = [split for split in SPLITS if image_folder(folder, split).is_dir()]
    labelled = bool(splits) and not card.output.overlapping
    if labelled:
        train, val = find_splits(folder, layout, splits)
    elif splits:
        display.note("--data: masks hold one class for each pixel, and the network's overlap, so only images are used")
        train, val = [_images(image_folder(folder, split), layout) for split in (splits[0], splits[-1])]
    else:
        train, val = [], _images(folder, layout)
    sides = [spread(pairs, MOST_IMAGES) for pairs in (val, train) if pairs]
    labels = LabelSpec(
        classes=card.output.classes,
        ignore_index=ignore_index,
        class_offset=layout.class_offset,
        of_model=True,
    )
    sets = _checked_records(sides if calibrate else sides[:1], card, labels, limits, display, skip_bad)
    return Samples(measured=sets[0], calibration=sets[-1], labelled=labelled)


def load_pictures(
    data: str | os.PathLike[str],
    card: ModelCard,
    most: int,
    *,
    limits: Limits = LIMITS,
    display: Display | None = None,
) -> list[FittedImage]:
    """Load at most this many of the images that `load_samples` would measure on, without their masks.

    Raises:
        DataError: as `load_samples`.
    """
    folder = Path(data)
    inner = [side for side in (image_folder(folder, "val"), image_folder(folder, "train")) if side.is_dir()]
    pairs = spread(_images([*inner, folder][0], Layout(arrays=card.input.channels == "raw")), most)
    (records,) = _checked_records(
        [pairs], card, LabelSpec(classes=card.output.classes), limits, display or Display(quiet=True)
    )
    return [records[index][0] for index in range(len(records))]


def _images(folder: Path, layout: Layout) -> list[Pair]:
    """List the images of a folder as pairs without masks."""
    if folder.is_file():
        raise DataError(f"--data {folder}: is a file, expected a folder of images or a data set with train_images/")
    if not folder.is_dir():
        raise DataError(f"--data {folder}: no such folder; expected images, or a data set with train_images/")
    pairs = [Pair(image=path) for path in list_images(folder, arrays=layout.arrays)]
    if not pairs:
        raise DataError(f"--data {folder}: has no images; expected .jpg or .png files, or train_images/")
    return pairs


def _checked_records(
    sides: Sequence[Sequence[Pair]],
    card: ModelCard,
    labels: LabelSpec,
    limits: Limits,
    display: Display,
    skip_bad: bool = False,
) -> list[Records]:
    """Make records of the pairs of each side, and decode every file once to see that it can be."""
    decoder = SampleDecoder(input=card.input, labels=labels, truth_at_original=True, limits=limits)
    sets = [Records(pairs, decoder) for pairs in sides]
    with display.bar("checking images", sum(map(len, sets))) as advance:
        check_or_leave_out(sets, skip_bad, advance, display.note)
    return sets


def synthetic_samples(card: ModelCard) -> Samples:
    """Make samples that stand in for real images."""
    size, channels = card.input.size, card.architecture.in_channels
    nothing = np.full(size, IGNORED, np.uint8)
    records = [(synthetic_image(*size, channels, seed), nothing) for seed in range(SYNTHETIC_IMAGES)]
    return Samples(measured=records, calibration=records, labelled=False, images="synthetic")


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most this many of the items, evenly spaced."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[index] for index in places]
