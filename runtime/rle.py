"""Masks as run lengths, in the form of Kaggle's Carvana challenge (2017) and in that of the COCO data set (2014).

Carvana: "start length start length ...", the runs of foreground. Pixels are counted from 1, row by row from the top
left corner. A mask without foreground is the empty text.

COCO: {"size": [height, width], "counts": ...}, the lengths of all runs: background (may be 0), foreground, background
and so on. Pixels are counted column by column. `counts` is a list of numbers ("uncompressed"), or the text into which
COCO's maskApi.c packs it, the form of pycocotools. To pack, subtract from each number, from the fourth on, the number
two places before. Split the result into groups of five bits, lowest first, until the rest is only its sign. Each group
is one character from "0" on, 32 higher if another group follows.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError

MAX_DIGITS = 18
"""Maximum number of digits in Carvana's text; the sum of two such numbers fits 64 bits."""

MAX_PIXELS = 2**32 - 1
"""Maximum number of pixels of a COCO mask, since COCO's tools count in 32 bits."""

MAX_CHARACTERS = 7
"""Maximum length of a number in COCO's text: 32 bits and a sign, five bits a character."""


def encode(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> str:
    """Write a mask, uint8 or bool [height, width] with 0 for background, as Carvana's text.

    Raises:
        ImageError: the array has another type or shape.
    """
    borders = _borders(_checked(mask).reshape(-1))
    first, after = borders[::2], borders[1::2]  # pixels of each run, from 0
    return " ".join(map(str, np.stack([first + 1, after - first], axis=1).reshape(-1).tolist()))


def decode(text: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read Carvana's text as a mask of `size` (height, width): uint8 [height, width], 1 on the runs, 0 elsewhere.

    Raises:
        ImageError: `size` has no pixels, `text` is not pairs of whole numbers, or its runs are empty, outside the
            image, out of order or overlapping.
    """
    height, width = size
    if min(size) < 1:
        raise ImageError(f"mask: found the size {height, width} (h, w), expected at least 1 by 1")
    numbers = text.split()
    for number in numbers:
        if not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS):
            raise ImageError(
                f"run-length text: found {reprlib.repr(number)}, expected whole numbers of at most {MAX_DIGITS} digits"
            )
    if len(numbers) % 2:
        raise ImageError(f"run-length text: found {len(numbers)} numbers, expected pairs of start and length")
    runs = np.array(list(map(int, numbers)), np.int64).reshape(-1, 2)  # start, from 1, and length
    first, after = runs[:, 0] - 1, runs.sum(axis=1) - 1
    before = np.concatenate([[0], after[:-1]])
    for wrong, expected in (
        (runs.min(axis=1) < 1, "a start and a length of at least 1"),
        (after > height * width, f"an end of at most {height * width} in {height, width} (h, w)"),
        (first < before, "runs in rising order that do not overlap"),
    ):
        if wrong.any():
            index = int(wrong.argmax())
            start, length = runs[index].tolist()
            raise ImageError(f"run-length text: run {index + 1} is {start} {length}, expected {expected}")
    borders = np.concatenate([[0], np.stack([first, after], axis=1).reshape(-1), [height * width]])
    return _painted(np.diff(borders)).reshape(height, width)  # [height * width] -> [height, width]


def coco_encode(mask: NDArray[np.uint8] | NDArray[np.bool_], compressed: bool = True) -> dict[str, Any]:
    """Write a mask, uint8 or bool [height, width] with 0 for background, in COCO's form, ready for JSON.

    Raises:
        ImageError: the array has another type or shape.
    """
    borders = _borders(_checked(mask).T.reshape(-1))
    if len(borders) and borders[-1] == mask.size:
        borders = borders[:-1]
    counts = np.diff(borders, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": _packed(counts) if compressed else counts.tolist()}


def coco_decode(rle: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Read a mask in COCO's form, with counts as list, text or bytes: uint8 [height, width], foreground 1, else 0.

    Raises:
        ImageError: `size` or `counts` is missing or malformed, or the counts do not add up to the size.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"COCO run lengths: found {reprlib.repr(rle)}, expected a size [height, width] and counts"
        ) from error
    if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width > MAX_PIXELS:
        found = reprlib.repr([height, width])
        raise ImageError(
            f"COCO run lengths: found the size {found}, expected [height, width] of 1 to {MAX_PIXELS} pixels"
        )
    if isinstance(counts, str | bytes):
        lengths = _unpacked(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count <= MAX_PIXELS for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ImageError(
            f"COCO run lengths: found the counts {reprlib.repr(counts)}, "
            f"expected text or whole numbers from 0 to {MAX_PIXELS}"
        )
    within = ((lengths >= 0) & (lengths <= height * width)).all()
    if not within or lengths.sum() != height * width:
        raise ImageError(
            f"COCO run lengths: the counts do not add up to the size {height, width} (h, w); "
            "they belong to another image, or are damaged"
        )
    return np.ascontiguousarray(_painted(lengths).reshape(width, height).T)  # column by column -> [height, width]


def _packed(counts: NDArray[np.int64]) -> str:
    """Pack counts into COCO's text."""
    differences = counts.copy()
    differences[3:] -= counts[1:-2]
    shifts = 5 * np.arange(MAX_CHARACTERS)
    groups = (differences[:, None] >> shifts) & 31  # [counts, characters]
    rest = differences[:, None] >> (shifts + 5)
    last = (rest == np.where(groups & 16, -1, 0)).argmax(axis=1)[:, None]  # its highest bit is the sign
    place = np.arange(MAX_CHARACTERS)
    characters = (groups + np.where(place < last, 32, 0) + 48).astype(np.uint8)
    return bytes(characters[place <= last]).decode("ascii")


def _unpacked(text: str | bytes) -> NDArray[np.int64]:
    """Unpack COCO's text into counts."""
    encoded = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    values = np.frombuffer(encoded, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(values & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not len(ends) or ends[-1] != len(values) - 1 or not ((values >= 0) & (values < 64)).all():
        raise ImageError(f"COCO run lengths: found the counts {reprlib.repr(text)}, which are not such text")
    longest = (ends - starts).max() + 1
    if longest > MAX_CHARACTERS:
        raise ImageError(f"COCO run lengths: found a count of {longest} characters, expected at most {MAX_CHARACTERS}")
    place = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)  # index of a character in its number
    counts: NDArray[np.int64] = np.add.reduceat((values & 31) << 5 * place, starts)
    counts -= np.where(values[ends] & 16, 32 << 5 * place[ends], 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def _checked(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.uint8] | NDArray[np.bool_]:
    """Return the mask if it is uint8 or bool [height, width]; raises an ImageError otherwise."""
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"mask: found {mask.dtype} {list(mask.shape)}, expected uint8 or bool [height, width]")
    return mask


def _borders(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixel indices at which foreground begins and ends, in turn, from 0 to the number of pixels."""
    foreground = np.zeros(pixels.size + 2, np.bool_)  # background at both ends closes the runs
    foreground[1:-1] = pixels != 0
    return np.flatnonzero(foreground[1:] != foreground[:-1])


def _painted(lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pixels of runs with these lengths, 0 and 1 in turn."""
    values = np.resize(np.array([0, 1], np.uint8), len(lengths))
    return np.repeat(values, lengths)
