"""Folders of images: which files are images, by their suffix, and a count of the others."""

import os
from collections import Counter
from functools import cache
from pathlib import Path, PurePath

from runtime.errors import ImageError
from runtime.image_files import heif
from runtime.image_files.starts import MEDICAL, is_known_start

SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"})
    | {".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".geotiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Suffixes of the image files that are always read."""

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
"""Suffixes of NumPy's files, which are images for networks of any number of channels."""

NOTES = frozenset(
    {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".geojson", ".xml", ".yaml", ".yml", ".toml", ".ini"}
    | {".html", ".pdf", ".log", ".xlsx", ".py", ".sh", ".ipynb", ".db"}
)
"""Suffixes of texts and tables, which lie beside images and which nobody expects to be read as such."""

ADVICE = (
    {suffix: f"{suffix} is {text}" for suffix, text in MEDICAL.items()}
    | {suffix: heif.ADVICE[package] for suffix, package in heif.PACKAGES.items()}
    | dict.fromkeys(ARRAY_SUFFIXES, "arrays are read as images alone, with unet-train --channels N")
)
"""Packages and programs that read the files of a suffix, or convert them."""

LISTED = 5
"""Maximum number of suffixes in a note about files that were left out."""

START = 32
"""Bytes of a file without a suffix that tell whether it is an image."""


@cache
def read_suffixes() -> frozenset[str]:
    """Return the suffixes of the image files that are read here: HEIC and AVIF need packages that not everybody has."""
    return SUFFIXES | {suffix for suffix, package in heif.PACKAGES.items() if heif.is_installed(package)}


def is_image(path: Path, arrays: bool = False) -> bool:
    """Return True for the name of an image file; one without a suffix is opened, and has to begin like an image.

    With `arrays`, NumPy's files are images, too.
    """
    suffix = path.suffix.lower()
    if suffix:
        return suffix in read_suffixes() or (arrays and suffix in ARRAY_SUFFIXES)
    try:
        with open(path, "rb") as file:
            return is_known_start(file.read(START))
    except OSError:
        return False


def list_images(
    folder: str | os.PathLike[str], left_out: Counter[str] | None = None, *, arrays: bool = False
) -> list[Path]:
    """List the image files directly in a folder by suffix, sorted, without hidden files.

    A file without a suffix is an image if it begins like one. Broken links are listed, so that reading them raises an
    error: a whole disk may be missing behind links. `left_out` counts the suffixes of the other files, but for `NOTES`.
    With `arrays`, NumPy's files are images, too.

    Raises:
        ImageError: the folder does not exist, or cannot be read.
    """
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed ({(error.strerror or str(error)).lower()})") from error
    images = []
    for path in paths:
        if path.name.startswith(".") or not (path.is_file() or (path.is_symlink() and not path.exists())):
            continue
        if is_image(path, arrays):
            images.append(path)
        elif left_out is not None:
            count_left_out(path, left_out)
    return images


def count_left_out(path: PurePath, left_out: Counter[str]) -> None:
    """Count the suffix of a file that is no image, unless it is one of `NOTES`."""
    suffix = suffix_of(path)
    if suffix not in NOTES:
        left_out[suffix] += 1


def suffix_of(path: PurePath) -> str:
    """The suffix of a file in lower case, with the one before ".gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if suffixes[-1:] == [".gz"] else suffixes[-1:])


def left_out_note(left_out: Counter[str], what: str = "left out") -> str | None:
    """Describe the files that were left out: "3 files left out: .heic (2), no suffix (1)"; None if there are none.

    What would read some of them, or convert them, is added.
    """
    if not left_out:
        return None
    ordered = sorted(left_out, key=lambda suffix: (-left_out[suffix], suffix))
    listed = [f"{suffix or 'no suffix'} ({left_out[suffix]})" for suffix in ordered[:LISTED]]
    more = left_out.total() - sum(left_out[suffix] for suffix in ordered[:LISTED])
    listed += [f"others ({more})"] if more else []
    text = f"{left_out.total()} file{'s' * (left_out.total() > 1)} {what}: {', '.join(listed)}"
    advice = sorted({ADVICE[suffix] for suffix in left_out if suffix in ADVICE})
    return "; ".join([text, *advice])
