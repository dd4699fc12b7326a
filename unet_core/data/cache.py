"""Decoded and resized images on disk, so that epochs after the first one decode nothing.

One folder holds the records that one decoder makes of one list of pairs: `records.bin` with pictures and labels one
after the other, uncompressed, and `index.npy` with the position and the checksum of each. The folder's name is a hash
over everything that the records depend on. The path, size and times of every file are part of it, so a changed file
means another folder. Records are appended, and every few seconds the index is replaced, after the data: a kill at any
moment loses seconds of work. A record whose checksum is wrong is decoded anew.

A run never fails because of its cache. If the folder cannot be made, locked or written, a note names `--cache-dir`,
valid records are kept, and the other pairs are decoded in every epoch.

Records are trained on, so they have to be ours or root's, and nobody else may write them (`RECORDS`). Where others'
are in place of ours, a note says so, and ours are made beside them: the folder's name then ends in our user number.
Where others might swap the folders, nothing is read or kept. So several users may share a `--cache-dir`, each with
records of their own; records that root made and opened to all are everybody's.
"""

import hashlib
import json
import os
import re
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import PIL
import simplejpeg
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_path

from runtime.errors import ImageError, OutputError
from runtime.image import SPARE
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_folder, reason_of, remove_leftovers_of
from runtime.support.locks import require_regular
from unet_core.data.faults import Fault, refuse
from unet_core.data.labels import Labels
from unet_core.data.pairs import Pair
from unet_core.data.records import (
    DATA,
    INDEX,
    NOT_STORED,
    PENDING,
    RECORDS,
    DataFile,
    Record,
    Records,
    SampleDecoder,
    are_possible,
    end_of,
    index_bytes,
    label_counts,
    lengths,
    read_index,
    unknown_rows,
    write_index,
)

VERSION = 5
"""Version of the records' format and of how files are read; records of another version are in other folders."""

SAME_AS_PILLOW = "1.9.0"
"""Version of simplejpeg that gives the pixels of Pillow, bit for bit, so that records from before it was used hold."""

PREFIX, LOCK = "records-", "lock"
HASH_DIGITS = 32
FOLDER = re.compile(f"{PREFIX}[0-9a-f]{{{HASH_DIGITS}}}(-[0-9]+)?")
"""Names of folders of records: a hash, and the number of the user where another one's are under the hash alone."""

SAVE_SECONDS = 3.0
AHEAD = 4
"""Number of pairs per core that are decoded ahead of the one that is written."""

Note = Callable[[str], None]
Advance = Callable[[int], None]

Folders = Mapping[Records, Path]
"""The folder of each set of records."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of folders of records, at most `limit` bytes in all; the least recently used make room for new ones.

    Records of the sets that are being prepared are never removed, even if the limit is lower than before.
    """

    folder: Path
    limit: int

    def of(self, pairs: Sequence[Pair], decoder: SampleDecoder) -> Path:
        """The folder for the records that a decoder makes of pairs; raises OSError if a file has vanished.

        It is another one if what is there is not to be trusted.
        """
        files = facts_of_files(pairs)
        decoders = [PIL.__version__, cv2.__version__]
        if simplejpeg.__version__ != SAME_AS_PILLOW:
            decoders.append(simplejpeg.__version__)
        decoding = asdict(decoder)
        if decoder.draft:  # another factor gives other pixels; older caches have no factor, and decoded from less
            decoding["draft"] = SPARE
        # Older caches do not have these, which say nothing of how images are decoded; a scale does, unless it is 1.
        for later in ("min_size", "padded", "fixed_batch", *(["scale"] if decoder.input.scale == 1 else [])):
            del decoding["input"][later]
        if decoder.input.levels is None:
            del decoding["input"]["levels"]
        if decoder.limits.truncated == "refuse":  # other limits change no pixels
            del decoding["limits"]
        if values := sorted({str(pair.values) for pair in pairs if pair.values}):
            decoding["mask_values"] = values
        content = json.dumps([[VERSION, *decoders], decoding, files], sort_keys=True)
        folder = self.folder / (PREFIX + hashlib.sha256(content.encode()).hexdigest()[:HASH_DIGITS])
        user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has none
        return folder.with_name(f"{folder.name}-{user}") if distrust(folder) else folder

    def check(self) -> None:
        """Refuse a folder in which somebody else may put other folders in place of ours.

        Raises:
            OutputError: such a folder; the message is a note's.
        """
        real = Path(os.path.realpath(self.folder))
        for folder in (real, *real.parents):
            with suppress(OSError):  # it is not there yet, or making it will fail
                RECORDS.check_parent(folder)

    def folders_of(self, sets: Sequence[Records]) -> Folders:
        """The folders of those sets that can be kept.

        Left out are sets with a vanished file, and sets with a faulty pair: they will be refused.
        """
        folders = {}
        for records in sets:
            if not any(pair.fault for pair in records.pairs):
                with suppress(OSError):
                    folders[records] = self.of(records.pairs, records.decoder)
        return folders

    def make_room(self, keep: Collection[Path], more: int = 0) -> int:
        """Remove the least recently used folders of ours, none of `keep`, until `more` bytes are free.

        Returns:
            The number of free bytes, which is less than `more` if nothing else can be removed.
        """

        def last_use(folder: Path) -> float:
            with suppress(OSError):
                return (folder / INDEX).lstat().st_mtime
            return 0.0

        found = (path for path in self.folder.glob(f"{PREFIX}*") if FOLDER.fullmatch(path.name))
        sizes = {path: folder_size(path) for path in found if is_own_folder(path)}
        for path in sorted(sizes.keys() - set(keep), key=last_use):
            if sum(sizes.values()) + more <= self.limit:
                break
            if remove_records(path):
                del sizes[path]
        return self.limit - sum(sizes.values())

    def take(self, records: Records, folders: Folders) -> bool:
        """Read from now on what an earlier run has stored, if it is valid; returns True if so.

        Records that did not fit then become pending again if there is room for them now.
        """
        folder = folders[records]
        rows = read_index(folder, len(records))
        if rows is None or not are_possible(rows, records.decoder):
            return False
        try:
            if DataFile(folder / DATA).size < end_of(rows, records.channels):
                return False
        except (OSError, OutputError):
            return False
        with suppress(OSError):  # a cache that several users share may be read-only
            os.utime(folder / INDEX)
        left_out = np.flatnonzero(rows["offset"] == NOT_STORED)
        free = self.limit - index_bytes(rows) - sum(map(folder_size, set(folders.values())))
        fits = np.cumsum(lengths(rows[left_out], records.channels)) <= free
        rows["offset"][left_out[fits]] = PENDING
        records.use(rows, folder)
        return True

    def unusable(self, error: Exception) -> str:
        """The part of a note that says why the folder cannot be used, and what to do."""
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if cause is None:  # it says all of that
            return f"{error}, or --cache-gb 0"
        reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
        return f"--cache-dir {self.folder}: cannot be used ({reason.lower()}); choose another one, or --cache-gb 0"


def facts_of_files(pairs: Iterable[Pair]) -> list[tuple[str | int, ...]]:
    """Return what changes when a file does: path, size, times, and the page; raises OSError if a file has vanished."""
    files: list[tuple[str | int, ...]] = []
    for pair in pairs:
        for path in pair.files:
            status, page = path.stat(), () if pair.page is None else (pair.page,)
            # A copy that keeps size and modification time still has another time of change (ctime).
            files.append((str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, *page))
    return files


def open_cache(folder: str, gigabytes: float) -> Cache | None:
    """The cache in a folder, or in the user's cache folder if `folder` is empty; None for 0 gigabytes.

    The folder is made by `check_and_cache`.
    """
    if not gigabytes:
        return None
    place = Path(folder) if folder else user_cache_path("unet-deploy") / "decoded"
    return Cache(folder=place, limit=int(gigabytes * 1e9))


def folder_size(folder: Path) -> int:
    """Bytes of the files directly in a folder; files that vanish meanwhile count 0."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.lstat().st_size
    return total


def distrust(folder: Path) -> str:
    """Return why the records in a folder are not to be trusted; "" if they are, or if the folder is not there."""
    try:
        RECORDS.check_own(folder, folder=True)
        for name in (INDEX, DATA):
            with suppress(FileNotFoundError):
                RECORDS.check_own(folder / name)
    except OutputError as error:
        return str(error)
    except PermissionError as error:
        return f"{folder}: cannot be read ({reason_of(error)})"
    except OSError:  # making the folder will tell
        return ""
    return ""


def others_records(folder: Path) -> str:
    """Return why the records are not in the folder that is named after the hash alone; "" if they are."""
    name = folder.name[: len(PREFIX) + HASH_DIGITS]
    return distrust(folder.with_name(name)) if name != folder.name else ""


def is_own_folder(path: Path) -> bool:
    """Return True if a path is a folder that belongs to us."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())


def remove_records(folder: Path) -> bool:
    """Remove the records in a folder, and no other files; returns False if a process is writing them."""
    try:
        with FileLock(require_regular(folder / LOCK), timeout=0):
            for path in (folder / DATA, folder / INDEX, *unfinished_indices(folder)):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # Windows does not remove a lock that is held; an empty folder does no harm
                (folder / LOCK).unlink()
                folder.rmdir()
    except FileNotFoundError:  # another process was faster
        return True
    except (Timeout, OSError, OutputError, NotImplementedError):  # the last: a file system without locks
        return False
    return True


def unfinished_indices(folder: Path) -> Iterator[Path]:
    """Temporary files of an index whose writer was killed."""
    return folder.glob(f".{Path(INDEX).stem}.*")


def pending(sets: Sequence[Records], cache: Cache | None) -> int:
    """Take what earlier runs have stored, and return the number of pairs that `check_and_cache` will decode."""
    cache = checked(cache, lambda _: None)
    if cache is not None:
        folders = cache.folders_of(sets)
        for records in folders:
            cache.take(records, folders)
    return sum(int(np.count_nonzero(records.rows["offset"] == PENDING)) for records in sets)


def checked(cache: Cache | None, note: Note) -> Cache | None:
    """Return the cache, or None with a note if somebody else may put other records in place of ours."""
    try:
        if cache is not None:
            cache.check()
    except OutputError as error:
        note(f"decoded images are not kept: {error}")
        return None
    return cache


def check_and_cache(sets: Sequence[Records], cache: Cache | None, advance: Advance, note: Note) -> None:
    """Check every pair that is not checked yet, and store it decoded if there is a cache with room.

    Raises:
        DataError: a pair has a fault, is unreadable, truncated or of another size than its image, or has invalid
            values; the message lists the pairs of all sets.
    """
    found = decode_all(sets, cache, advance, note)
    refuse(faults_of(sets, found), sum(map(len, sets)))


def faults_of(sets: Sequence[Records], found: Sequence[Mapping[int, str]]) -> list[Fault]:
    """List the faulty pairs of all sets, with the messages that `decode_all` returned."""
    return [
        (records.pairs[index], message)
        for records, faults in zip(sets, found, strict=True)
        for index, message in faults.items()
    ]


def decode_all(sets: Sequence[Records], cache: Cache | None, advance: Advance, note: Note) -> list[dict[int, str]]:
    """Check and store as `check_and_cache`; returns for each set the error messages of faulty pairs, by their index."""
    note = lru_cache(maxsize=None)(note)  # a reason that concerns several sets is told once
    cache = checked(cache, note)
    folders = cache.folders_of(sets) if cache is not None else {}
    if cache is not None:
        with suppress(OSError):  # told when the folder is opened
            cache.make_room(folders.values())  # the limit may be lower than last time
    found: list[dict[int, str]] = []
    for records in sets:
        faults: dict[int, str] = {}
        with ExitStack() as stack:
            writer = open_writer(records, cache, folders, stack, note) if cache is not None else None
            for index, made in decode_pending(records, writer):
                advance(1)
                if isinstance(made, str):
                    faults[index] = made
                    continue
                image, labels = made
                counts = label_counts(labels, records.decoder.labels.background)
                records.rows[index] = (NOT_STORED, 0, *image.shape[:2], *labels.shape, *counts)
                if writer is not None:
                    writer.append(index, image, labels)
        records.open()
        found.append(faults)
    return found


def decode_pending(records: Records, writer: "RecordWriter | None") -> Iterator[tuple[int, Record | str]]:
    """Decode pending pairs on all cores, a few ahead; yields in order each index with its record or error message."""

    def decode(index: int) -> Record | str:
        try:
            return records.decoder.make(records.pairs[index])
        except ImageError as error:
            return str(error)

    waiting: deque[tuple[int, Future[Record | str]]] = deque()
    threads = available_threads()
    pool = ThreadPoolExecutor(threads)
    try:
        for index in map(int, np.flatnonzero(records.rows["offset"] == PENDING)):
            # A pair that is known to be valid is decoded again only while it can be stored.
            if records.rows["height"][index] and (writer is None or not writer.storing):
                records.rows["offset"][index] = NOT_STORED
                continue
            waiting.append((index, pool.submit(decode, index)))
            if len(waiting) >= AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def open_writer(
    records: Records, cache: Cache, folders: Folders, stack: ExitStack, note: Note
) -> "RecordWriter | None":
    """Lock the folder of the records and open it for writing, until `stack` closes; None if there is nothing to write.

    If another process is making the same records, wait for it and take its records.
    """
    if records not in folders:
        return None
    if records.folder is None:
        cache.take(records, folders)
    if not (records.rows["offset"] == PENDING).any():
        remove_leftovers_of([folders[records] / INDEX])  # a writer may have been killed when all was stored
        return None
    try:
        make_folder(cache.folder)
        try:
            lock = lock_folder(folders[records], note)
        except FileNotFoundError:  # another process just removed the folder to make room
            lock = lock_folder(folders[records], note)
        stack.callback(lock.release)
        if why := others_records(folders[records]):
            note(f"{why}; decoding anew, into {folders[records].name}")
        if not cache.take(records, folders):
            records.use(unknown_rows(len(records)), None)
        return stack.enter_context(RecordWriter(records, cache, folders, note))
    except (OSError, OutputError, NotImplementedError) as error:  # the last: a file system without locks
        note(f"decoded images are not kept: {cache.unusable(error)}")
        return None


def lock_folder(folder: Path, note: Note) -> BaseFileLock:
    """Make a folder that is ours alone, and lock it against other writers, waiting for them."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if why := distrust(folder):
        raise OutputError(why)
    lock = FileLock(require_regular(folder / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note("another process decodes the same images; waiting for it")
        lock.acquire()
    return lock


class RecordWriter:
    """Appends records to a folder. If the disk is full or the limit reached, it stops storing, and the run goes on."""

    def __init__(self, records: Records, cache: Cache, folders: Folders, note: Note) -> None:
        self.records, self.cache, self.folders, self.note = records, cache, folders, note
        self.folder = folders[records]
        if records.folder is None:  # another process may still read the old file, and would crash if that were cut
            (self.folder / DATA).unlink(missing_ok=True)
        for path in unfinished_indices(self.folder):
            path.unlink(missing_ok=True)
        # Unbuffered, so that nothing is left to be written after an error.
        descriptor = RECORDS.open_own(self.folder / DATA, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.file = open(descriptor, "ab", buffering=0)  # noqa: SIM115 - closed in __exit__
        self.end = end_of(records.rows, records.channels)
        self.file.truncate(self.end)  # drops records that were written after the last index
        self.unsaved: list[tuple[int, int, int]] = []  # index, offset and checksum of records that no index has yet
        self.free = 0
        self.saved = time.monotonic()
        self.storing = True

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        self.file.close()

    def append(self, index: int, image: NDArray[np.uint8], labels: Labels) -> None:
        """Write a record, if there is room."""
        size = image.size + labels.size
        more = size + index_bytes(self.records.rows)  # the next index is written beside the last one
        if self.storing and self.free < more:
            self.free = self.cache.make_room(self.folders.values(), more)
            if self.free < more:
                self.stop(f"--cache-gb {self.cache.limit / 1e9:g}: is full; give more")
        if not self.storing:
            return
        parts = [np.ascontiguousarray(part).reshape(-1) for part in (image, labels)]
        try:
            for part in parts:
                content = part.data
                while content:
                    content = content[self.file.write(content) :]
        except OSError as error:
            self.stop(self.cache.unusable(error))
            return
        self.end += size  # set first: an interruption here leaves bytes that no index names, never the reverse
        self.free -= size
        self.unsaved.append((index, self.end - size, zlib.crc32(parts[1].data, zlib.crc32(parts[0].data))))
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Flush the data to the disk, then write the index that names them."""
        rows = self.records.rows.copy()
        for index, offset, checksum in self.unsaved:
            rows["offset"][index], rows["checksum"][index] = offset, checksum
        try:
            self.file.truncate(self.end)  # drops a record that a full disk left half-written
            os.fsync(self.file.fileno())
            write_index(self.folder, rows)
        except (OSError, OutputError) as error:
            self.unsaved, self.end = [], end_of(self.records.rows, self.records.channels)
            self.stop(self.cache.unusable(error))
            return
        self.records.use(rows, self.folder)
        self.unsaved, self.free, self.saved = [], 0, time.monotonic()  # others may have taken the free room meanwhile

    def stop(self, why: str) -> None:
        """Keep the records that are whole, and store no more of them."""
        if self.storing:
            self.storing = False
            self.save()
            stored = self.records.stored
            self.note(
                f"only {stored} of {len(self.records)} decoded images {'is' if stored == 1 else 'are'} kept: {why}"
            )
