"""Names of files and folders: which split they mean, what is a mask, and of which image; a few of them in messages."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Words in the names of folders and files, and the split that each means."""

MASK_WORDS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "truth", "seg"),
    *(
        "segmentation",
        "segmentations",
        "segmented",
        "target",
        "targets",
        "manual",
        "matte",
        "alpha",
        "class",
        "classes",
    ),
    *("gts", "ann", "anns", "anno", "annos", "annot", "annots", "trimap", "trimaps", "mattes"),
}
"""Words in the names of masks and their folders."""

OTHER_WORDS = {
    *("image", "images", "img", "imgs", "input", "inputs", "picture", "pictures", "photo", "photos", "ground", "data"),
}
"""Words in the names of images and their folders, which tell nothing of which mask belongs to which image."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""A word in a name: letters, of which a capital begins the next word."""

SEPARATORS = re.compile(r"[\s_.-]+")


LISTED_FILES = 3
"""Maximum number of files that a message lists for one reason."""


def words(name: str) -> set[str]:
    """The words of a name in lower case."""
    return {word.lower() for word in WORD.findall(name)}


def is_mask(path: Path, source: Path) -> bool:
    """Return True if the last folder below the source says masks or images, and it is masks; else if the name does."""
    for folder in reversed(path.relative_to(source).parts[:-1]):
        if found := words(folder) & (MASK_WORDS | OTHER_WORDS):
            return bool(found & MASK_WORDS)
    return bool(words(path.stem) & MASK_WORDS)


def split_of(*parts: str) -> str:
    """Return the split that the words in names of folders or files tell; the last word that is one counts, else ""."""
    words = (word.lower() for part in parts for word in WORD.findall(part))
    return next((SPLIT_WORDS[word] for word in reversed([*words]) if word in SPLIT_WORDS), "")


def key_of(name: str) -> str:
    """The part of a name that an image shares with its mask: "image_07" and "07_mask" both give "07"."""
    parts = [part for part in SEPARATORS.split(name) if part.lower() not in MASK_WORDS | OTHER_WORDS]
    return "_".join(parts) or name


def shared_keys(images: Sequence[Path], masks: Sequence[Path], source: Path) -> dict[Path, str]:
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


def masks_beside(images: Iterable[Path], masks: Iterable[Path]) -> dict[Path, list[Path]]:
    """The masks of each image that has a folder to itself, in the one beside it: ID/images/ID.png, ID/masks/*.png."""
    sides: dict[Path, tuple[list[Path], list[Path]]] = {}
    for is_of_mask, paths in enumerate((images, masks)):
        for path in paths:
            sides.setdefault(path.parent.parent, ([], []))[is_of_mask].append(path)
    return {
        inner[0]: beside
        for inner, beside in sides.values()
        if len(inner) == 1 and len({path.parent for path in beside} | {inner[0].parent}) == 2
        if inner[0].parent not in {path.parent for path in beside}
    }


def command_to_convert(data: Path) -> str:
    """The command that converts a data folder into one that training takes."""
    place = os.path.abspath(data)  # noqa: PTH100 - `resolve` would follow links; "." has no name
    return f"unet-data convert {shlex.quote(str(data))} {shlex.quote(f'{place}-converted')}"


def first_files(names: Iterable[str]) -> str:
    """The first `LISTED_FILES` names, and the number of the others."""
    names = list(names)
    more = len(names) - LISTED_FILES
    return ", ".join(names[:LISTED_FILES]) + (f" and {more} more" if more > 0 else "")
