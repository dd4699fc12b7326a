"""Inputs of `unet-predict`: files, folders and patterns become jobs, each checked before the work begins."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePath

from runtime.errors import ImageError, OutputError
from runtime.image import SUFFIXES, list_images


@dataclass(frozen=True)
class Found:
    """An image, and its name relative to the folder, pattern or file that was given."""

    path: Path
    name: PurePath


@dataclass(frozen=True)
class Job:
    """An image, the file that its answer is written to, and its name in that file."""

    source: Path
    target: Path
    name: str


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


def file_jobs(found: Iterable[Found], out: Path, suffix: str) -> list[Job]:
    """Plan one file for each image: its name in the folder `out`, with another suffix.

    Raises:
        OutputError: two images share a file, a file would replace an image or a folder, or `out` holds the images.
    """
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise OutputError(f"{out}: looks like a file, expected a folder; files in it are named after their images")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder; choose another one with -o")
    jobs: list[Job] = []
    taken: dict[str, Found] = {}
    real_path = cache(os.path.realpath)
    for item in found:
        name = item.name.with_suffix(suffix)
        job = Job(item.path, out / name, name.as_posix())
        if real_path(item.path.parent) == real_path(job.target.parent):
            raise OutputError(
                f"{job.target.parent}: holds {item.path.name} itself and perhaps other images; "
                "choose another folder with -o"
            )
        if job.target.is_dir():
            raise OutputError(f"{job.target}: is a folder, expected a file or nothing; move it or choose another -o")
        if is_new(item, job.name, taken, job.target):
            jobs.append(job)
    refuse_images_as_targets(jobs)
    return jobs


def table_jobs(found: Iterable[Found], out: Path) -> list[Job]:
    """Plan one row of the table `out` for each image, under its name with "/" between the parts.

    Raises:
        OutputError: two images have the same name, or `out` does not end in .csv.
    """
    if out.suffix.lower() != ".csv" or out.is_dir():
        raise OutputError(f"{out}: expected a file that ends in .csv; all rows are written to it")
    taken: dict[str, Found] = {}
    jobs = (Job(item.path, out, item.name.as_posix()) for item in found if is_new(item, str(item.name), taken, out))
    return list(jobs)


def is_new(item: Found, name: str, taken: dict[str, Found], target: Path) -> bool:
    """Return False for an image that was given twice.

    Raises:
        OutputError: another image has this name.
    """
    other = taken.setdefault(name.casefold(), item)  # on many disks Car.png and car.png are one file
    if other.path is not item.path and other.path.resolve() != item.path.resolve():
        raise OutputError(f"{target}: would hold the masks of both {other.path} and {item.path}; run them separately")
    return other is item


def refuse_images_as_targets(jobs: list[Job]) -> None:
    """Raise an OutputError if an answer would be written over an image, whatever links lead to it."""
    existing = [(job.target, file_identity(job.target)) for job in jobs if job.target.exists()]
    if not existing:
        return
    sources = {file_identity(job.source): job.source for job in jobs}
    for target, identity in existing:
        if identity in sources:
            raise OutputError(f"{target}: is the image {sources[identity]} itself; choose another folder with -o")


def file_identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file; (-1, -1) for a broken link, which reading the file reports."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino
