"""The stored values of training images that become 0 and 255, as `--levels` says: the bits that are really used.

Cameras and scanners save 10, 12 or 14 bits in files of 16. Taken as 16 bits, such pictures keep 4, 16 or 64 grey levels
of 256, and hardly anything is learned.
"""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.card import MAX_LEVEL, InputChannels, Levels
from runtime.errors import ConfigError, DataError, ImageError, OutputError
from runtime.image import Limits, has_deep_values, stored_values
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_folder, replacing
from unet_core.data.cache import Advance, Cache, checked, facts_of_files
from unet_core.data.labels import IGNORED
from unet_core.data.levels import parse_levels
from unet_core.data.pairs import Pair
from unet_core.data.records import RECORDS, Records

VERSION = 1
"""Version of how levels are found; those of other versions are found anew."""

ENDS = 0.001
"""Share of all values that `percentile` leaves beyond each end."""

FEW, SAMPLE = 64, 64
"""Number of levels, of 256, below which a note is given, and the most pictures that are looked at for it."""


def find_levels(
    pairs: Sequence[Pair],
    setting: str,
    limits: Limits,
    cache: Cache | None,
    advance: Advance,
    channels: InputChannels = "RGB",
) -> Levels | None:
    """Return the levels of training images, by the setting "auto" or "percentile"; None for the whole range.

    "auto" takes the bits that pictures of more than 8 bits use, "percentile" the values but for `ENDS` at each end.
    Pictures that cannot be read are passed over: decoding will tell. What was found is kept in the cache's folder.
    `channels` are those of the network: "raw" looks at all channels of a file.

    Raises:
        DataError: "percentile", and nearly all values are the same.
    """
    cache = checked(cache, lambda _: None)
    images = [replace(pair, mask=None) for pair in pairs if not pair.fault]
    deep = [pair for pair in images if is_deep(pair.image, limits)]
    if setting == "auto" and not deep:
        return None
    file = None if cache is None else kept_file(images, setting, cache, channels)
    if file is not None and (known := read_kept(file)) is not None:
        return known[0]
    counts = ValueCounts()
    with ThreadPoolExecutor(available_threads()) as pool:
        for _ in pool.map(lambda pair: counts.add(pair, limits, channels), deep or images):
            advance(1)
    found = counts.used_bits() if setting == "auto" else counts.percentiles()
    if file is not None:
        with suppress(OSError, OutputError):  # the cache will say so itself
            make_folder(file.parent)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(found))
                temporary.chmod(0o600)
    return found


def few_levels(records: Records, setting: str) -> str:
    """Return a note if the pictures of training fill few of the 256 levels that the network sees, else ""."""
    others = "percentile, or LOW,HIGH" if setting == "auto" else "auto or percentile"
    counts = np.zeros(256, np.int64)
    for index in np.unique(np.linspace(0, len(records) - 1, SAMPLE).round().astype(int)):
        image, labels = records[int(index)]
        counts += np.bincount(image[labels != IGNORED].reshape(-1), minlength=256)  # without a letterbox's bars
    low, high = ends_of(counts) if counts.any() else (0, 255)
    if high - low + 1 >= FEW:
        return ""
    return (
        f"training: the images fill {high - low + 1} of the 256 levels that the network sees ({low} to {high}, but for "
        f"0.2 % of their values), so it learns little; give --levels {others}"
    )


def ends_of(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the values beyond which a share of at most `ENDS` lies, below and above, of counts by value."""
    shares = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(shares, ENDS, side="right")), int(np.searchsorted(shares, 1 - ENDS))


def is_deep(path: Path, limits: Limits) -> bool:
    """Return True for an image file with more than 8 bits a channel; False for one that cannot be read."""
    try:
        return has_deep_values(path, limits)
    except ImageError:
        return False


class ValueCounts:
    """Counts of each stored value in images, made by several threads; `top` is the largest value that there can be."""

    def __init__(self) -> None:
        self.counts, self.top, self.lock = np.zeros(MAX_LEVEL + 1, np.int64), 0, threading.Lock()

    def add(self, pair: Pair, limits: Limits, channels: InputChannels) -> None:
        """Count the values of an image; one that cannot be read has none."""
        with suppress(ImageError):
            values, top = stored_values(pair.source(pair.image, limits), limits, channels)
            counts = np.bincount(values.reshape(-1), minlength=MAX_LEVEL + 1)
            with self.lock:
                self.counts += counts
                self.top = max(self.top, top)

    def used_bits(self) -> Levels | None:
        """Return (0, white) of the bits that are used; None if these are all, or there are no values but 0."""
        used = np.flatnonzero(self.counts)
        white = 2 ** int(used.max(initial=0)).bit_length() - 1
        return None if white in (0, self.top) else (0, white)

    def percentiles(self) -> Levels | None:
        """Return the lowest and the highest value, but for `ENDS` at each end; None if these are the whole range."""
        if not self.counts.any():
            return None
        low, high = ends_of(self.counts)
        if low == high:
            raise DataError(f"--levels percentile: nearly all values of the training images are {low}; give LOW,HIGH")
        return None if (low, high) == (0, self.top) else (low, high)


def kept_file(images: Sequence[Pair], setting: str, cache: Cache, channels: InputChannels) -> Path | None:
    """Return the file in the cache's folder for the levels of these images; None if one has vanished."""
    with suppress(OSError):
        of_all = ["raw"] if channels == "raw" else []
        content = json.dumps([VERSION, setting, facts_of_files(images), *of_all])
        user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
        return cache.folder / f"levels-{hashlib.sha256(content.encode()).hexdigest()[:32]}{user}.json"
    return None


def read_kept(file: Path) -> tuple[Levels | None] | None:
    """Read levels that were found before, in a tuple; None if there are none, or they are damaged or not ours."""
    try:
        with open(RECORDS.open_own(file), "rb") as opened:
            found = json.loads(opened.read(100))
    except (OSError, OutputError, ValueError):
        return None
    if found is None:
        return (None,)
    with suppress(ConfigError, TypeError):
        return (parse_levels(",".join(map(str, found))),)
    return None
