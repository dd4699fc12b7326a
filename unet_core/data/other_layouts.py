"""A data folder whose images and masks training does not find: what is in it, and how to train on it."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from runtime.errors import DataError
from runtime.image_files.folders import count_left_out, left_out_note, list_images, read_suffixes
from unet_core.data.folders import SPLITS, has_validation, image_folder, mask_folder, require_folder
from unet_core.data.names import command_to_convert, is_mask, masks_beside, shared_keys

LOOKED, DEEPEST = 20_000, 4
"""Maximum number of entries that are looked at, and of folders above a file."""

SHOWN = 5
"""Maximum number of folders in a message."""

ANNOTATIONS = {".json": "the JSON of COCO or LabelMe", ".csv": "a table of run lengths as Kaggle's"}
"""Files that `unet-data convert` reads, by their suffix."""

CITYSCAPES = "leftImg8bit"
"""Folder of Cityscapes' images, whose masks have other names."""


@dataclass(kw_only=True)
class FolderContent:
    """Content of a folder, at any depth: images by their folder, other files by their suffix."""

    images: dict[Path, list[Path]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    annotations: set[str] = field(default_factory=set)

    def describe(self, folder: Path) -> str:
        """Describe it: "found a (2 images), b/c (1 image)", "found no images", with the other files."""
        counts = [
            f"{path.relative_to(folder)} ({len(files)} image{'s' * (len(files) != 1)})"
            for path, files in sorted(self.images.items())
        ]
        more = len(counts) - SHOWN
        listed = ", ".join(counts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        note = left_out_note(self.others, "not read")
        return f"found {listed or 'no images'}" + (f"; {note}" if note else "")


def content_of(folder: Path) -> FolderContent:
    """Look at the files below a folder, at most `LOOKED` of them; hidden ones are left out."""
    found, looked = FolderContent(), 0
    for root, folders, names in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEEPEST else []
        looked += len(names) + 1
        if looked > LOOKED:
            break
        for name in sorted(names):
            path = Path(root, name)
            suffix = path.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in read_suffixes():
                found.images.setdefault(path.parent, []).append(path)
            else:
                count_left_out(path, found.others)
                found.annotations |= {suffix} & ANNOTATIONS.keys()
    return found


def way_to_convert(data: Path, content: FolderContent) -> str:
    """Return the advice to convert a data folder, if that would find masks in it; else ""."""
    files = [path for paths in content.images.values() for path in paths]
    masks = [path for path in files if is_mask(path, data)]
    images = sorted({*files} - {*masks})
    pairs = 0
    if images and masks:
        keys = shared_keys(images, masks, data)
        counts = Counter(keys[mask] for mask in masks)
        pairs = sum(counts[keys[image]] == 1 for image in images)
        beside = sum(len(of_image) > 1 for of_image in masks_beside(images, masks).values())
        if beside > pairs:
            return f"if {beside} images have a mask for each object: {command_to_convert(data)} --instances foreground"
    if pairs:
        return f"to pair {pairs} of the images by their names: {command_to_convert(data)}"
    if (data / CITYSCAPES).is_dir():
        return f"to read Cityscapes' folders: {command_to_convert(data)}"
    if files and content.annotations:
        kinds = " or ".join(ANNOTATIONS[suffix] for suffix in sorted(content.annotations, reverse=True))
        return f"if the masks are in {kinds}: {command_to_convert(data)}"
    return ""


def refuse_layout(data: Path, missing: Path, kind: str) -> NoReturn:
    """Raise an error for a folder that is missing: what is there instead, and the setting or command that takes it.

    Raises:
        DataError: always.
    """
    expected = f"expected train_images and train_{kind} (and val_images and val_{kind}), or images and {kind}"
    require_folder(data)
    content = content_of(data)
    images = image_folder(data, "train")
    is_for_training = images.is_dir() and mask_folder(images, data, "train", kind).is_dir()
    inner = sorted({place for path in content.images for place in path.parents if data in place.parents})
    advice = ""
    if nested := [place for place in inner if holds_pairs(place, kind)]:
        advice = f"give {nested[0]}"
    elif other := [name for name in names_of_masks(data, content.images) if holds_pairs(data, name)]:
        advice = f"give --masks {shlex.quote(other[0])}"
    elif not is_for_training:  # else it is only the part to validate on that is missing
        advice = way_to_convert(data, content)
    if not advice and (whole := data_set_around(data, kind)):
        advice = f"it is a part of {whole}, so give that folder"
    found = f"{missing}: no such folder ({content.describe(data)})"
    raise DataError("; ".join(filter(None, (found, f"{expected} in {data}", advice))))


def data_set_around(folder: Path, kind: str) -> Path | None:
    """Return the data folder, one or two levels up, of which a folder holds the images or the masks; else None."""
    for data in list(folder.absolute().parents)[:2]:
        for split in SPLITS:
            images = image_folder(data, split)
            parts = (images, mask_folder(images, data, split, kind))
            if any(part.is_dir() and part.samefile(folder) for part in parts) and holds_pairs(data, kind):
                return data
    return None


def holds_pairs(data: Path, kind: str) -> bool:
    """Return True if the masks in folders of this kind are those of images in a data folder."""
    for split in SPLITS if has_validation(data) else SPLITS[:1]:
        images = image_folder(data, split)
        masks = mask_folder(images, data, split, kind)
        if not (images.is_dir() and masks.is_dir()) or images.samefile(masks):
            return False
        names = {path.stem for path in list_images(images)}
        if not any(path.stem.removesuffix("_mask") in names for path in list_images(masks)):
            return False
    return True


def names_of_masks(data: Path, folders: Iterable[Path]) -> list[str]:
    """List what --masks may be called, for each folder of images below a data folder."""
    names = [name for folder in folders for name in folder.relative_to(data).parts]
    return sorted({name for whole in names for name in (whole, whole.removeprefix("train_")) if name})
