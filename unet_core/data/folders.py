"""The folders of a data set: where the images and the masks of each split are."""

import os
from pathlib import Path
from typing import Literal

from runtime.errors import DataError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

SETTINGS = "dataset.toml"
"""File in a converted data set with the settings of its classes, for the option --config."""

IMAGES = ("images", "imgs")
"""Names of folders of images whose splits are folders inside or outside, or do not exist."""


def require_folder(data: Path) -> None:
    """Raise a DataError if a data folder is a file, or not there."""
    if not data.is_dir():
        what = "is a file" if data.is_file() else "no such folder"
        raise DataError(f"{data}: {what}; expected a folder of images and masks")


def image_folder(data: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split's images: `SPLIT_images`, or the first of the other places that exists."""
    whole = Path(data)
    places = [
        whole / f"{split}_images",
        *(whole / split / name for name in IMAGES),
        whole / split / split,
        whole / split,
        *(whole / name / split for name in IMAGES),
        *(whole / name for name in IMAGES if split == "train"),
    ]
    return next((place for place in places if place.is_dir()), places[0])


def mask_folder(images: Path, data: str | os.PathLike[str], split: str, kind: str) -> Path:
    """The folder of a split's masks that belongs to its folder of images."""
    whole = Path(data)
    if images.name in IMAGES:  # SPLIT/images or images
        return images.parent / kind
    if images.parent.name in IMAGES and images.parent != whole:
        return whole / kind / split
    folder = whole / f"{split}_{kind}"
    return folder / folder.name if (folder / folder.name).is_dir() else folder  # as Kaggle's archives unpack


def has_validation(data: str | os.PathLike[str]) -> bool:
    """Return True if the data folder has a folder of validation images."""
    return image_folder(data, "val").is_dir()
