"""Sinks of `unet-predict`: one file for each image, or one table for all images."""

import csv
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.commands.inputs import Job
from runtime.errors import OutputError
from runtime.formats import Format, TableFormat
from runtime.result import Segmentation
from runtime.support.files import make_folder, replacing

MAX_CELL = 2**31 - 1
"""Maximum number of characters of a table's cell; all run lengths of an image are one cell."""


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
    interrupt = None
    with replacing(out) as temporary, open(temporary, "wb", buffering=0) as file:
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
