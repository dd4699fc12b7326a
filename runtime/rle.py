"""Masks as run-length text, the form in which Kaggle's Carvana challenge (2017) takes answers.

A mask is "start length start length ...": its runs of foreground, where pixels are counted from 1, row by row from the
top left corner. A mask without foreground is the empty text.
"""

import reprlib

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError

MAX_DIGITS = 18
"""Of a number in the text: the sum of two such fits 64 bits."""


def encode(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> str:
    """Write a mask, uint8 or bool [height, width] where all but 0 is foreground, as run-length text.

    Raises:
        ImageError: the array is of another kind.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"mask: found {mask.dtype} {list(mask.shape)}, expected uint8 or bool [height, width]")
    foreground = np.zeros(mask.size + 2, np.bool_)  # background before and after closes the runs at both ends
    foreground[1:-1] = mask.reshape(-1) != 0
    borders = np.flatnonzero(foreground[1:] != foreground[:-1])
    first, after = borders[::2], borders[1::2]  # pixels of each run, from 0
    return " ".join(map(str, np.stack([first + 1, after - first], axis=1).reshape(-1).tolist()))


def decode(text: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read run-length text as a mask of `size` (height, width): uint8 [height, width], 1 on the runs, 0 elsewhere.

    Raises:
        ImageError: `size` has no pixel; `text` is no pairs of whole numbers; or its runs are empty, out of the image,
            out of order or overlap.
    """
    height, width = size
    if min(size) < 1:
        raise ImageError(f"mask: found the size {height, width} (h, w), expected at least 1 by 1")
    runs = _runs(text)
    first, after = runs[:, 0] - 1, runs.sum(axis=1) - 1
    before = np.concatenate([[0], after[:-1]])
    _refuse(runs, runs.min(axis=1) < 1, "a start and a length of at least 1")
    _refuse(runs, after > height * width, f"an end of at most {height * width} in {height, width} (h, w)")
    _refuse(runs, first < before, "runs in rising order that do not overlap")
    borders = np.concatenate([[0], np.stack([first, after], axis=1).reshape(-1), [height * width]])
    lengths = np.diff(borders)  # of background and foreground in turn
    values = np.resize(np.array([0, 1], np.uint8), len(lengths))
    return np.repeat(values, lengths).reshape(height, width)  # [height * width] -> [height, width]


def _runs(text: str) -> NDArray[np.int64]:
    """Start, from 1, and length of each run, int64 [runs, 2]."""
    numbers = text.split()
    for number in numbers:
        if not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS):
            raise ImageError(
                f"run-length text: found {reprlib.repr(number)}, expected whole numbers of at most {MAX_DIGITS} digits"
            )
    if len(numbers) % 2:
        raise ImageError(f"run-length text: found {len(numbers)} numbers, expected pairs of start and length")
    return np.array(list(map(int, numbers)), np.int64).reshape(-1, 2)


def _refuse(runs: NDArray[np.int64], wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        start, length = runs[index].tolist()
        raise ImageError(f"run-length text: run {index + 1} is {start} {length}, expected {expected}")
