"""Pages of a TIFF file: their sizes, and each of them as a TIFF file of its own."""

import io
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from runtime.errors import ImageError
from runtime.image_files import starts
from runtime.image_files.damage import DamageError
from runtime.image_files.decoding import image_errors
from runtime.image_files.limits import LIMITS, Limits
from runtime.image_files.pages import SMALLER_OR_MASK
from runtime.image_files.tiff import COUNTS, MAX_PIECES, MAX_TAGS, OFFSETS

KIND, WIDTH, HEIGHT = 254, 256, 257
"""Tags of a directory that are read here."""

POINTERS = frozenset({330, 34665, 34853, 40965})
"""Tags that point to further directories (smaller pictures, EXIF, GPS), which a page is copied without."""

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size in bytes of one value of each type of TIFF 6.0 and BigTIFF."""

INTEGERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
"""Types of unsigned integers, in the letters of `struct`."""

MOST_TAGS = 2_000_000
"""Maximum number of tags of all pages."""

Content = bytes | mmap.mmap


@dataclass(frozen=True, kw_only=True)
class Field:
    """A tag of a directory: its type, its number of values, and the place and size of these in bytes."""

    tag: int
    type: int
    count: int
    place: int
    size: int

    def stored(self, content: Content) -> bytes:
        """Return the values as they are stored."""
        return bytes(content[self.place : self.place + self.size])


@dataclass(frozen=True, kw_only=True)
class Form:
    """The layout of a TIFF (or BigTIFF) file: its byte order, the letters of its numbers, the bytes of its fields."""

    order: str
    is_big: bool

    @classmethod
    def of(cls, content: Content) -> "Form":
        """Read the form from a file's first bytes."""
        order = "<" if content[:2] == b"II" else ">"
        return cls(order=order, is_big=struct.unpack_from(order + "H", content, 2)[0] == 43)

    @property
    def header(self) -> int:
        """Size of the header, in bytes."""
        return 16 if self.is_big else 8

    @property
    def offset(self) -> str:
        """Letter of an offset."""
        return "Q" if self.is_big else "L"

    @property
    def number(self) -> str:
        """Letter of the number of a directory's entries."""
        return "Q" if self.is_big else "H"

    @property
    def inline(self) -> int:
        """Bytes of values that an entry itself holds."""
        return 8 if self.is_big else 4

    def integers(self, content: Content, entry: Field) -> tuple[int, ...]:
        """Return the values of an entry as integers."""
        if entry.type not in INTEGERS or entry.count > MAX_PIECES:
            raise DamageError(f"tag {entry.tag} makes no sense")
        return struct.unpack(f"{self.order}{entry.count}{INTEGERS[entry.type]}", entry.stored(content))


def page_sizes(path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """Return (width, height) of each page of a TIFF file; pages that are smaller versions or masks are left out.

    A file that cannot be read, or is no TIFF, has no pages: decoding it will tell.

    Raises:
        ImageError: the list of pages is damaged behind the first one.
    """
    sizes: list[tuple[int, int]] = []
    try:
        with mapped(path) as content:
            form = Form.of(content)
            for start in pages(content, form):
                page = read_directory(content, form, start)
                sizes.append((form.integers(content, page[WIDTH])[0], form.integers(content, page[HEIGHT])[0]))
    except (OSError, ValueError):  # the latter: an empty file, which cannot be mapped
        return []
    except (struct.error, DamageError, KeyError, IndexError) as error:
        if len(sizes) > 1:
            raise ImageError(f"{path}: is damaged or truncated behind page {len(sizes)}; replace it") from error
    return sizes


def open_page(path: str | os.PathLike[str], index: int, limits: Limits = LIMITS) -> io.BytesIO:
    """Return a page of a TIFF file, counted from 0, as a file of its own, which is named "PATH, page NUMBER".

    Raises:
        ImageError: the page is missing or damaged, or exceeds the limits.
    """
    name = f"{os.fspath(path)}, page {index + 1}"
    with image_errors(name), mapped(path) as content:
        try:
            form = Form.of(content)
            start = next(islice(pages(content, form), index, None), None)
            if start is None:
                raise DamageError("there is no such page")
            file = io.BytesIO(page_as_file(content, form, read_directory(content, form, start), limits))
        except (struct.error, KeyError, ValueError, StopIteration) as error:
            raise DamageError("its directory makes no sense") from error
    file.name = name  # by which messages call it
    return file


@contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """Map a TIFF file into memory, of which a page's bytes alone are read.

    Raises:
        ValueError: it is no TIFF, or empty.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] not in starts.TIFF:
            raise ValueError("is no TIFF")
        yield content


def pages(content: Content, form: Form) -> Iterator[int]:
    """Yield the offset of each page's directory, without smaller versions and masks."""
    start = struct.unpack_from(form.order + form.offset, content, form.header - form.inline)[0]
    seen, tags = set[int](), 0
    while start:
        count, first, step = layout(content, form, start)
        tags += count
        if start in seen or tags > MOST_TAGS:
            raise DamageError("its list of pages has no end")
        seen.add(start)
        kind = 0
        for position in range(first, first + count * step, step):  # tags are in rising order
            tag = struct.unpack_from(form.order + "H", content, position)[0]
            if tag >= KIND:
                kind = form.integers(content, read_entry(content, form, position)[1])[0] if tag == KIND else 0
                break
        if len(seen) == 1 or not kind & SMALLER_OR_MASK:
            yield start
        start = struct.unpack_from(form.order + form.offset, content, first + count * step)[0]


def layout(content: Content, form: Form, start: int) -> tuple[int, int, int]:
    """Return the number of entries of a directory, the offset of the first one, and the size of each."""
    count = struct.unpack_from(form.order + form.number, content, start)[0]
    if count > MAX_TAGS:
        raise DamageError("a page has too many tags")
    return count, start + struct.calcsize(form.order + form.number), 4 + 2 * form.inline


def read_directory(content: Content, form: Form, start: int) -> dict[int, Field]:
    """Read the entries of a directory by their tags."""
    count, first, step = layout(content, form, start)
    return dict(read_entry(content, form, first + place * step) for place in range(count))


def read_entry(content: Content, form: Form, position: int) -> tuple[int, Field]:
    """Read an entry of a directory, with its tag in front."""
    tag, kind, count = struct.unpack_from(f"{form.order}HH{form.offset}", content, position)
    size, place = TYPE_BYTES.get(kind, 1) * count, position + 4 + form.inline
    if size > form.inline:
        place = struct.unpack_from(form.order + form.offset, content, place)[0]
    if place + size > len(content):
        raise DamageError(f"tag {tag} lies behind the end of the file")
    return tag, Field(tag=tag, type=kind, count=count, place=place, size=size)


def page_as_file(content: Content, form: Form, page: dict[int, Field], limits: Limits) -> bytes:
    """Copy a page's directory, values, and strips or tiles into a TIFF file that has nothing else."""
    offsets, counts = next(tags for tags in zip(OFFSETS, COUNTS, strict=True) if tags[0] in page)
    kept = [entry for tag, entry in sorted(page.items()) if tag not in POINTERS]
    pieces = list(zip(form.integers(content, page[offsets]), form.integers(content, page[counts]), strict=True))
    limits.check_file(sum(size for _, size in pieces) + sum(entry.size for entry in kept))
    head = struct.pack(form.order + form.number, len(kept))
    values_start = form.header + len(head) + len(kept) * (4 + 2 * form.inline) + form.inline
    place = values_start + sum(entry.size + 8 for entry in kept) + 8 * len(pieces)  # room for all values, rounded up
    moved = []
    for _, size in pieces:
        moved.append(place)
        place += size
    entries, values = bytearray(), bytearray()
    for entry in kept:
        kind, stored = entry.type, entry.stored(content)
        if entry.tag == offsets:
            kind = 16 if form.is_big else 4
            stored = struct.pack(f"{form.order}{len(moved)}{form.offset}", *moved)
        entries += struct.pack(f"{form.order}HH{form.offset}", entry.tag, kind, entry.count)
        if len(stored) <= form.inline:
            entries += stored.ljust(form.inline, b"\0")
        else:
            entries += struct.pack(form.order + form.offset, values_start + len(values))
            values += stored.ljust(-(-len(stored) // 8) * 8, b"\0")
    magic = struct.pack(f"{form.order}HHHQ", 43, 8, 0, 16) if form.is_big else struct.pack(f"{form.order}HL", 42, 8)
    directory = bytes(content[:2]) + magic + head + entries + bytes(form.inline) + values
    directory = directory.ljust(moved[0] if moved else 0, b"\0")
    return directory + b"".join(content[start : start + size] for start, size in pieces)
