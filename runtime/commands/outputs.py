"""Outputs of `unet-predict`: the file of each image, checked before the work begins, and the sinks that write them."""

import csv
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runtime.commands.inputs import Found
from runtime.errors import OutputError
from runtime.image import SUFFIXES
from runtime.output_formats import Format, TableFormat
from runtime.result import Segmentation
from runtime.support.files import make_folder, refuse_inner_links, remove_leftovers_of, replacing

MAX_CELL = 2**31 - 1
"""Maximum number of characters of a table's cell; all run lengths of an image are one cell."""


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


@dataclass
class Tally:
    """Number of answers on disk, and one line for each failure."""

    written: int = 0
    failures: list[str] = field(default_factory=list)


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
    """Writes one row of a CSV table for each image.

    `file` is unbuffered. Ctrl-C may come between any two lines of Python; `cut` removes what has not been counted.
    """

    def __init__(self, form: TableFormat, file: io.FileIO) -> None:
        self._form, self._file = form, file
        self._done = 0, 0  # rows, and bytes up to their end: one value, so that Ctrl-C never finds it half changed
        self._add(form.columns, 0)

    @property
    def rows(self) -> int:
        """Number of new rows."""
        return self._done[0]

    def keep(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write rows of an older table, which are not counted."""
        for row in rows:
            self._add(row, 0)

    def make(self, job: Job, result: Segmentation) -> tuple[str, str]:
        """Return a row; several threads call this."""
        return job.name, self._form.cell(result)

    def take(self, made: tuple[str, str]) -> None:
        """Write a row, in order."""
        self._add(made, 1)

    def cut(self) -> None:
        """Truncate the file after the last counted row."""
        self._file.truncate(self._done[1])

    def _add(self, row: Sequence[str], count: int) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        line = text.getvalue().encode(errors="surrogateescape")  # file names need not be text
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        self._done = self._done[0] + count, self._done[1] + len(line)


@contextmanager
def open_sink(form: Format | TableFormat, out: Path, keep: bool, tally: Tally) -> Iterator[FileSink | TableSink]:
    """Open the place that answers are written to.

    A table appears when the context ends, with the rows made so far even after Ctrl-C.

    Args:
        form: format of the files or of the table.
        out: folder of the files, or path of the table.
        keep: start a table with the rows that it already has.
        tally: counts what is written.

    Raises:
        OutputError: the folder or the table cannot be written.
    """
    if isinstance(form, Format):
        yield FileSink(form, out, tally)
        return
    remove_leftovers_of([Path(os.path.realpath(out))])
    interrupt = None
    with replacing(out, follow=True) as temporary, open(temporary, "wb", buffering=0) as file:
        table = TableSink(form, file)
        if keep and out.exists():
            table.keep(read_rows(form, out))
        try:
            yield table
        except KeyboardInterrupt as error:
            interrupt = error
            table.cut()
    tally.written += table.rows
    if interrupt is not None:
        raise interrupt


def read_rows(form: TableFormat, path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, cell) of a table's rows, without truncated ones.

    Raises:
        OutputError: the file is not such a table.
    """
    columns = ",".join(form.columns)
    refusal = f"{path}: is not a table of {columns}, so nothing can be added; remove it"
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            # A line without its end was truncated; no cell of ours holds a line break.
            rows = csv.reader(line for line in file if line.endswith(("\n", "\r")))
            if next(rows, None) != list(form.columns):
                raise OutputError(refusal)
            for row in rows:
                if len(row) != len(form.columns):
                    raise OutputError(f"{path}: line {rows.line_num} has {len(row)} fields, expected 2; remove it")
                if form.is_whole(row[1]):
                    yield row[0], row[1]
    except csv.Error as error:
        raise OutputError(refusal) from error
    finally:
        csv.field_size_limit(limit)
