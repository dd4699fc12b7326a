"""`Sample` and `SourceData`: a data set of any layout as conversion sees it; finding images and splits by name."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import ConfigError, DataError
from runtime.image_files.folders import is_image
from runtime.image_files.limits import LIMITS, Limits
from unet_core.data.labels import BACKGROUND, IGNORED, Labels
from unet_core.data.mask_values import MaskValues
from unet_core.data.names import is_mask

HIDDEN = (".", "__MACOSX")
"""Beginnings of the names of files and folders that are left out."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image of a source, and how its labels are made.

    `image`: its file, or its content where an annotation file holds it. `name`: its name in the source, with folders
    and with or without a suffix. `split`: "train", "val" or "test", or "" where the source has none. `labels`: makes
    labels uint8 [height, width] from (height, width) of the image, and raises an `ImageError` if it cannot; None for
    an image that has none. `mask`: the file that they come from, if it is of this image alone, for messages. `fault`:
    why the image or its annotation cannot be used.
    """

    image: Path | bytes
    name: str
    split: str = ""
    labels: Callable[[tuple[int, int]], Labels] | None = None
    mask: Path | None = None
    fault: str = ""

    @property
    def path(self) -> Path:
        """The path that messages show."""
        return self.image if isinstance(self.image, Path) else Path(self.name)


@dataclass(frozen=True, kw_only=True)
class SourceData:
    """The samples of a source, its classes by index (one class: labels 0 and 1), and notes about what was left out."""

    samples: Sequence[Sample]
    classes: tuple[str, ...]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of a conversion.

    `classes`: names of the classes, in the order of their labels; () takes those of the source. `images`: folder of the
    images, where annotations lie elsewhere. `masks`: name of the mask folders, or its end after "_"; "" finds them.
    `values`: how masks are read. `ignore_index`, `class_offset`: value in masks that does not count, and that of the
    first of several classes. `instances`: every value but 0 is the one class. `columns`: run lengths count down the
    columns; None goes by the table's header.
    """

    classes: tuple[str, ...] = ()
    images: Path | None = None
    masks: str = ""
    values: MaskValues = field(default=MaskValues())
    ignore_index: int | None = None
    class_offset: int = 0
    instances: bool = False
    columns: bool | None = None
    limits: Limits = LIMITS


def files_below(folder: Path, suffix: str = "", *, arrays: bool = False) -> list[Path]:
    """List the image files below a folder at any depth, or those of a suffix; sorted, hidden ones left out.

    With `arrays`, NumPy's files are images, too.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one of images or annotations")
    found = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        paths = [Path(root, name) for name in names if not name.startswith(HIDDEN)]
        found += [path for path in paths if (path.suffix.lower() == suffix if suffix else is_image(path, arrays))]
    return sorted(path for path in found if path.is_file())


class ImageIndex:
    """The images below a folder, found by the names that annotations give them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, files_below(folder)
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            for name in {path.name, path.stem}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str, near: Iterable[Path] = ()) -> tuple[Path, str]:
        """Return the image of a name such as "a.jpg", "train/a.jpg" or "a", and a fault: "" if it is the one.

        Of several images those are taken whose last folders are the name's; then those in one of the folders `near`.
        """
        parts = name.replace("\\", "/").split("/")
        found = self._by_name.get(parts[-1], [])
        for length in range(len(parts), 1, -1):
            if matching := [path for path in found if list(path.parts[-length:]) == parts[-length:]]:
                found = matching
                break
        for folder in near:
            if len(found) > 1 and (matching := [path for path in found if path.parent == folder]):
                found = matching
        if len(found) > 1:
            found = [path for path in found if not is_mask(path, self.folder)] or found
        if not found:
            return (
                self.folder / name,
                f"is missing, expected it below {self.folder}; add it, or name its folder with --images",
            )
        if len(found) > 1:
            return found[0], f"is there {len(found)} times below {self.folder}; name one folder with --images"
        return found[0], ""


def chosen_classes(
    source: Sequence[str], options: ConvertOptions, where: object
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Choose classes of a source whose annotations name them; unnamed pixels are background.

    Returns the names of the classes in the new data set, and the label of each name in the source. If `options` name
    classes, all others become background. One class has the label 1; several begin with the background, unless
    `options` put it elsewhere.

    Raises:
        ConfigError: a class is none of the source's, or two have one name.
        DataError: there are none, or too many.
    """
    wanted = options.classes or tuple(name for name in source if name.lower() != BACKGROUND)
    known = {*source, BACKGROUND}
    if missing := [name for name in wanted if name not in known]:
        raise ConfigError(f"--classes: {where} has no {missing[0]!r}, it has {', '.join(source)[:300]}")
    if not wanted:
        raise DataError(f"{where}: has no classes; expected at least one")
    if len(wanted) == 1:
        return (clean(wanted[0]),), {wanted[0]: 1}
    if BACKGROUND not in wanted:
        wanted = (BACKGROUND, *wanted)
    if len(wanted) > IGNORED:
        raise DataError(
            f"{where}: has {len(wanted)} classes with the background, expected at most {IGNORED}; choose some with "
            "--classes"
        )
    names = tuple(map(clean, wanted))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--classes: found {twice!r} twice, expected different names")
    return names, {name: index for index, name in enumerate(wanted)}


def clean(name: str) -> str:
    """The name of a class without what the option --classes cannot hold: commas and unprintable characters."""
    return (
        " ".join("".join(letter if letter.isprintable() and letter != "," else " " for letter in name).split()) or "?"
    )
