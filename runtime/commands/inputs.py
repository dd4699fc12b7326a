"""Inputs of `unet-predict`: the images in files, folders and patterns, on disk or at URLs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from runtime.errors import ImageError
from runtime.image_files.folders import (
    ARRAY_SUFFIXES,
    count_left_out,
    is_image,
    left_out_note,
    list_images,
    read_suffixes,
)
from runtime.storage.listing import RemoteSearch
from runtime.storage.remote import Place, is_url, local_path


@dataclass(frozen=True)
class Found:
    """An image, and its name relative to the folder, pattern or file that was given."""

    path: Place
    name: PurePath


@dataclass(frozen=True)
class Scope:
    """The real path or URL of the folder of answers, which is not searched; suffixes and masks that were left out.

    `arrays` is True if NumPy's files are images, too.
    """

    out: str
    left_out: Counter[str]
    masks: list[Place]
    arrays: bool = False

    def without_masks(self, found: Iterable[Found]) -> list[Found]:
        """Return the images among what a folder or pattern holds; the masks are added to `masks`."""
        items = list(found)
        self.masks.extend(item.path for item in items if is_mask(item.name))
        return [item for item in items if not is_mask(item.name)]


def is_mask(name: PurePath) -> bool:
    """Return True for a mask of a data set, by its path in there: in a folder `*_masks`, or called `*_mask`."""
    return name.stem.endswith("_mask") or any(part.endswith("_masks") for part in name.parts[:-1])


def find_images(
    images: Iterable[str],
    out: Place,
    left_out: Counter[str] | None = None,
    masks: list[Place] | None = None,
    *,
    arrays: bool = False,
) -> list[Found]:
    """List the images of files, folders, patterns and URLs, in that order, each under one name once.

    The masks of a data set are left out, and added to `masks`, where its folder or a pattern with `**` is searched; see
    `is_mask`. Whoever wants them names the files themselves, a pattern with `_mask`, or the folder of masks.

    Folders are searched with their subfolders, also through links, but without hidden ones and without `out`. A pattern
    (`*`, `?`, `[...]`, `**`) that no shell has expanded gives what a shell would give. A pattern with `**` gives files
    only, does not follow links, and names files by their path from the first wildcard on. `left_out` counts suffixes of
    the files that are no images. With `arrays`, NumPy's files are images, too.

    Raises:
        ImageError: a file or folder does not exist, holds no images, or cannot be listed.
    """
    left_out, masks = Counter() if left_out is None else left_out, [] if masks is None else masks
    scope = Scope(os.path.realpath(out) if isinstance(out, Path) else out.url, left_out, masks, arrays)
    named: dict[Found, None] = {}
    for text in map(local_path, images):
        path = Path(text)
        if is_url(text):
            found = expand_url(text, scope)
        elif os.path.lexists(path) or not glob.has_magic(text):
            found = expand(path, scope)
        elif "**" in path.parts:
            matched = match_recursively(path, scope)
            found = list(matched) if "_mask" in text else scope.without_masks(matched)
        else:
            matches = sorted(glob.glob(text))  # noqa: PTH207 - a pattern may be absolute
            found = [item for match in matches for item in expand(Path(match), scope)]
        if not found:
            raise ImageError(f"{text}: no image has such a path")
        named.update(dict.fromkeys(found))
    return list(named)


def match_recursively(pattern: Path, scope: Scope) -> Iterator[Found]:
    """Yield the files of a pattern with `**`; the module glob would go round where a link leads upwards."""
    root = Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    rest = pattern.parts[len(root.parts) :]
    for path in sorted(root.glob(str(PurePath(*rest, "*") if rest[-1] == "**" else PurePath(*rest)))):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_answer = Path(scope.out) in Path(os.path.realpath(path)).parents
        if is_hidden or is_answer or not path.is_file():
            continue
        if is_image(path, scope.arrays):
            yield Found(path, name)
        else:
            count_left_out(path, scope.left_out)


def expand(path: Path, scope: Scope) -> list[Found]:
    """List the images of a file or folder.

    Raises:
        ImageError: the path does not exist, or the folder holds no images.
    """
    if path.is_dir():
        before = len(scope.masks)
        found = scope.without_masks(walk(path, PurePath(), scope, ()))
        if not found:
            only = " but masks (*_mask.*, *_masks/); to segment these, name the files" if scope.masks[before:] else ""
            note = left_out_note(scope.left_out)
            raise ImageError(f"{path}: no images in this folder and below{only}" + (f"; {note}" if note else ""))
        return found
    if path.exists():
        return [Found(path, PurePath(path.name))]
    raise ImageError(f"{path}: no such file or folder")


def expand_url(url: str, scope: Scope) -> list[Found]:
    """List the images of a URL.

    Raises:
        ImageError: the URL does not exist, or holds no images.
    """
    before = len(scope.masks)
    without = None if f"{url.rstrip('/')}/".startswith(f"{scope.out}/") else scope.out  # who names it has it searched
    suffixes = read_suffixes() | (ARRAY_SUFFIXES if scope.arrays else frozenset())
    search = RemoteSearch(suffixes=suffixes, without=without, left_out=scope.left_out)
    items = [Found(file, name) for file, name in search.images_of(url)]
    is_named = len(items) == 1 and str(items[0].path) == url
    found = items if is_named or "_mask" in url else scope.without_masks(items)
    if not found:
        only = " but masks (*_mask.*, *_masks/); to segment these, name the files" if scope.masks[before:] else ""
        note = left_out_note(scope.left_out)
        raise ImageError(f"{url}: no images at this URL and below{only}" + (f"; {note}" if note else ""))
    return found


def walk(folder: Path, name: PurePath, scope: Scope, above: tuple[str, ...]) -> Iterator[Found]:
    """Yield the images of a folder and its subfolders; `above` holds the real paths of the folders above."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    yield from (Found(path, name / path.name) for path in list_images(folder, scope.left_out, arrays=scope.arrays))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and os.path.realpath(path) != scope.out:
            yield from walk(path, name / path.name, scope, (*above, real))
