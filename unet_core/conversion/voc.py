"""PASCAL VOC's folders: JPEGImages, SegmentationClass and ImageSets, also as CVAT and others write them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from runtime.errors import DataError
from unet_core.conversion.samples import ConvertOptions, ImageIndex, Sample, SourceData, chosen_classes
from unet_core.data.labels import BACKGROUND, IGNORED, Labels, LabelSpec
from unet_core.data.mask_values import IGNORE, MaskValues, classes_of, labels_from

MASKS = "SegmentationClass"

CLASSES: tuple[str, ...] = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of PASCAL VOC 2012, by the value in the masks."""

BORDER = 255
"""Value of the borders of objects, which do not count."""


def voc_folder(source: Path) -> Path | None:
    """The folder of a source that holds SegmentationClass, at most two levels below it."""
    found = [source / MASKS, *sorted(source.glob(f"*/{MASKS}")), *sorted(source.glob(f"*/*/{MASKS}"))]
    return next((path.parent for path in found if path.is_dir()), None)


def read_voc(source: Path, options: ConvertOptions) -> SourceData:
    """Read the images that ImageSets/Segmentation lists in train.txt and val.txt, or all that have masks.

    A file labelmap.txt, as CVAT writes it, names classes and their colours. Without one the classes are VOC's own,
    unless `options` name others: those of the values 0, 1, ... in the masks.

    Raises:
        DataError: no image is listed, or labelmap.txt is malformed.
        ConfigError: colours and classes contradict each other.
    """
    folder = voc_folder(source)
    assert folder is not None
    stored, values = CLASSES, options.values
    if values or not {*options.classes} <= {*CLASSES}:
        stored = options.classes or classes_of(values.colours) or ("foreground",)
    if not values and (legend := folder / "labelmap.txt").is_file():
        stored, values = read_legend(legend)
    ignored = None if values else BORDER if options.ignore_index is None else options.ignore_index
    values.check(stored, options.ignore_index if values else ignored)
    spec = LabelSpec(classes=stored, ignore_index=ignored)
    is_choice = BACKGROUND in stored or options.classes not in ((), stored)
    classes, label_of = chosen_classes(stored, options, folder) if is_choice else (stored, {})
    meaning = [label_of.get(name, 0) for name in stored] if label_of else [*range(max(2, len(stored)))]
    index = ImageIndex(options.images or folder / "JPEGImages")
    masks = {path.stem: path for path in sorted((folder / MASKS).iterdir()) if not path.name.startswith(".")}
    samples = []
    for name, split in listed_names(folder, masks).items():
        image, fault = index.find(name)
        if name not in masks:
            fault = f"has no mask, expected {name}.png in {folder / MASKS}"
        labels = partial(read_mask, masks.get(name, image), spec, values, options, meaning)
        samples.append(Sample(image=image, name=name, split=split, labels=labels, mask=masks.get(name), fault=fault))
    if not samples:
        raise DataError(f"{folder}: ImageSets/Segmentation lists no images, and {MASKS} has none")
    return SourceData(samples=samples, classes=classes)


def listed_names(folder: Path, masks: dict[str, Path]) -> dict[str, str]:
    """The split of each image that a list names: "" for those that only another list names, or that no list names."""
    lists, splits = folder / "ImageSets" / "Segmentation", dict[str, str]()
    for path in sorted(lists.glob("*.txt")) if lists.is_dir() else []:
        for name in path.read_text(encoding="utf-8", errors="replace").split():
            if path.stem in ("train", "val"):
                splits[name] = path.stem
            elif path.stem != "test":
                splits.setdefault(name, "")
    return splits or dict.fromkeys(masks, "")


def read_legend(path: Path) -> tuple[tuple[str, ...], MaskValues]:
    """Read labelmap.txt, lines `name:red,green,blue:parts:actions`.

    Raises:
        DataError: a line has another form.
    """
    colours, names = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(part) for part in rest.partition(":")[0].split(","))
            value = f"{red << 16 | green << 8 | blue:06x}"
        except ValueError as error:
            raise DataError(
                f"{path}: has the line {line[:80]!r}, expected name:red,green,blue:parts:actions"
            ) from error
        ignored = name.lower() in ("ignore", "ignored", "void", "border")
        colours.append(f"{IGNORE if ignored else name}=#{value}")
        names += [] if ignored else [name]
    return tuple(names), MaskValues(colours=tuple(colours))


def read_mask(
    path: Path,
    spec: LabelSpec,
    values: MaskValues,
    options: ConvertOptions,
    meaning: Sequence[int],
    _: tuple[int, int],
) -> Labels:
    """Read a mask of any size as labels, of which each becomes its `meaning`."""
    labels = labels_from(path, spec, values, options.limits)
    return np.array([*meaning, *[IGNORED] * (256 - len(meaning))], np.uint8)[labels]
