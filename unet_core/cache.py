"""Decoded and resized images on disk, so that epochs after the first never decode again.

One folder holds the records of one list of pairs read in one way: `records.bin`, in which pictures and labels follow
each other as they are, and `index.npy`, which says where each is and what its checksum is. The folder's name is a hash
over everything that the records depend on, among it every file's path, size and times of change, so a changed file
means another folder. Records are appended and the index is replaced every few seconds, data first: a stop at any moment
loses seconds of work. What does not have its checksum is decoded anew.
"""

import hashlib
import io
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_path

from runtime.card import CHANNEL_COUNT, InputSpec
from runtime.errors import ImageError, OutputError
from runtime.files import make_folder, write_bytes
from runtime.image import fit, image_size, load_image
from runtime.providers import available_threads
from unet_core.labels import IGNORED, Labels, LabelSpec, fit_truth, load_truth
from unet_core.pairs import Pair, refuse

VERSION = 1
"""Of the records: another one is another folder."""

PREFIX, INDEX, DATA, LOCK = "records-", "index.npy", "records.bin", "lock"
HASH_DIGITS = 32
HEADER_BYTES, CHECKSUM_BYTES = 512, 4
"""Of the index: at most, and exactly."""

SAVE_SECONDS = 3.0
AHEAD = 4
"""Pairs per core that are decoded ahead of the one that is written."""

JPEG_SUFFIXES = (".jpg", ".jpeg")

PENDING, NOT_STORED = -2, -1
"""Offsets of pairs that have yet to be decoded, and of those that are fine but did not fit into the cache."""

SIDES = ("height", "width", "truth_height", "truth_width")
ROW = np.dtype([("offset", "<i8"), ("checksum", "<u4"), *((side, "<i4") for side in SIDES), ("some", "?")])
"""A record: where, its CRC-32, the sides of picture and labels (0 before it was ever decoded), and whether any pixel is
of a class other than the first."""

Record = tuple[NDArray[np.uint8], Labels]
"""A fitted picture uint8 [h, w, channels], and labels uint8: fitted too, or at the image's own size."""

Note = Callable[[str], None]
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made of a pair; where there is no mask, no pixel counts.

    `truth_at_original`: labels keep the image's own size, to measure there. `draft`: large JPEGs are decoded at a
    fraction of their size; their pixels differ slightly from those that the runtime sees, so only training does it.
    """

    input: InputSpec
    labels: LabelSpec
    truth_at_original: bool = False
    draft: bool = False

    def make(self, pair: Pair) -> Record:
        """Decode a pair.

        Raises:
            ImageError: it cannot be read, or image and mask differ in size.
        """
        draft = self.draft and self.input.fit != "native" and pair.image.suffix.lower() in JPEG_SUFFIXES
        image = load_image(pair.image, self.input.channels, at_least=self.input.size if draft else None)
        size = image_size(pair.image) if draft else image.shape[:2]
        labels = np.full(size, IGNORED, np.uint8) if pair.mask is None else load_truth(pair.mask, self.labels)
        if size != labels.shape:
            (height, width), (mask_height, mask_width) = size, labels.shape
            raise ImageError(
                f"{pair.mask}: is {mask_width}x{mask_height}, expected {width}x{height} as {pair.image.name}"
            )
        fitted = fit(image, self.input)
        return fitted.image, labels if self.truth_at_original else fit_truth(labels, fitted)


class Records:
    """The records of a list of pairs, by index: from the cache where they are there, else decoded anew."""

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe) -> None:
        self.pairs, self.recipe = list(pairs), recipe
        self._use(_unknown(len(self.pairs)), None)

    def _use(self, rows: NDArray[Any], folder: Path | None) -> None:
        """Read from a folder from now on, where these rows say."""
        self.rows, self.folder = rows, folder
        self._data: NDArray[np.uint8] | None = None
        self._checked = np.zeros(len(rows), np.bool_)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        stored = self._stored(index)
        return self.recipe.make(self.pairs[index]) if stored is None else stored

    def _stored(self, index: int) -> Record | None:
        row = self.rows[index]
        if row["offset"] < 0 or not self._open():
            return None
        assert self._data is not None
        height, width, *truth = (int(row[side]) for side in SIDES)
        size = height * width * self.channels
        content = self._data[row["offset"] : row["offset"] + size + truth[0] * truth[1]]
        if not self._checked[index]:  # once in every process: a large image takes some milliseconds
            if zlib.crc32(content.data) != row["checksum"]:
                self._distrust(index)
                return None
            self._checked[index] = True
        return content[:size].reshape(height, width, -1).copy(), content[size:].reshape(truth).copy()

    def _distrust(self, index: int) -> None:
        """Decode this one from now on, and let the next run make all of them anew."""
        self.rows["offset"][index] = NOT_STORED
        assert self.folder is not None
        with suppress(OSError):
            (self.folder / INDEX).unlink()

    def _open(self) -> bool:
        """Map the file; once mapped, it stays readable even if another run makes room."""
        if self._data is None and self.folder is not None:
            with suppress(OSError, ValueError):
                self._data = np.memmap(self.folder / DATA, np.uint8, mode="r").view(np.ndarray)
                self._checked[:] = False  # it may be another file by now
        return self._data is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None}  # another process maps the file itself

    @property
    def channels(self) -> int:
        """Of the pictures: 3 or 1."""
        return CHANNEL_COUNT[self.recipe.input.channels]

    @property
    def stored(self) -> int:
        """How many are in the cache."""
        return int(np.count_nonzero(self.rows["offset"] >= 0))

    @property
    def has_foreground(self) -> bool:
        """Whether any mask holds more than the first class, or than background."""
        return bool(self.rows["some"].any())


def _unknown(count: int) -> NDArray[Any]:
    rows = np.zeros(count, ROW)
    rows["offset"] = PENDING
    return rows


def _lengths(rows: NDArray[Any], channels: int) -> NDArray[np.int64]:
    """Bytes of every record, as far as they are known."""
    height, width, truth_height, truth_width = (rows[side].astype(np.int64) for side in SIDES)
    return height * width * channels + truth_height * truth_width


def _end(rows: NDArray[Any], channels: int) -> int:
    """Where the last stored record ends."""
    stored = rows[rows["offset"] >= 0]
    return int((stored["offset"] + _lengths(stored, channels)).max(initial=0))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of such folders, at most `limit` bytes in all: the longest unused ones make room for new ones.

    What is there already of the sets that are being prepared is never removed, also where the limit is lower now.
    """

    folder: Path
    limit: int

    def of(self, pairs: Sequence[Pair], recipe: Recipe) -> Path:
        """The folder of these records; raises OSError where a file has vanished."""
        files = [_identity(path) for pair in pairs for path in pair.files]
        versions = (VERSION, PIL.__version__, cv2.__version__)
        content = json.dumps([versions, asdict(recipe), files], sort_keys=True)
        return self.folder / (PREFIX + hashlib.sha256(content.encode()).hexdigest()[:HASH_DIGITS])

    def make_room(self, keep: Collection[Path], more: int = 0) -> int:
        """Remove the longest unused folders, none of `keep`, until `more` bytes are free; returns how many then are."""
        sizes = {path: _size(path) for path in self.folder.glob(PREFIX + "[0-9a-f]" * HASH_DIGITS)}
        for path in sorted(sizes.keys() - set(keep), key=_last_use):
            if sum(sizes.values()) + more <= self.limit:
                break
            if _remove(path):
                del sizes[path]
        return self.limit - sum(sizes.values())


Folders = Mapping[Records, Path]
"""Where records are kept."""


def open_cache(folder: str, gigabytes: float) -> Cache | None:
    """The cache in a folder, or None for 0 gigabytes.

    "" is the user's cache folder; where that cannot be made, `prepare` says so, and does without.

    Raises:
        OutputError: the folder cannot be made.
    """
    if not gigabytes:
        return None
    place = make_folder(folder) if folder else user_cache_path("unet-deploy") / "decoded"
    return Cache(folder=place, limit=int(gigabytes * 1e9))


def _identity(path: Path) -> tuple[str, int, int, int]:
    """What changes with a file's content; a copy that keeps size and modification time has another time of change."""
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _size(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size
    return total


def _last_use(folder: Path) -> float:
    with suppress(OSError):
        return (folder / INDEX).stat().st_mtime
    return 0.0


def _remove(folder: Path) -> bool:
    """Remove the records in a folder, unless somebody is making them; what is not ours stays."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            for path in (folder / DATA, folder / INDEX, *_temporaries(folder)):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # Windows does not remove a lock that is held; an empty folder does no harm
                (folder / LOCK).unlink()
                folder.rmdir()
    except FileNotFoundError:  # another process was faster
        return True
    except (Timeout, OSError, NotImplementedError):
        return False
    return True


def _temporaries(folder: Path) -> Iterator[Path]:
    """What is left of an index whose writer was killed."""
    return folder.glob(f".{Path(INDEX).stem}.*")


def prepare(sets: Sequence[Records], cache: Cache | None, advance: Advance, note: Note) -> None:
    """Look at every pair that was not looked at before, and keep it decoded where there is a cache with room.

    Raises:
        DataError: listing the pairs that are unreadable, cut off, of another size than their image, or have odd values;
            of all sets together.
    """
    note = lru_cache(maxsize=None)(note)  # what hinders one set may hinder all: it is said once
    folders = _folders(sets, cache)
    if cache is not None:
        cache.make_room(folders.values())  # the limit may be lower than last time
    problems: list[str] = []
    for records in sets:
        with ExitStack() as stack:
            store = _open_store(records, cache, folders, stack, note)
            for index, made in _decoded(records, store):
                advance(1)
                if isinstance(made, str):
                    problems.append(made)
                    continue
                image, labels = made
                some = ((labels > 0) & (labels != IGNORED)).any()
                records.rows[index] = (NOT_STORED, 0, *image.shape[:2], *labels.shape, some)
                if store is not None:
                    store.append(index, image, labels)
        records._open()
    refuse(problems, sum(map(len, sets)))


def pending(sets: Sequence[Records], cache: Cache | None) -> int:
    """How many pairs `prepare` will have to decode; takes what an earlier run has left."""
    folders = _folders(sets, cache)
    for records in sets:
        if cache is not None and records in folders:
            _take(records, cache, folders)
    return sum(int(np.count_nonzero(records.rows["offset"] == PENDING)) for records in sets)


def _folders(sets: Sequence[Records], cache: Cache | None) -> Folders:
    """Where the records of each set are kept; of none without a cache, nor where a file has vanished."""
    if cache is None:
        return {}
    folders = {}
    for records in sets:
        with suppress(OSError):
            folders[records] = cache.of(records.pairs, records.recipe)
    return folders


def _decoded(records: Records, store: "_Store | None") -> Iterator[tuple[int, Record | str]]:
    """Decode what is pending, in order, a few ahead on all cores: (index, record, or what is wrong with the pair)."""
    waiting: deque[tuple[int, Future[Record | str]]] = deque()
    threads = available_threads()
    pool = ThreadPoolExecutor(threads)
    try:
        for index in _wanted(records, store):
            waiting.append((index, pool.submit(_made, records, index)))
            if len(waiting) >= AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _wanted(records: Records, store: "_Store | None") -> Iterator[int]:
    """What is pending; pairs that are known to be fine only as long as they can be stored."""
    for index in np.flatnonzero(records.rows["offset"] == PENDING):
        if records.rows["height"][index] and (store is None or not store.storing):
            records.rows["offset"][index] = NOT_STORED
        else:
            yield int(index)


def _made(records: Records, index: int) -> Record | str:
    try:
        return records.recipe.make(records.pairs[index])
    except ImageError as error:
        return str(error)


def _take(records: Records, cache: Cache, folders: Folders) -> bool:
    """Use what an earlier run has left. What did not fit then, and does now, is pending again."""
    folder = folders[records]
    rows = _read_index(folder, len(records))
    if rows is None:
        return False
    try:
        if (folder / DATA).stat().st_size < _end(rows, records.channels):
            return False
    except OSError:
        return False
    with suppress(OSError):  # a cache that several users share may be read-only
        os.utime(folder / INDEX)
    left_out = np.flatnonzero(rows["offset"] == NOT_STORED)
    free = cache.limit - _index_bytes(rows) - sum(map(_size, set(folders.values())))
    fits = np.cumsum(_lengths(rows[left_out], records.channels)) <= free
    rows["offset"][left_out[fits]] = PENDING
    records._use(rows, folder)
    return True


def _read_index(folder: Path, count: int) -> NDArray[Any] | None:
    """The rows in a folder, or None where they are not whole."""
    try:
        content = (folder / INDEX).read_bytes()
        rows, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if zlib.crc32(rows).to_bytes(CHECKSUM_BYTES, "little") != checksum:
            return None
        found = np.load(io.BytesIO(rows), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == ROW and found.shape == (count,) else None


def _index_bytes(rows: NDArray[Any]) -> int:
    return rows.nbytes + HEADER_BYTES + CHECKSUM_BYTES


def _write_index(folder: Path, rows: NDArray[Any]) -> None:
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    content = file.getvalue()
    write_bytes(folder / INDEX, content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little"))


def _open_store(
    records: Records, cache: Cache | None, folders: Folders, stack: ExitStack, note: Note
) -> "_Store | None":
    """Where new records go; waits for another process that makes the same ones, and takes its."""
    if cache is None or records not in folders:
        return None
    if records.folder is None:
        _take(records, cache, folders)
    if not (records.rows["offset"] == PENDING).any():
        return None
    try:
        make_folder(cache.folder)
        try:
            lock = _lock(folders[records], note)
        except FileNotFoundError:  # the folder was just removed, to make room
            lock = _lock(folders[records], note)
        stack.callback(lock.release)
        if not _take(records, cache, folders):
            records._use(_unknown(len(records)), None)
        return stack.enter_context(_Store(records, cache, folders, note))
    except (OSError, OutputError, NotImplementedError) as error:
        note(f"decoded images are not kept: {error}")
        return None


def _lock(folder: Path, note: Note) -> BaseFileLock:
    """Make a folder, and keep others from writing there."""
    lock = FileLock(make_folder(folder) / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note("another process decodes the same images; waiting for it")
        lock.acquire()
    return lock


class _Store:
    """Appends records to a folder; a disk that is full or a limit reached ends that, not the run."""

    def __init__(self, records: Records, cache: Cache, folders: Folders, note: Note) -> None:
        self.records, self.cache, self.folders, self.note = records, cache, folders, note
        self.folder = folders[records]
        if records.folder is None:  # another process may still read the old file; cut short, it would crash that
            (self.folder / DATA).unlink(missing_ok=True)
        for path in _temporaries(self.folder):
            path.unlink(missing_ok=True)
        # Unbuffered, so that nothing is left to be written after an error.
        self.file = open(self.folder / DATA, "ab", buffering=0)  # noqa: SIM115 - closed in __exit__
        self.end = _end(records.rows, records.channels)
        self.file.truncate(self.end)  # what was written after the last index
        self.waiting: list[tuple[int, int, int]] = []
        self.free = 0
        self.saved = time.monotonic()
        self.storing = True

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._save()
        self.file.close()

    def append(self, index: int, image: NDArray[np.uint8], labels: Labels) -> None:
        """Write a record, if there is room."""
        size = image.size + labels.size
        if not self.storing or not self._has_room(size):
            return
        parts = [np.ascontiguousarray(part).reshape(-1) for part in (image, labels)]
        try:
            for part in parts:
                self._write(part.data)
        except OSError as error:
            self._stop((error.strerror or str(error)).lower())
            return
        self.end += size  # first: an interruption here leaves some bytes that nothing speaks of, never the reverse
        self.free -= size
        self.waiting.append((index, self.end - size, zlib.crc32(parts[1].data, zlib.crc32(parts[0].data))))
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self._save()

    def _write(self, content: memoryview) -> None:
        while content:
            content = content[self.file.write(content) :]

    def _has_room(self, size: int) -> bool:
        more = size + _index_bytes(self.records.rows)  # the next index is written beside the last one
        if self.free < more:
            self.free = self.cache.make_room(self.folders.values(), more)
        if self.free < more:
            self._stop(f"{self.cache.limit / 1e9:g} GB are full; more with --cache-gb")
        return self.storing

    def _save(self) -> None:
        """Data to the disk first, then the index that speaks of them."""
        rows = self.records.rows.copy()
        for index, offset, checksum in self.waiting:
            rows["offset"][index], rows["checksum"][index] = offset, checksum
        try:
            self.file.truncate(self.end)  # what a full disk left half written
            os.fsync(self.file.fileno())
            _write_index(self.folder, rows)
        except (OSError, OutputError) as error:
            self.waiting, self.end = [], _end(self.records.rows, self.records.channels)
            self._stop(str(error))
            return
        self.records._use(rows, self.folder)
        self.waiting, self.free, self.saved = [], 0, time.monotonic()  # others may have written meanwhile

    def _stop(self, why: str) -> None:
        """Keep what is whole, and only look at the other pairs."""
        if self.storing:
            self.storing = False
            self._save()
            self.note(f"only {self.records.stored} of {len(self.records)} decoded images are kept: {why}")
