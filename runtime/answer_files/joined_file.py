"""One file with the answers of many images, written as they come and published whole when all are there."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.support.files import remove_leftovers_of, replacing

if TYPE_CHECKING:
    from runtime.result import Segmentation


class FileLayout(Protocol):
    """The text of one kind of file: its head, an entry for each image, its tail."""

    @property
    def head(self) -> bytes:
        """First bytes of the file."""

    @property
    def separator(self) -> bytes:
        """Bytes between the texts of two entries."""

    def entry(self, name: str, result: "Segmentation") -> Any:
        """Return an image's entry; several threads call this at once."""

    def text(self, entry: Any, index: int, /) -> bytes:
        """Return the bytes of the entry number `index`, counted from 0, which may be none."""

    def tail(self, count: int, /) -> bytes:
        """Return the bytes that end a file of `count` entries."""

    def read(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield the name and the entry of each image of an older file, without truncated entries.

        Raises:
            OutputError: the file has another layout.
        """


class JoinedFile:
    """A file that grows by one entry for each image; `published` is the number of new ones in the finished file.

    `file` is unbuffered. Ctrl-C may come between any two lines of Python; `cut` removes what has not been counted.
    """

    def __init__(self, layout: FileLayout, file: io.FileIO | io.BytesIO) -> None:
        self.published = 0
        self._layout, self._file = layout, file
        self._done = 0, 0  # entries, and bytes up to their end: one value, so that Ctrl-C never finds it half changed
        self._kept = 0
        self._write(layout.head)
        self._done = 0, len(layout.head)

    def keep(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Write the entries of an older file, which are not counted as new ones."""
        for _, entry in entries:
            self.take(entry)
        self._kept = self._done[0]

    def add(self, name: str, result: "Segmentation") -> None:
        """Write the entry of one image, under its name."""
        self.take(self.make(name, result))

    def make(self, name: str, result: "Segmentation") -> Any:
        """Return the entry of one image for `take`; several threads may call this at once."""
        return self._layout.entry(name, result)

    def take(self, entry: Any) -> None:
        """Write an entry that `make` returned."""
        count, size = self._done
        text = self._layout.text(entry, count)
        if text and size > len(self._layout.head):
            text = self._layout.separator + text
        self._write(text)
        self._done = count + 1, size + len(text)

    def cut(self) -> None:
        """Truncate the file after the last counted entry."""
        self._file.truncate(self._done[1])
        self._file.seek(self._done[1])

    def finish(self) -> int:
        """Write the end of the file; returns the number of new entries."""
        self._write(self._layout.tail(self._done[0]))
        return self._done[0] - self._kept

    def _write(self, text: bytes) -> None:
        left = memoryview(text)
        while left:
            left = left[self._file.write(left) :]


@contextmanager
def open_joined(layout: FileLayout, path: Path, keep: bool) -> Iterator[JoinedFile]:
    """Open a file for the answers of many images; it appears when the context ends, even after Ctrl-C.

    With `keep` it starts with the entries of the file that `path` is already.

    Raises:
        OutputError: the file cannot be written, or has another layout.
    """
    remove_leftovers_of([Path(os.path.realpath(path))])
    interrupt = None
    with replacing(path, follow=True) as temporary, open(temporary, "wb", buffering=0) as file:
        joined = JoinedFile(layout, file)
        if keep and path.exists():
            joined.keep(layout.read(path))
        try:
            yield joined
            count = joined.finish()
        except KeyboardInterrupt as error:
            interrupt = error
            joined.cut()
            count = joined.finish()
    joined.published = count
    if interrupt is not None:
        raise interrupt
