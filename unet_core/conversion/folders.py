"""Folders of images and mask files, with the names that people give them."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from runtime.errors import DataError
from runtime.image_files.decoding import open_image
from unet_core.conversion.samples import WORD, ConvertOptions, Sample, SourceData, files_below, split_of
from unet_core.data.faults import first_files, short_name
from unet_core.data.labels import Labels, LabelSpec
from unet_core.data.mask_values import classes_of, labels_from

MASK_WORDS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "truth", "seg"),
    *("segmentation", "segmentations", "segmented", "target", "targets", "manual", "matte", "alpha"),
}
"""Words in the names of masks and their folders."""

OTHER_WORDS = {
    *("image", "images", "img", "imgs", "input", "inputs", "picture", "pictures", "photo", "photos", "ground", "data"),
}
"""Words in the names of images and their folders, which tell nothing of which mask belongs to which image."""

SEPARATORS = re.compile(r"[\s_.-]+")


def words(name: str) -> set[str]:
    """The words of a name in lower case."""
    return {word.lower() for word in WORD.findall(name)}


def is_mask(path: Path, source: Path) -> bool:
    """Return True if the last folder below the source says masks or images, and it is masks; else if the name does."""
    for folder in reversed(path.relative_to(source).parts[:-1]):
        if found := words(folder) & (MASK_WORDS | OTHER_WORDS):
            return bool(found & MASK_WORDS)
    return bool(words(path.stem) & MASK_WORDS)


def key_of(name: str) -> str:
    """The part of a name that an image shares with its mask: "image_07" and "07_mask" both give "07"."""
    parts = [part for part in SEPARATORS.split(name) if part.lower() not in MASK_WORDS | OTHER_WORDS]
    return "_".join(parts) or name


def read_folders(source: Path, options: ConvertOptions) -> SourceData:
    """Pair the images below a folder with the masks there, by the words in their names and in those of folders.

    Raises:
        DataError: there are no images or no masks.
        ConfigError: colours and classes contradict each other.
    """
    files = files_below(source)
    masks = [path for path in files if is_mask(path, source)]
    images = sorted({*files} - {*masks})
    if not images or not masks:
        raise DataError(
            f"{source}: found {len(images)} images and {len(masks)} masks below it, expected both; masks are known by "
            "a word such as masks or labels in the name of their folder or file"
        )
    classes = options.classes or classes_of(options.values.colours) or ("foreground",)
    options.values.check(classes, options.ignore_index)
    spec = LabelSpec(classes=classes, ignore_index=options.ignore_index)
    by_key: dict[str, list[Path]] = {}
    keys = shared_keys(images, masks, source)
    for mask in masks:
        by_key.setdefault(keys[mask], []).append(mask)
    samples, used = [], set()
    for image in images:
        found = by_key.get(keys[image], [])
        fault = "" if found else "has no mask of a similar name"
        if len(found) > 1:
            fault = f"has {len(found)} masks ({first_files(path.name for path in found)}), expected one"
        used |= {*found}
        relative = image.relative_to(source)
        labels = partial(read_mask, found[0], spec, options) if found else None
        samples.append(
            Sample(
                image=image,
                name=str(relative),
                split=split_of(*relative.parts[:-1]),
                labels=labels,
                mask=found[0] if found else None,
                fault=fault,
            )
        )
    lonely = [mask for mask in masks if mask not in used]
    notes = []
    if lonely:
        count = f"{len(lonely)} masks have" if len(lonely) > 1 else "1 mask has"
        notes = [f"{source}: {count} no image of a similar name: {first_files(map(short_name, lonely))}"]
    return SourceData(samples=samples, classes=classes, notes=notes)


def shared_keys(images: list[Path], masks: list[Path], source: Path) -> dict[Path, str]:
    """The keys by which images and masks are paired: of names alone where these are unique, else with their folders."""
    plain = {path: key_of(path.stem) for path in (*images, *masks)}
    if max(*Counter(plain[path] for path in images).values(), *Counter(plain[path] for path in masks).values()) == 1:
        return plain
    keys = {}
    for path, key in plain.items():
        folders = [
            key_of(part) for part in path.relative_to(source).parts[:-1] if words(part) - MASK_WORDS - OTHER_WORDS
        ]
        keys[path] = "/".join([*folders, key])
    return keys


def read_mask(path: Path, spec: LabelSpec, options: ConvertOptions, _: tuple[int, int]) -> Labels:
    """Read a mask file as labels; numbers or colours of instances all become the one class."""
    if not options.instances:
        return labels_from(path, spec, options.values, options.limits)
    picture = open_image(path, limits=options.limits)
    array = np.asarray(picture.convert("RGB") if picture.mode in ("RGBA", "P", "LA") else picture)
    return np.asarray(array.any(axis=2) if array.ndim == 3 else array != 0, np.uint8)
