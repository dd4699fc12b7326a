"""CSV tables of many images: Carvana's run lengths, and areas and boxes of all classes."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import OutputError
from runtime.images.polygons import box_of

if TYPE_CHECKING:
    from runtime.card import OutputSpec
    from runtime.result import Segmentation

Row = Sequence[str]

MAX_CELL = 2**31 - 1
"""Maximum number of characters of a table's cell; all run lengths of an image are one cell."""


class CsvTable:
    """The layout of a table with one or more rows for each image, whose name is their first cell.

    Attributes:
        columns: first row of the table.
        rows: returns the rows of an image, without its name.
        is_whole: returns True if the rows of one image, read back, are not truncated; raises a ValueError that says
            what was found and expected if they are not of such a table.
    """

    separator = b""

    def __init__(
        self,
        columns: Row,
        rows: Callable[["Segmentation"], Sequence[Row]],
        is_whole: Callable[[Sequence[Row]], bool],
    ) -> None:
        self.columns, self.rows, self.is_whole = columns, rows, is_whole
        self.head = lines_of([columns])

    def entry(self, name: str, result: "Segmentation") -> Sequence[Row]:
        return [(name, *row) for row in self.rows(result)]

    def text(self, entry: Sequence[Row], _: int, /) -> bytes:
        return lines_of(entry)

    def tail(self, _: int, /) -> bytes:
        return b""

    def read(self, path: Path) -> Iterator[tuple[str, Sequence[Row]]]:
        columns = ",".join(self.columns)
        refusal = f"{path}: is not a table of {columns}, so nothing can be added; remove it"
        limit = csv.field_size_limit(MAX_CELL)
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                # A line without its end was truncated; line breaks in names stand in quotes.
                rows = csv.reader(line for line in file if line.endswith(("\n", "\r")))
                if next(rows, None) != list(self.columns):
                    raise OutputError(refusal)
                for name, found in groupby(self._checked(rows, path), key=lambda row: row[0]):
                    entry = list(found)
                    try:
                        if self.is_whole([row[1:] for row in entry]):
                            yield name, entry
                    except ValueError as error:
                        raise OutputError(f"{path}: {name}: {error}; remove it") from error
        except csv.Error as error:
            raise OutputError(refusal) from error
        finally:
            csv.field_size_limit(limit)

    def _checked(self, rows: Iterator[Row], path: Path) -> Iterator[Row]:
        """Yield rows that have all columns; raises an OutputError otherwise."""
        for number, row in enumerate(rows, 2):
            if len(row) != len(self.columns):
                raise OutputError(
                    f"{path}: line {number} has {len(row)} fields, expected {len(self.columns)}; remove it"
                )
            yield row


def lines_of(rows: Sequence[Row]) -> bytes:
    """Return rows as the bytes of a CSV file."""
    lines = []
    for row in rows:
        text = io.StringIO()
        # Before Python 3.13, cells with a line break get quotes only if it is in `lineterminator`.
        csv.writer(text, lineterminator="\r\n").writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines).encode(errors="surrogateescape")  # file names need not be text


def run_lengths() -> CsvTable:
    """Return the layout of Kaggle's Carvana challenge: the run lengths of each image's foreground."""
    return CsvTable(
        ("img", "rle_mask"), lambda result: [(result.rle(),)], lambda rows: len(rows[0][0].split()) % 2 == 0
    )


def areas(output: "OutputSpec") -> CsvTable:
    """Return the layout with a row for each image and class: area in pixels, share of the image (0 to 1), box."""

    def rows(result: "Segmentation") -> list[Row]:
        height, width = result.shape
        found: list[Row] = []
        for index, name in enumerate(result.classes):
            region = result.region(index)
            area, box = int(np.count_nonzero(region)), box_of(region) or ("", "", "", "")
            share = area / (height * width)
            found.append((str(width), str(height), name, str(area), f"{share:.6f}", *map(str, box)))
        return found

    def is_whole(rows: Sequence[Row]) -> bool:
        classes = tuple(row[2] for row in rows)
        if classes != output.classes[: len(classes)]:
            raise ValueError(f"found the classes {', '.join(classes)}, expected {', '.join(output.classes)}")
        return len(classes) == len(output.classes)

    return CsvTable(
        ("image", "width", "height", "class", "area", "share", "x0", "y0", "x1", "y1"),
        rows,
        is_whole,
    )
