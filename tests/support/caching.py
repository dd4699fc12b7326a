"""Pairs, decoders and what the tests of the cache ask of records."""

import threading

import numpy as np
from PIL import Image

import unet_core.data.records
from runtime.card import InputSpec
from unet_core.data.cache import check_and_cache
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import Pair
from unet_core.data.records import Records, SampleDecoder

SIZE = (16, 24)
CAR = LabelSpec(classes=("car",))


def decoder(fit="stretch", channels="RGB", size=SIZE, labels=CAR, **options):
    count = len(channels)
    spec = InputSpec(size=size, fit=fit, channels=channels, mean=(0.4, 0.5, 0.6)[:count], std=(0.2,) * count)
    return SampleDecoder(input=spec, labels=labels, **options)


STRETCH = decoder()
RECORD = SIZE[0] * SIZE[1] * 4
"""Bytes of a record of `STRETCH`."""

DECODERS = {
    "stretch": STRETCH,
    "letterbox": decoder("letterbox"),
    "native": decoder("native"),
    "grey": decoder("letterbox", "L"),
    "original truth": decoder("letterbox", truth_at_original=True),
    "grey native with original truth": decoder("native", "L", truth_at_original=True),
    "draft": decoder(draft=True),
    "several classes, some pixels ignored": decoder(labels=LabelSpec(classes=("a", "b"), ignore_index=0)),
}


def write_pairs(folder, count=5, suffix=".jpg"):
    """Pictures of different sizes, with masks of 0 and 1; the last one has none."""
    folder.mkdir(exist_ok=True)
    pairs = []
    for index in range(count):
        random = np.random.default_rng(index)
        size = (40 + 8 * index, 90 - 6 * index)
        image, mask = folder / f"{index}{suffix}", folder / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(random.integers(0, 2, size, np.uint8)).resize(size[::-1], 0).save(mask)
        pairs.append(Pair(image=image, mask=mask if index < count - 1 else None))
    return pairs


class Decoding:
    """Counts the pairs that are decoded."""

    def __init__(self, monkeypatch):
        self.count, self._lock, self._load = 0, threading.Lock(), unet_core.data.records.load_image
        monkeypatch.setattr(unet_core.data.records, "load_image", self)

    def __call__(self, *arguments, **options):
        with self._lock:
            self.count += 1
        return self._load(*arguments, **options)

    def since(self):
        """Return the number since the last call."""
        count, self.count = self.count, 0
        return count


def nothing(_):
    pass


def said_by(sets, cache, advance=nothing):
    """Prepare, and give back the notes."""
    notes = []
    check_and_cache(sets, cache, advance, notes.append)
    return notes


def kept(pairs, cache, decoder=STRETCH):
    """Records that are prepared, without a note."""
    records = Records(pairs, decoder)
    assert said_by((records,), cache) == []
    return records


def assert_exact(records):
    """Every record equals what decoding gives, bit for bit."""
    for index, pair in enumerate(records.pairs):
        for found, expected in zip(records[index], records.decoder.make(pair), strict=True):
            assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]
            assert np.array_equal(found, expected), index


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
