"""Image files of every kind, each beside the pixels that it has by another library, and the judge of a reading."""

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from runtime.errors import ImageError, ImageWarning
from runtime.image import load_image

HEIGHT, WIDTH = 21, 37

RIGHT, REFUSED, DIFFERING = "right", "refused", "differing"

REFUSALS = re.compile(
    r"^image: (is an? .+, which is not read; |is (a JPEG )?of a kind that is not read \(|has 32-bit values )"
)
"""The form of a message that refuses a whole file by what it is."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: its format, and the facts that tell it from other kinds."""

    form: str
    facts: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, form, **facts):
        return cls(form, tuple(facts.items()))

    def __getitem__(self, name):
        return dict(self.facts)[name]

    def __str__(self):
        return f"{self.form} " + " ".join(f"{name}={value}" for name, value in self.facts)


@dataclass(frozen=True)
class Sample:
    """A file, and its pixels: numbers [height, width, 3] from 0 to 255, or None for a file that has no such reading.

    `tolerance` is the most that a right reading differs from them.
    """

    kind: Kind
    content: bytes
    expected: Any
    tolerance: float = 1.01


def smooth(bands, seed=0):
    """Numbers [height, width, bands] from 0 to 1, both included: slopes with some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slopes = np.stack([(x * (1 + band % 2) / WIDTH + y * (1 + band // 2) / HEIGHT) / 3 for band in range(bands)], -1)
    values = np.clip(0.8 * slopes + 0.25 * random.random((HEIGHT, WIDTH, bands)), 0, 1)
    values[0, 0], values[-1, -1] = 0, 1
    return values


def as_rgb(values):
    """Numbers [height, width] or [height, width, bands] as colours: the first three bands, or grey from the first."""
    values = np.asarray(values, np.float64)
    bands = values[:, :, None] if values.ndim == 2 else values
    return bands[:, :, :3] if bands.shape[2] >= 3 else np.repeat(bands[:, :, :1], 3, axis=2)


def judged(sample):
    """Return `RIGHT`, `REFUSED` or `DIFFERING`, and what was said or how far the pixels differ."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # of animations
            found = load_image(sample.content)
    except ImageError as error:
        return (REFUSED if REFUSALS.match(str(error)) else DIFFERING), str(error)
    if sample.expected is None:
        return DIFFERING, "read, though it has no meaning as an image"
    if found.shape != sample.expected.shape:
        return DIFFERING, f"read as {found.shape}"
    difference = float(np.nanmax(np.abs(found - sample.expected)))
    return (RIGHT if difference <= sample.tolerance else DIFFERING), f"differs by {difference:.1f}"


def counted(samples):
    """Judge samples: a Counter of (format, outcome), and a line for each that differs."""
    counts, differing = Counter(), []
    for sample in samples:
        outcome, told = judged(sample)
        counts[sample.kind.form, outcome] += 1
        if outcome == DIFFERING:
            differing.append(f"{sample.kind}: {told}")
    return counts, differing


def thinned(kinds, size=2):
    """Choose some of the kinds, such that all combinations of `size` facts that there are occur among them."""
    kinds, seen, chosen = list(kinds), set(), []
    for index in np.random.default_rng(7).permutation(len(kinds)):
        found = set(combinations(kinds[index].facts, size))
        if not found <= seen:
            seen |= found
            chosen.append(kinds[index])
    return chosen
