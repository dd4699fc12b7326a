"""Words in the names of files and folders: which split they mean, what is a mask, and of which image."""

import re
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
    *("gts", "annot", "annots", "trimap", "trimaps", "mattes"),
}
"""Words in the names of masks and their folders."""

OTHER_WORDS = {
    *("image", "images", "img", "imgs", "input", "inputs", "picture", "pictures", "photo", "photos", "ground", "data"),
}
"""Words in the names of images and their folders, which tell nothing of which mask belongs to which image."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""A word in a name: letters, of which a capital begins the next word."""

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


def split_of(*parts: str) -> str:
    """Return the split that the words in names of folders or files tell; the last word that is one counts, else ""."""
    words = (word.lower() for part in parts for word in WORD.findall(part))
    return next((SPLIT_WORDS[word] for word in reversed([*words]) if word in SPLIT_WORDS), "")


def key_of(name: str) -> str:
    """The part of a name that an image shares with its mask: "image_07" and "07_mask" both give "07"."""
    parts = [part for part in SEPARATORS.split(name) if part.lower() not in MASK_WORDS | OTHER_WORDS]
    return "_".join(parts) or name
