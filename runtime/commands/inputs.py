"""What a command reads and what it writes, known before the work: files, folders and patterns to jobs."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from runtime.errors import ImageError, OutputError
from runtime.image import SUFFIXES, list_images


@dataclass(frozen=True)
class Found:
    """An image, and what it is called below the folder, pattern or file that was named."""

    path: Path
    name: PurePath


@dataclass(frozen=True)
class Job:
    """An image, the file that its answer is written to, and its name there."""

    source: Path
    target: Path
    name: str


def find(images: Iterable[str], out: Path) -> list[Found]:
    """The images that files, folders and patterns stand for, in that order; each under one name once.

    Folders are searched with all below them, through links too, but for hidden ones and `out`. A pattern (`*`, `?`,
    `[...]`, `**`) that no shell has expanded gives what a shell would give. With `**` it gives files only, not through
    links, called by their path from the first wildcard on.

    Raises:
        ImageError: there is no such file or folder, a folder without images, or one that cannot be listed.
    """
    left_out = _real(out)
    named: dict[Found, None] = {}
    for text in images:
        named.update(dict.fromkeys(_found(text, left_out)))
    return list(named)


def _found(text: str, left_out: str) -> Iterator[Found]:
    path = Path(text)
    if os.path.lexists(path) or not glob.has_magic(text):
        yield from _expanded(path, left_out)
        return
    if "**" in path.parts:
        found = list(_below(path, left_out))
    else:
        matches = sorted(glob.glob(text))  # noqa: PTH207 - of any root
        found = [item for match in matches for item in _expanded(Path(match), left_out)]
    if not found:
        raise ImageError(f"{text}: no image has such a path")
    yield from found


def _below(pattern: Path, left_out: str) -> Iterator[Found]:
    """Files by a pattern with `**`; the module glob would go round where a link leads upwards."""
    root = Path(*_plain(pattern.parts))
    rest = pattern.parts[len(root.parts) :]
    for path in sorted(root.glob(str(PurePath(*rest, "*") if rest[-1] == "**" else PurePath(*rest)))):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden and not _is_below(path, left_out):
            yield Found(path, name)


def _plain(parts: tuple[str, ...]) -> Iterator[str]:
    """The parts of a pattern before the first one with a wildcard."""
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _expanded(path: Path, left_out: str) -> list[Found]:
    if path.is_dir():
        found = list(_walk(path, PurePath(), left_out, ()))
        if not found:
            raise ImageError(f"{path}: no images in this folder and below")
        return found
    if path.exists():
        return [Found(path, PurePath(path.name))]
    raise ImageError(f"{path}: no such file or folder")


def _walk(folder: Path, name: PurePath, left_out: str, above: tuple[str, ...]) -> Iterator[Found]:
    real = _real(folder)
    if real in above:  # a link to a folder above
        return
    yield from (Found(path, name / path.name) for path in list_images(folder))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and _real(path) != left_out:
            yield from _walk(path, name / path.name, left_out, (*above, real))


def jobs_of(found: Iterable[Found], out: Path, suffix: str) -> list[Job]:
    """One file for each image: `out` / its name with another suffix.

    Raises:
        OutputError: two images would be written to one file, one of them or something else is in the place of a file,
            or `out` is where the images are.
    """
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise OutputError(f"{out}: looks like a file, expected a folder; files in it are named after their images")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder; choose another one with -o")
    jobs: list[Job] = []
    taken: dict[str, Found] = {}
    real: dict[Path, str] = {}
    for item in found:
        name = item.name.with_suffix(suffix)
        job = Job(item.path, out / name, name.as_posix())
        if _remembered(item.path.parent, real) == _remembered(job.target.parent, real):
            raise OutputError(
                f"{job.target.parent}: holds {item.path.name} itself and perhaps other images; "
                "choose another folder with -o"
            )
        if job.target.is_dir():
            raise OutputError(f"{job.target}: is a folder, expected a file or nothing; move it or choose another -o")
        if _is_new(item, job.name, taken, job.target):
            jobs.append(job)
    _refuse_sources(jobs)
    return jobs


def rows_of(found: Iterable[Found], out: Path) -> list[Job]:
    """One row of the table `out` for each image, under its name with "/" between the parts.

    Raises:
        OutputError: two images would have one name, or `out` is not called .csv.
    """
    if out.suffix.lower() != ".csv" or out.is_dir():
        raise OutputError(f"{out}: expected a file that ends in .csv; all rows are written to it")
    taken: dict[str, Found] = {}
    jobs = (Job(item.path, out, item.name.as_posix()) for item in found if _is_new(item, str(item.name), taken, out))
    return list(jobs)


def _is_new(item: Found, name: str, taken: dict[str, Found], target: Path) -> bool:
    """False for an image that is named twice; raises for two that have one name."""
    other = taken.setdefault(name.casefold(), item)  # on many disks Car.png and car.png are one file
    if other.path is not item.path and other.path.resolve() != item.path.resolve():
        raise OutputError(f"{target}: would hold the masks of both {other.path} and {item.path}; run them apart")
    return other is item


def _refuse_sources(jobs: list[Job]) -> None:
    """No answer may be written over an image, whatever links lead there."""
    existing = [(job.target, _identity(job.target)) for job in jobs if job.target.exists()]
    if not existing:
        return
    sources = {_identity(job.source): job.source for job in jobs}
    for target, identity in existing:
        if identity in sources:
            raise OutputError(f"{target}: is the image {sources[identity]} itself; choose another folder with -o")


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # a link to nothing, which reading it will tell
        return -1, -1
    return status.st_dev, status.st_ino


def _remembered(folder: Path, real: dict[Path, str]) -> str:
    if folder not in real:
        real[folder] = _real(folder)
    return real[folder]


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _is_below(path: Path, folder: str) -> bool:
    return Path(folder) in Path(_real(path)).parents
