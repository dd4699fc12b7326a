"""What `unet-predict` makes of answers: one file for each image, or a row of one table."""

import csv
import io
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.commands.inputs import Job
from runtime.errors import OutputError
from runtime.images.overlay import strips
from runtime.images.png import png_of
from runtime.result import Segmentation
from runtime.support.files import make_folder, replacing, write_bytes

SUFFIX = {"mask": ".png", "probability": ".png", "npy": ".npy", "overlay": ".png", "cutout": ".png"}
"""Of the files that each format is written to."""

PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
PNG_KIND = {"mask": (8, 0), "probability": (16, 0), "overlay": (8, 2), "cutout": (8, 6)}
"""Bits of a channel and type of colour in the header of each format's PNG."""

TABLE = "rle-csv"
HEADER = ["img", "rle_mask"]
"""First row of Carvana's tables."""

MAX_FIELD = 2**31 - 1
"""Characters of one field that are read: all run lengths of an image are one."""


def encoded(result: Segmentation, kind: str) -> bytes:
    """An answer as the bytes of a file of one of the formats in `SUFFIX`."""
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, result.probability)
        return file.getvalue()
    if kind == "mask":
        return png_of(np.asarray(result.picture()))
    if kind == "probability":
        return png_of(foreground_16(result))
    return png_of(result.overlay() if kind == "overlay" else result.cutout())


def is_finished(path: Path, kind: str, classes: int, size: tuple[int, int]) -> bool:
    """Whether a file is whole and of the kind that `encoded` gives for an image of that (height, width), or turned.

    Its header, its end and its length are looked at, which costs little; the model that wrote it cannot be told.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            begin = file.read(128)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - len(PNG_END)))
            end = file.read(len(PNG_END))
    except OSError:
        return False
    if kind == "npy":
        head = npy_head(classes, size), npy_head(classes, size[::-1])
        return begin in head and length == len(begin) + 4 * classes * size[0] * size[1]
    bits, colour = (16, 0) if kind == "mask" and classes > 256 else PNG_KIND[kind]
    heads = [PNG_BEGIN + struct.pack(">LLBB", width, height, bits, colour) for height, width in (size, size[::-1])]
    return begin.startswith(tuple(heads)) and end == PNG_END


def npy_head(classes: int, size: tuple[int, int]) -> bytes:
    """What a .npy file of float32 [classes, height, width] begins with: 128 bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (classes, *size)})
    return file.getvalue()


def foreground_16(result: Segmentation) -> NDArray[np.uint16]:
    """Probability of the foreground (the only class, or all but the first) times 65535, uint16 [height, width]."""
    first = 1 if len(result.classes) > 1 else 0
    levels = np.empty(result.size, np.uint16)
    for rows in strips(result.size):
        share = result.probability[first:, rows].sum(axis=0)  # [rows, width]
        levels[rows] = np.rint(65_535 * np.fmin(np.fmax(share, 0), 1))
    return levels


@dataclass
class Tally:
    """How many answers are on the disk, and what failed, one line each."""

    written: int = 0
    failures: list[str] = field(default_factory=list)


class Files:
    """One file for each image."""

    def __init__(self, kind: str, out: Path, tally: Tally) -> None:
        self._kind, self._tally = kind, tally
        self._lock = threading.Lock()
        make_folder(out)

    def make(self, job: Job, result: Segmentation) -> None:
        """Write a file; called in several threads.

        Raises:
            OutputError: it cannot be written.
        """
        write_bytes(job.target, encoded(result, self._kind))
        with self._lock:
            self._tally.written += 1

    def take(self, made: Any) -> None:
        """Nothing is left to be done in order."""


class Table:
    """Rows of img, rle_mask in a CSV file, as Kaggle's Carvana challenge takes them; see `runtime.rle`.

    `file` is unbuffered, and Ctrl-C may come between any two lines of Python: `cut` takes away what is not counted.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._done = 0, 0  # rows, and bytes of the file up to their end: one value, so that it is never half changed
        self._add(HEADER, 0)

    @property
    def rows(self) -> int:
        """How many were taken."""
        return self._done[0]

    def keep(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write rows of an older table, which are not counted."""
        for row in rows:
            self._add(row, 0)

    def make(self, job: Job, result: Segmentation) -> tuple[str, str]:
        """A row; called in several threads."""
        return job.name, result.rle()

    def take(self, made: tuple[str, str]) -> None:
        """Write a row, in order."""
        self._add(made, 1)

    def cut(self) -> None:
        """End the file after the last row that was counted."""
        self._file.truncate(self._done[1])

    def _add(self, row: Sequence[str], count: int) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        line = text.getvalue().encode(errors="surrogateescape")  # names need not be text
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        self._done = self._done[0] + count, self._done[1] + len(line)


@contextmanager
def sink(kind: str, out: Path, keep: bool, tally: Tally) -> Iterator[Files | Table]:
    """Where answers go. A table is in its place when the context is left, also by Ctrl-C, with the rows made by then.

    Args:
        kind: one of `SUFFIX`, or `TABLE`.
        out: the folder, or the CSV file.
        keep: begin a table with the rows that it has already.
        tally: counts what is written.

    Raises:
        OutputError: it cannot be written.
    """
    if kind != TABLE:
        yield Files(kind, out, tally)
        return
    interrupt = None
    with replacing(out) as temporary, open(temporary, "wb", buffering=0) as file:
        table = Table(file)
        if keep and out.exists():
            table.keep(rows_in(out))
        try:
            yield table
        except KeyboardInterrupt as error:
            interrupt = error
            table.cut()
    tally.written += table.rows
    if interrupt is not None:
        raise interrupt


def rows_in(path: Path) -> Iterator[tuple[str, str]]:
    """Names and run lengths of a table, one by one, but for rows that were cut off: an end of a line or a length lacks.

    Raises:
        OutputError: it is no such table.
    """
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(_whole_lines(file))
            header = next(rows, None)
            if header != HEADER:
                raise OutputError(f"{path}: is no table of {','.join(HEADER)}, so nothing can be added; remove it")
            for row in rows:
                if len(row) != len(HEADER):
                    raise OutputError(f"{path}: line {rows.line_num} has {len(row)} fields, expected 2; remove it")
                if len(row[1].split()) % 2 == 0:
                    yield row[0], row[1]
    except csv.Error as error:
        raise OutputError(f"{path}: is no table of {','.join(HEADER)}, so nothing can be added; remove it") from error
    finally:
        csv.field_size_limit(limit)


def _whole_lines(file: Iterable[str]) -> Iterator[str]:
    """The lines of a table that end; no field of ours holds a line break."""
    return (line for line in file if line.endswith(("\n", "\r")))
