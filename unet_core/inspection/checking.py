"""Every image and mask of a data set decoded once: what training would refuse, and figures of all others."""

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.support.cpu_count import available_threads
from runtime.support.files import write_text
from unet_core.config import TrainConfig, setting_text
from unet_core.data.faults import below, problems_table, shared_image_files, surplus_mask_files
from unet_core.data.labels import IGNORED
from unet_core.data.levels import FOUND
from unet_core.data.pairs import SPLITS, Pair, find_splits, image_folder, mask_folder
from unet_core.data.records import Records, SampleDecoder, label_counts
from unet_core.data.stored_values import find_levels
from unet_core.training.data_notes import check_masks


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Figures of an image and its mask at their own size; `counts` are those of `label_counts`.

    `levels`: pixels of each value, int64 [256], over all channels. `means`: mean of each channel. `labels`: pixels of
    each label, int64 [256].
    """

    pair: Pair
    split: str
    size: tuple[int, int]
    grey: bool
    levels: NDArray[np.int64]
    means: NDArray[np.float64]
    labels: NDArray[np.int64]
    counts: tuple[int, int, NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class DataFindings:
    """Figures of the pairs of a data set that can be used, and the faults of all others.

    `faults`: pairs and the messages of their errors. `others`: files that training would only note, and why.
    """

    images: Sequence[ImageFacts]
    faults: Sequence[tuple[Pair, str]]
    others: Sequence[tuple[Path, str]]

    @property
    def problems(self) -> int:
        """Number of all faults, those that training would only note among them."""
        return len(self.faults) + len(self.others)

    @property
    def total(self) -> int:
        """Number of all pairs."""
        return len(self.images) + len(self.faults)


def check_data_set(config: TrainConfig, advance: Callable[[int], Callable[..., None]]) -> DataFindings:
    """Decode all pairs as training with these settings would.

    `advance` gets the number of pairs and returns the function that is called after each of them.

    Raises:
        DataError: a folder is missing or empty.
    """
    train, val = find_splits(config.data, config.layout)
    decoder = whole_images(config)

    def look(entry: tuple[Pair, str]) -> ImageFacts | str:
        pair, split = entry
        try:
            image, labels = decoder.make(pair)
        except ImageError as error:
            return str(error)
        return ImageFacts(
            pair=pair,
            split=split,
            size=labels.shape,
            grey=bool((image == image[:, :, :1]).all()),
            levels=np.bincount(image.reshape(-1), minlength=256),
            means=image.mean(axis=(0, 1)),
            labels=np.bincount(labels.reshape(-1), minlength=256),
            counts=label_counts(labels, config.labels.background),
        )

    entries: list[tuple[Pair, str]] = [*((pair, "train") for pair in train), *((pair, "val") for pair in val)]
    images: list[ImageFacts] = []
    faults: list[tuple[Pair, str]] = []
    step = advance(len(entries))
    with ThreadPoolExecutor(available_threads()) as pool:
        for (pair, _), found in zip(entries, pool.map(look, entries), strict=True):
            step(1)
            if isinstance(found, str):
                faults.append((pair, found))
            else:
                images.append(found)
    others = [(path, "is a mask without an image") for path in surplus_mask_files(config.data, config.layout)]
    others += [(path, "is both trained and validated on") for path in shared_image_files(train, val)]
    return DataFindings(images=images, faults=faults, others=others)


def with_levels(config: TrainConfig) -> TrainConfig:
    """Return the settings with the levels that training would find in the images.

    Raises:
        DataError: a folder is missing or empty.
    """
    if config.levels not in FOUND:
        return config
    train, _ = find_splits(config.data, config.layout)
    levels = find_levels(train, config.levels, config.limits, None, lambda _: None, config.input_channels)
    return replace(config, levels="full" if levels is None else setting_text(levels))


def whole_images(config: TrainConfig) -> SampleDecoder:
    """Return a decoder of images and masks at their own size."""
    spec = replace(config.input, fit="native")
    return SampleDecoder(input=spec, labels=config.labels, truth_at_original=True, limits=config.limits)


def notes_on_masks(config: TrainConfig, findings: DataFindings) -> list[str]:
    """Return what training notes of masks that all hold one label; if there are faults, nothing.

    Raises:
        DataError: training would refuse such masks.
    """
    if findings.faults:
        return []
    sides = []
    for split in SPLITS:
        images = [image for image in findings.images if image.split == split]
        records = Records([image.pair for image in images], whole_images(config))
        for row, image in zip(records.rows, images, strict=True):
            row["counted"], row["foreground"], row["labels"] = image.counts
        sides.append(records)
    folder = mask_folder(image_folder(config.data, "train"), config.data, "train", config.masks)
    train, val = sides
    return check_masks(train, val, config, str(folder))


def write_problems(path: Path, data: Path, findings: DataFindings) -> None:
    """Write all faults as CSV: the file, below `data`, and its problem.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, problems_table(findings.faults, findings.others, data))


def write_images(path: Path, data: Path, findings: DataFindings, classes: Sequence[str]) -> None:
    """Write a line of figures for each usable image as CSV: size, values, and the share of each class in %.

    Raises:
        OutputError: the file cannot be written.
    """
    names = ["background", *classes] if len(classes) == 1 else [*classes]
    rows = []
    for image in findings.images:
        height, width = image.size
        used = np.flatnonzero(image.levels)
        shares = [f"{100 * count / image.labels.sum():.4f}" for count in image.labels[[*range(len(names)), IGNORED]]]
        kind = "grey" if image.grey else "colour" if len(image.means) == 3 else f"{len(image.means)} channels"
        file = below(Path(image.pair.place(image.pair.image)), data)
        rows.append((file, image.split, width, height, kind, used[0], used[-1], *shares))
    header = ("file", "split", "width", "height", "kind", "darkest", "brightest", *names, "not counted")
    write_table(path, header, rows)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file, atomically."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue().encode(errors="replace").decode())
