"""Cityscapes' and ADE20K's folders: label images whose values are renumbered for training."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from runtime.errors import DataError, ImageError
from runtime.image_files.limits import Limits
from unet_core.conversion.samples import (
    ConvertOptions,
    Sample,
    SourceData,
    chosen_classes,
    clean,
    files_below,
)
from unet_core.data.labels import IGNORED, Labels, load_labels, present_labels
from unet_core.data.names import split_of

CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The nineteen classes of Cityscapes' benchmark by the value in *_labelIds.png; other values do not count there."""

IMAGE_END, LABEL_IDS, TRAIN_IDS = "_leftImg8bit", "_labelIds.png", "_labelTrainIds.png"
"""Ends of Cityscapes' file names; the last are made by its own scripts and hold the classes' numbers."""

ADE_NAMES = "objectInfo150.txt"
"""ADE20K's table of classes: Idx, Ratio, Train, Val, Stuff and Name, separated by tabs."""

ADE_CLASSES = 150


def is_cityscapes(source: Path) -> bool:
    """Return True for a folder with leftImg8bit and gtFine or gtCoarse."""
    return (source / "leftImg8bit").is_dir() and any((source / name).is_dir() for name in ("gtFine", "gtCoarse"))


def is_ade20k(source: Path) -> bool:
    """Return True for a folder with images/training and annotations/training."""
    return all((source / kind / "training").is_dir() for kind in ("images", "annotations"))


def read_cityscapes(source: Path, options: ConvertOptions) -> SourceData:
    """Read Cityscapes' images and label images; of its test images, whose labels are hidden, none.

    Raises:
        DataError: there are no images.
        ConfigError: a class of `options` does not exist.
    """
    truth = source / ("gtFine" if (source / "gtFine").is_dir() else "gtCoarse")
    names = list(CITYSCAPES.values())
    classes, label_of = options_or_all(names, options, source)
    by_id = {value: label_of.get(name, 0 if options.classes else IGNORED) for value, name in CITYSCAPES.items()}
    by_train_id = {index: by_id[value] for index, value in enumerate(CITYSCAPES)}
    samples = []
    for image in files_below(source / "leftImg8bit"):
        relative = image.relative_to(source / "leftImg8bit")
        split = split_of(relative.parts[0])
        if split == "test":
            continue
        start = truth / relative.parent / f"{image.stem.removesuffix(IMAGE_END)}_{truth.name}"
        mask, meaning = Path(f"{start}{LABEL_IDS}"), by_id
        if not mask.is_file() and Path(f"{start}{TRAIN_IDS}").is_file():
            mask, meaning = Path(f"{start}{TRAIN_IDS}"), by_train_id
        fault = "" if mask.is_file() else f"has no labels, expected {mask}"
        labels = partial(renumbered, mask, meaning, range(34), options.limits)
        samples.append(
            Sample(
                image=image, name=image.stem.removesuffix(IMAGE_END), split=split, labels=labels, mask=mask, fault=fault
            )
        )
    return SourceData(samples=samples, classes=classes)


def read_ade20k(source: Path, options: ConvertOptions) -> SourceData:
    """Read ADE20K's scenes: value 0 (other) does not count, values 1 to 150 are the classes 0 to 149.

    Raises:
        DataError: there are no images, or objectInfo150.txt is malformed.
        ConfigError: a class of `options` does not exist.
    """
    names, notes = [f"class {number}" for number in range(1, ADE_CLASSES + 1)], []
    if (table := source / ADE_NAMES).is_file():
        names = ade_names(table)
    else:
        notes = [f"{table} is missing, so the classes are named class 1 to class {ADE_CLASSES}"]
    classes, label_of = options_or_all(names, options, source)
    meaning = {value: label_of.get(name, 0 if options.classes else IGNORED) for value, name in enumerate(names, 1)}
    samples = []
    for part in ("training", "validation"):
        for image in files_below(source / "images" / part) if (source / "images" / part).is_dir() else []:
            mask = source / "annotations" / part / f"{image.stem}.png"
            fault = "" if mask.is_file() else f"has no annotation, expected {mask}"
            labels = partial(renumbered, mask, meaning, range(ADE_CLASSES + 1), options.limits)
            samples.append(
                Sample(image=image, name=image.stem, split=split_of(part), labels=labels, mask=mask, fault=fault)
            )
    return SourceData(samples=samples, classes=classes, notes=notes)


def options_or_all(
    names: list[str], options: ConvertOptions, source: Path
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """The classes and the label of each: all names, whose other pixels do not count, or those of `options`."""
    if options.classes:
        return chosen_classes(names, options, source)
    return tuple(map(clean, names)), {name: index for index, name in enumerate(names)}


def ade_names(path: Path) -> list[str]:
    """The first name of each class in objectInfo150.txt.

    Raises:
        DataError: it does not list 150 classes.
    """
    rows = [
        line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if line.strip()
    ]
    names = [row[-1].split(",")[0].split(";")[0].strip() for row in rows]
    if len(names) != ADE_CLASSES or not all(names):
        raise DataError(f"{path}: lists {len(names)} classes, expected {ADE_CLASSES} in lines separated by tabs")
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} {number}" if name in twice else name for number, name in enumerate(names, 1)]


def renumbered(path: Path, meaning: Mapping[int, int], known: range, limits: Limits, _: tuple[int, int]) -> Labels:
    """Read a label image, and give each value its label; known values without one do not count, nor does 255.

    Raises:
        ImageError: it cannot be read, or has unknown values.
    """
    values = load_labels(path, limits)
    if unknown := [value for value in present_labels(values) if value not in known and value != IGNORED]:
        raise ImageError(
            f"{path}: has invalid labels ({', '.join(map(str, unknown[:5]))}), expected {known[0]} to {known[-1]}"
        )
    return np.array([meaning.get(value, IGNORED) for value in range(256)], np.uint8)[values]
