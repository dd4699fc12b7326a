"""Outputs of `unet-predict`: the file of each image, checked before the work begins, and the sinks that write them."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runtime.answer_files.joined_file import JoinedFile
from runtime.card import OutputSpec
from runtime.commands.inputs import Found
from runtime.errors import OutputError
from runtime.image import SUFFIXES
from runtime.output_formats import LEGEND, Format, TableFormat
from runtime.result import Segmentation
from runtime.support.files import make_folder, refuse_inner_links, write_bytes


@dataclass(frozen=True)
class Job:
    """An image, the file that its answer is written to, and its name in that file."""

    source: Path
    target: Path
    name: str


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
    real_path, refuse_links = cache(os.path.realpath), cache(refuse_inner_links)
    for item in found:
        name = item.name.with_suffix(suffix)
        job = Job(item.path, out / name, name.as_posix())
        if real_path(item.path.parent) == real_path(job.target.parent):
            raise OutputError(
                f"{job.target.parent}: holds {item.path.name} itself and perhaps other images; "
                "choose another folder with -o"
            )
        refuse_links(out, item.name.parent)
        if job.target.is_dir():
            raise OutputError(f"{job.target}: is a folder, expected a file or nothing; move it or choose another -o")
        if is_new(item, job.name, taken, job.target):
            jobs.append(job)
    refuse_images_as_targets(jobs)
    return jobs


def table_jobs(found: Iterable[Found], out: Path, suffix: str) -> list[Job]:
    """Plan one entry of the file `out` for each image, under its name with "/" between the parts.

    Raises:
        OutputError: two images have the same name, or `out` does not end in `suffix`.
    """
    if out.suffix.lower() != suffix or out.is_dir():
        raise OutputError(f"{out}: expected a file that ends in {suffix}; the answers to all images are written to it")
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


@dataclass
class Tally:
    """Number of answers on disk, one line for each failure, and a mark for each image that was decoded in part."""

    written: int = 0
    failures: list[str] = field(default_factory=list)
    fast: list[None] = field(default_factory=list)

    def counted(self, result: Segmentation) -> Segmentation:
        """Note how the image was decoded, before anybody asks for all of it; several threads call this."""
        if result.is_fast_decoded:
            self.fast.append(None)
        return result


class FileSink:
    """Writes one file for each image."""

    def __init__(self, form: Format, out: Path, tally: Tally) -> None:
        self._form, self._tally = form, tally
        self._lock = threading.Lock()
        make_folder(out)

    def make(self, job: Job, result: Segmentation) -> None:
        """Write a file; several threads call this.

        Raises:
            OutputError: the file cannot be written.
        """
        self._form.save(result, job.target)
        with self._lock:
            self._tally.written += 1

    def take(self, made: Any) -> None:
        """Do nothing: files need no order."""


class TableSink:
    """Writes one entry of a file for each image."""

    def __init__(self, file: JoinedFile) -> None:
        self._file = file

    def make(self, job: Job, result: Segmentation) -> Any:
        """Return an entry; several threads call this."""
        return self._file.make(job.name, result)

    def take(self, made: Any) -> None:
        """Write an entry, in order."""
        self._file.take(made)


@contextmanager
def open_sink(
    form: Format | TableFormat, out: Path, output: OutputSpec, keep: bool, tally: Tally
) -> Iterator[FileSink | TableSink]:
    """Open the place that answers are written to.

    A file for all images appears when the context ends, with the entries made so far even after Ctrl-C.

    Args:
        form: format of the files or of the one file.
        out: folder of the files, or path of the one file.
        output: what the model's answers are.
        keep: start a file for all images with the entries that it already has.
        tally: counts what is written.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    if isinstance(form, Format):
        sink = FileSink(form, out, tally)
        write_legend(form, out, output, keep=False)
        yield sink
        return
    file = None
    try:
        with form.open(out, output, keep=keep) as file:
            yield TableSink(file)
    finally:  # also after Ctrl-C
        tally.written += file.published if file else 0


def write_legend(form: Format, out: Path, output: OutputSpec, *, keep: bool) -> None:
    """Write the file `LEGEND` to the folder of answers if the format has one; with `keep` it must not change.

    Raises:
        OutputError: the file cannot be written, or has to change though older answers are kept.
    """
    if form.legend is None:
        return
    content, path = form.legend(output), out / LEGEND
    old = path.read_bytes() if path.is_file() else None
    if old == content:
        return
    if keep and old is not None:
        raise OutputError(
            f"{path}: is not the legend of this model, so the files beside it may have other classes; leave out "
            "--skip-existing, or choose another folder with -o"
        )
    write_bytes(path, content)
