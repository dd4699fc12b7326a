"""Inputs of `unet-predict`: the images in files, folders and patterns."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from runtime.errors import ImageError
from runtime.image import SUFFIXES, list_images


@dataclass(frozen=True)
class Found:
    """An image, and its name relative to the folder, pattern or file that was given."""

    path: Path
    name: PurePath


def find_images(images: Iterable[str], out: Path) -> list[Found]:
    """List the images of files, folders and patterns, in that order, each under one name once.

    Folders are searched with their subfolders, also through links, but without hidden ones and without `out`. A pattern
    (`*`, `?`, `[...]`, `**`) that no shell has expanded gives what a shell would give. A pattern with `**` gives files
    only, does not follow links, and names files by their path from the first wildcard on.

    Raises:
        ImageError: a file or folder does not exist, holds no images, or cannot be listed.
    """
    left_out = os.path.realpath(out)
    named: dict[Found, None] = {}
    for text in images:
        path = Path(text)
        if os.path.lexists(path) or not glob.has_magic(text):
            found = expand(path, left_out)
        elif "**" in path.parts:
            found = list(match_recursively(path, left_out))
        else:
            matches = sorted(glob.glob(text))  # noqa: PTH207 - a pattern may be absolute
            found = [item for match in matches for item in expand(Path(match), left_out)]
        if not found:
            raise ImageError(f"{text}: no image has such a path")
        named.update(dict.fromkeys(found))
    return list(named)


def match_recursively(pattern: Path, left_out: str) -> Iterator[Found]:
    """Yield the files of a pattern with `**`; the module glob would go round where a link leads upwards."""
    root = Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    rest = pattern.parts[len(root.parts) :]
    for path in sorted(root.glob(str(PurePath(*rest, "*") if rest[-1] == "**" else PurePath(*rest)))):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_left_out = Path(left_out) in Path(os.path.realpath(path)).parents
        if path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden and not is_left_out:
            yield Found(path, name)


def expand(path: Path, left_out: str) -> list[Found]:
    """List the images of a file or folder.

    Raises:
        ImageError: the path does not exist, or the folder holds no images.
    """
    if path.is_dir():
        found = list(walk(path, PurePath(), left_out, ()))
        if not found:
            raise ImageError(f"{path}: no images in this folder and below")
        return found
    if path.exists():
        return [Found(path, PurePath(path.name))]
    raise ImageError(f"{path}: no such file or folder")


def walk(folder: Path, name: PurePath, left_out: str, above: tuple[str, ...]) -> Iterator[Found]:
    """Yield the images of a folder and its subfolders; `above` holds the real paths of the folders above."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    yield from (Found(path, name / path.name) for path in list_images(folder))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and os.path.realpath(path) != left_out:
            yield from walk(path, name / path.name, left_out, (*above, real))
