"""The CSV file of masks that Carvana's competition takes."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from runtime import rle
from runtime.errors import OutputError
from runtime.support.files import replacing
from unet_core.data.labels import Labels
from unet_core.data.pairs import Pair


class Submission:
    """A header, then one line per image: its file name and the runs of its mask. `empty`: no mask has foreground."""

    def __init__(self, file: TextIO, pairs: Sequence[Pair]) -> None:
        self._writer, self._pairs, self.empty = csv.writer(file, lineterminator="\n"), pairs, True
        self._writer.writerow(("img", "rle_mask"))

    def add(self, index: int, predicted: Labels, *_: Any) -> None:
        """Write the mask of image `index`, at the image's original size."""
        self.empty = self.empty and not predicted.any()
        self._writer.writerow((self._pairs[index].file_name, rle.encode(predicted)))


@contextmanager
def open_submission(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> Iterator[Submission]:
    """Open a submission that replaces the file at `path` once the block has ended without an error.

    Raises:
        OutputError: the folder does not exist, or the file cannot be written.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise OutputError(f"--submission {path}: no such folder {folder}; make it or choose another")
    # File names that are not valid UTF-8 are written byte for byte.
    with (
        replacing(path, follow=True) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield Submission(file, pairs)
