"""Decoded and resized images on disk, so that epochs after the first never decode again.

One folder holds the records of one list of pairs read in one way: `records.bin`, in which pictures and labels follow
each other as they are, and `index.npy`, which says where each is and what its checksum is. The folder's name is a hash
over everything that the records depend on, among it every file's path, size and times of change, so a changed file
means another folder. Records are appended and the index is replaced every few seconds, data first: a stop at any moment
loses seconds of work. What does not have its checksum is decoded anew.

A run never fails for its cache: where the folder cannot be made, locked or written, a note names `--cache-dir`, what is
whole is kept, and the other pairs are decoded in every epoch.
"""

import hashlib
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

import cv2
import numpy as np
import PIL
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_path

from runtime.errors import ImageError, OutputError
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_folder
from unet_core.data.labels import IGNORED, Labels, present_labels
from unet_core.data.pairs import Pair, refuse
from unet_core.data.records import (
    DATA,
    INDEX,
    NOT_STORED,
    PENDING,
    Record,
    Records,
    SampleDecoder,
    end_of,
    index_bytes,
    lengths,
    read_index,
    unknown_rows,
    write_index,
)

VERSION = 2
"""Of the records: another one is another folder."""

PREFIX, LOCK = "records-", "lock"
HASH_DIGITS = 32
SAVE_SECONDS = 3.0
AHEAD = 4
"""Pairs per core that are decoded ahead of the one that is written."""

Note = Callable[[str], None]
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of such folders, at most `limit` bytes in all: the longest unused ones make room for new ones.

    What is there already of the sets that are being prepared is never removed, also where the limit is lower now.
    """

    folder: Path
    limit: int

    def of(self, pairs: Sequence[Pair], decoder: SampleDecoder) -> Path:
        """The folder of these records; raises OSError where a file has vanished."""
        files = [_identity(path) for pair in pairs for path in pair.files]
        versions = (VERSION, PIL.__version__, cv2.__version__)
        content = json.dumps([versions, asdict(decoder), files], sort_keys=True)
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
    """The cache in a folder ("": in the user's cache folder), or None for 0 gigabytes; `prepare` makes the folder."""
    if not gigabytes:
        return None
    place = Path(folder) if folder else user_cache_path("unet-deploy") / "decoded"
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
    except (Timeout, OSError, NotImplementedError):  # the last: a file system without locks
        return False
    return True


def _temporaries(folder: Path) -> Iterator[Path]:
    """What is left of an index whose writer was killed."""
    return folder.glob(f".{Path(INDEX).stem}.*")


def prepare(sets: Sequence[Records], cache: Cache | None, advance: Advance, note: Note) -> None:
    """Look at every pair that was not looked at before, and keep it decoded where there is a cache with room.

    Raises:
        DataError: listing the pairs that have a fault, are unreadable, cut off, of another size than their image, or
            have odd values; of all sets together.
    """
    note = lru_cache(maxsize=None)(note)  # what hinders one set may hinder all: it is said once
    folders = _folders(sets, cache)
    if cache is not None:
        with suppress(OSError):  # said where it is opened
            cache.make_room(folders.values())  # the limit may be lower than last time
    faults: list[tuple[Pair, str]] = []
    for records in sets:
        with ExitStack() as stack:
            store = _open_store(records, cache, folders, stack, note)
            for index, made in _decoded(records, store):
                advance(1)
                if isinstance(made, str):
                    faults.append((records.pairs[index], made))
                    continue
                image, labels = made
                some = bool(set(present_labels(labels)) - {records.decoder.labels.background, IGNORED})
                records.rows[index] = (NOT_STORED, 0, *image.shape[:2], *labels.shape, some)
                if store is not None:
                    store.append(index, image, labels)
        records.open()
    refuse(faults, sum(map(len, sets)))


def pending(sets: Sequence[Records], cache: Cache | None) -> int:
    """How many pairs `prepare` will have to decode; takes what an earlier run has left."""
    folders = _folders(sets, cache)
    for records in sets:
        if cache is not None and records in folders:
            _take(records, cache, folders)
    return sum(int(np.count_nonzero(records.rows["offset"] == PENDING)) for records in sets)


def _folders(sets: Sequence[Records], cache: Cache | None) -> Folders:
    """Where the records of each set are kept; of none without a cache, nor where a file has vanished.

    Nor of a set with a faulty pair: it will be refused, and once mended it is another list.
    """
    if cache is None:
        return {}
    folders = {}
    for records in sets:
        if any(pair.fault for pair in records.pairs):
            continue
        with suppress(OSError):
            folders[records] = cache.of(records.pairs, records.decoder)
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
        return records.decoder.make(records.pairs[index])
    except ImageError as error:
        return str(error)


def _take(records: Records, cache: Cache, folders: Folders) -> bool:
    """Use what an earlier run has left. What did not fit then, and does now, is pending again."""
    folder = folders[records]
    rows = read_index(folder, len(records))
    if rows is None:
        return False
    try:
        if (folder / DATA).stat().st_size < end_of(rows, records.channels):
            return False
    except OSError:
        return False
    with suppress(OSError):  # a cache that several users share may be read-only
        os.utime(folder / INDEX)
    left_out = np.flatnonzero(rows["offset"] == NOT_STORED)
    free = cache.limit - index_bytes(rows) - sum(map(_size, set(folders.values())))
    fits = np.cumsum(lengths(rows[left_out], records.channels)) <= free
    rows["offset"][left_out[fits]] = PENDING
    records.use(rows, folder)
    return True


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
            records.use(unknown_rows(len(records)), None)
        return stack.enter_context(_Store(records, cache, folders, note))
    except (OSError, OutputError, NotImplementedError) as error:  # the last: a file system without locks
        note(f"decoded images are not kept: {_unusable(cache, error)}")
        return None


def _unusable(cache: Cache, error: Exception) -> str:
    """Why the folder cannot be used, and what to do about it."""
    cause = error.__cause__ if isinstance(error, OutputError) else error
    reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
    return f"--cache-dir {cache.folder}: cannot be used ({reason.lower()}); choose another one, or --cache-gb 0"


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
        self.end = end_of(records.rows, records.channels)
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
            self._stop(_unusable(self.cache, error))
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
        more = size + index_bytes(self.records.rows)  # the next index is written beside the last one
        if self.free < more:
            self.free = self.cache.make_room(self.folders.values(), more)
        if self.free < more:
            self._stop(f"--cache-gb {self.cache.limit / 1e9:g}: is full; give more")
        return self.storing

    def _save(self) -> None:
        """Data to the disk first, then the index that speaks of them."""
        rows = self.records.rows.copy()
        for index, offset, checksum in self.waiting:
            rows["offset"][index], rows["checksum"][index] = offset, checksum
        try:
            self.file.truncate(self.end)  # what a full disk left half written
            os.fsync(self.file.fileno())
            write_index(self.folder, rows)
        except (OSError, OutputError) as error:
            self.waiting, self.end = [], end_of(self.records.rows, self.records.channels)
            self._stop(_unusable(self.cache, error))
            return
        self.records.use(rows, self.folder)
        self.waiting, self.free, self.saved = [], 0, time.monotonic()  # others may have written meanwhile

    def _stop(self, why: str) -> None:
        """Keep what is whole, and only look at the other pairs."""
        if self.storing:
            self.storing = False
            self._save()
            stored = self.records.stored
            self.note(
                f"only {stored} of {len(self.records)} decoded images {'is' if stored == 1 else 'are'} kept: {why}"
            )
