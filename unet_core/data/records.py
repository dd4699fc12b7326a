"""Decoded pairs: a picture and its labels by index, from the cache's file or else from image and mask.

`records.bin` holds pictures and labels one after the other; `index.npy` has the position and the checksum of each.
Both files have to be ours or root's. So a checksum has to find accidents only, for which CRC-32 is enough: whoever may
write the files could write any digest beside them.
"""

import io
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import InputSpec
from runtime.errors import ImageError, OutputError
from runtime.image import LIMITS, Limits, enough, fit, image_size, load_image
from runtime.support.files import replacing
from runtime.support.permissions import Trust
from unet_core.data.faults import Fault, refuse
from unet_core.data.labels import IGNORED, Labels, LabelSpec, fit_truth
from unet_core.data.pairs import JPEG_SUFFIXES, Pair

INDEX, DATA = "index.npy", "records.bin"
HEADER_BYTES, CHECKSUM_BYTES = 512, 4
"""Maximum size of the index's header, and size of its checksum, in bytes."""

RECORDS = Trust(
    error=OutputError,
    owner="the cache of decoded images",
    files="records",
    why="are trained on",
    elsewhere="choose another --cache-dir",
    roots=True,
    readable=True,
)
"""Whose records are trained on."""

PENDING, NOT_STORED = -2, -1
"""Offsets of pairs that are not decoded yet, and of valid pairs that did not fit into the cache."""

TRIED, TRIED_TO_SKIP = 8, 64
"""Number of pairs that are tried before all others are decoded, and of those where faulty pairs are left out."""

SIDES = ("height", "width", "truth_height", "truth_width")
ROW = np.dtype(
    [
        *(("offset", "<i8"), ("checksum", "<u4")),
        *((side, "<i4") for side in SIDES),
        *(("counted", "<i8"), ("foreground", "<i8"), ("labels", "u1", (32,))),
    ]
)
"""A record in the index: its offset in bytes, its CRC-32, the sides of picture and labels in pixels (0 until it is
decoded), the numbers of pixels that count and of those that are foreground, and a bit for each label, which is set
if any pixel that counts has it."""

Record = tuple[NDArray[np.uint8], Labels]
"""A fitted picture uint8 [height, width, channels], and labels uint8: fitted too, or at the image's own size."""


@dataclass(frozen=True, kw_only=True)
class SampleDecoder:
    """Settings by which a pair is decoded; without a mask, no pixel counts.

    `truth_at_original`: labels keep the image's own size, to measure there. `draft`: large JPEGs are decoded at a
    fraction of their size, by the rule of `Predictor(decode="scaled")`; their pixels differ slightly from those that
    the runtime sees by default, so it is for training only.

    `limits`: the largest images and masks that are decoded.

    The cache hashes the names and values of the fields.
    """

    input: InputSpec
    labels: LabelSpec
    truth_at_original: bool = False
    draft: bool = False
    limits: Limits = LIMITS

    def make(self, pair: Pair) -> Record:
        """Decode a pair.

        Raises:
            ImageError: the pair has a fault or cannot be read, image and mask differ in size, or the image is too small
                for the network.
        """
        if pair.fault:
            raise ImageError(f"{pair.image}: {pair.fault}")
        is_draft = self.draft and self.input.fit != "native" and self.input.channels != "raw"
        draft = is_draft and pair.image.suffix.lower() in JPEG_SUFFIXES
        at_least = partial(enough, self.input) if draft else None
        image = load_image(
            pair.source(pair.image, self.limits),
            self.input.channels,
            count=len(self.input.mean),
            at_least=at_least,
            limits=self.limits,
            levels=self.input.levels,
        )
        size = image_size(pair.image, self.limits) if draft else image.shape[:2]
        no_labels: Labels = np.full(size, IGNORED, np.uint8)
        labels = no_labels if pair.mask is None else pair.truth(self.labels, self.limits)
        if size != labels.shape:
            (height, width), (mask_height, mask_width) = size, labels.shape
            raise ImageError(
                f"{pair.place(pair.mask or pair.image)}: differs in size from its image ({mask_width}x{mask_height}, "
                f"expected {width}x{height})"
            )
        fitted = fit(image, self.input, size)
        (height, width), least = fitted.image.shape[:2], self.input.min_size
        if height < least[0] or width < least[1]:
            raise ImageError(
                f"{pair.place(pair.image)}: is {width}x{height} for the network, which takes at least "
                f"{least[1]}x{least[0]}; use larger images, or another fit than native"
            )
        return fitted.image, labels if self.truth_at_original else fit_truth(labels, fitted)


class Records:
    """The records of a list of pairs, by index: from the cache if they are stored, else decoded anew.

    `left_out` has the pairs that were dropped since they cannot be used, and the messages of their errors.
    """

    def __init__(self, pairs: Sequence[Pair], decoder: SampleDecoder) -> None:
        self.pairs, self.decoder = list(pairs), decoder
        self.left_out: list[Fault] = []
        self.use(unknown_rows(len(self.pairs)), None)

    def use(self, rows: NDArray[Any], folder: Path | None) -> None:
        """Read from now on the records that `rows` names in a folder of the cache."""
        self.rows, self.folder = rows, folder
        self._data: DataFile | None = None
        self._checked = np.zeros(len(rows), np.bool_)

    def leave_out(self, faults: Mapping[int, str]) -> None:
        """Drop pairs by their index; `left_out` keeps them with the messages of their errors.

        The records of the others stay where they are in the cache, in the folder of all pairs.
        """
        self.left_out += [(self.pairs[index], message) for index, message in sorted(faults.items())]
        kept = [index for index in range(len(self.pairs)) if index not in faults]
        self.pairs = [self.pairs[index] for index in kept]
        self.use(self.rows[kept], self.folder)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        stored = self._stored(index)
        return self.decoder.make(self.pairs[index]) if stored is None else stored

    def _stored(self, index: int) -> Record | None:
        """The record from the cache; None if it is not stored there, or no longer valid."""
        row = self.rows[index]
        if row["offset"] < 0 or not self.open():
            return None
        assert self._data is not None
        height, width, *truth = (int(row[side]) for side in SIDES)
        size = height * width * self.channels
        content = self._data.read(int(row["offset"]), size + truth[0] * truth[1])
        if content is not None:
            image, labels = content[:size].reshape(height, width, -1), content[size:].reshape(truth)
            if self._checked[index]:  # once per process: a large image takes some milliseconds
                return image, labels
            if zlib.crc32(content.data) == row["checksum"] and self.decoder.labels.has_all(labels):
                self._checked[index] = True
                return image, labels
        # Decode this one from now on, and let the next run make all of them anew.
        self.rows["offset"][index] = NOT_STORED
        assert self.folder is not None
        with suppress(OSError):
            (self.folder / INDEX).unlink()
        return None

    def open(self) -> bool:
        """Open the file, and return True if it is open; it stays readable even if another run removes it."""
        if self._data is None and self.folder is not None:
            with suppress(OSError, OutputError):
                self._data = DataFile(self.folder / DATA)
                self._checked[:] = False  # it may be another file by now
        return self._data is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None}  # another process opens the file itself

    @property
    def channels(self) -> int:
        """Number of channels of the pictures."""
        return len(self.decoder.input.mean)

    @property
    def stored(self) -> int:
        """Number of records in the cache."""
        return int(np.count_nonzero(self.rows["offset"] >= 0))

    @property
    def has_foreground(self) -> bool:
        """True if any mask has foreground."""
        return bool(self.rows["foreground"].any())

    @property
    def counted(self) -> int:
        """Number of pixels in all masks that count; 0 until the masks are decoded."""
        return int(self.rows["counted"].sum())

    @property
    def foreground_share(self) -> float | None:
        """Share of the pixels that count which are foreground, 0..1; None until the masks are decoded."""
        return int(self.rows["foreground"].sum()) / self.counted if self.counted else None

    @property
    def labels(self) -> Sequence[int]:
        """The labels of the pixels that count in all masks, ascending; none until the masks are decoded."""
        found: list[int] = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(self.rows["labels"], axis=0))).tolist()
        return found

    @property
    def only_label(self) -> int | None:
        """The label of all pixels that count in all masks; None if there are several labels, or no such pixels."""
        return self.labels[0] if len(self.labels) == 1 else None


def refuse_hopeless(records: Records, most: int = TRIED) -> None:
    """Try at most so many pairs of a set of which none is decoded yet, and raise an error if none of them can be used.

    A wrong `--classes` or `--masks` spoils every pair, which a pass over a large set would take an hour to tell.

    Raises:
        DataError: as `refuse`.
    """
    if len(records) <= most or not (records.rows["offset"] == PENDING).all():
        return
    faults = []
    for index in np.linspace(0, len(records) - 1, most).round().astype(int):
        pair = records.pairs[index]
        try:
            records.decoder.make(pair)
            return
        except ImageError as error:
            faults.append((pair, str(error)))
    refuse(faults, most, f"none of {most} pairs that were tried can be used (of {len(records)}), fix or remove them")


class DataFile:
    """The file of records, read at any offset; a file that is cut meanwhile gives None, where a map of it would crash.

    Raises:
        OutputError: it is not ours.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = RECORDS.open_own(path)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> NDArray[np.uint8] | None:
        """Read so many bytes, uint8 [size]; None if the file has fewer, or cannot be read."""
        content = np.empty(size, np.uint8)
        left = content.data
        try:
            while left:
                if sys.platform == "win32":  # where no process inherits the descriptor, and its position with it
                    os.lseek(self._descriptor, offset, os.SEEK_SET)
                    part = os.read(self._descriptor, len(left))
                    left[: len(part)] = part
                    count = len(part)
                else:
                    count = os.preadv(self._descriptor, [left], offset)
                if not count:
                    return None
                left, offset = left[count:], offset + count
        except OSError:
            return None
        return content


def label_counts(labels: Labels, background: int | None) -> tuple[int, int, NDArray[np.uint8]]:
    """Return the last fields of a `ROW`: pixels that count, foreground pixels, the labels' bits."""
    counts = np.bincount(labels.reshape(-1), minlength=IGNORED + 1)
    counts[IGNORED] = 0
    counted = int(counts.sum())
    foreground = counted - (int(counts[background]) if background is not None else 0)
    return counted, foreground, np.packbits(counts > 0)


def unknown_rows(count: int) -> NDArray[Any]:
    """An index of `count` pairs that are not decoded yet."""
    rows = np.zeros(count, ROW)
    rows["offset"] = PENDING
    return rows


def lengths(rows: NDArray[Any], channels: int) -> NDArray[np.int64]:
    """Size of every record in bytes, 0 if it is not decoded yet."""
    height, width, truth_height, truth_width = (rows[side].astype(np.int64) for side in SIDES)
    return height * width * channels + truth_height * truth_width


def end_of(rows: NDArray[Any], channels: int) -> int:
    """Offset of the end of the last stored record, in bytes."""
    stored = rows[rows["offset"] >= 0]
    return int((stored["offset"] + lengths(stored, channels)).max(initial=0))


def read_index(folder: Path, count: int) -> NDArray[Any] | None:
    """Read the index of `count` pairs in a folder; None if it is missing, damaged, not ours or of another list."""
    try:
        with open(RECORDS.open_own(folder / INDEX), "rb") as file:
            content = file.read()
        rows, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if zlib.crc32(rows).to_bytes(CHECKSUM_BYTES, "little") != checksum:
            return None
        found = np.load(io.BytesIO(rows), allow_pickle=False)
    except (OSError, OutputError, ValueError, EOFError):
        return None
    return found if found.dtype == ROW and found.shape == (count,) else None


def are_possible(rows: NDArray[Any], decoder: SampleDecoder) -> bool:
    """Return True if a decoder can have made such records: no sizes but those that it gives."""
    stored = rows[rows["offset"] >= 0]
    sides = np.stack([stored[side] for side in SIDES], axis=-1)
    image, truth = sides[:, :2], sides[:, 2:]
    fixed = decoder.input.fit == "native" or bool((image == decoder.input.size).all())
    same = decoder.truth_at_original or bool((image == truth).all())
    return bool((rows["offset"] >= PENDING).all() and (sides > 0).all()) and fixed and same


def index_bytes(rows: NDArray[Any]) -> int:
    """Maximum size of the index file, in bytes."""
    return rows.nbytes + HEADER_BYTES + CHECKSUM_BYTES


def write_index(folder: Path, rows: NDArray[Any]) -> None:
    """Write the index with its checksum, atomically."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    content = file.getvalue()
    with replacing(folder / INDEX) as temporary:
        temporary.write_bytes(content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little"))
        temporary.chmod(0o600)
