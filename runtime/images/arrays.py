"""Conversion of arrays to uint8 images, with checks of their type, shape and range."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import Levels
from runtime.errors import ImageError
from runtime.image_files.warned import is_told, warn_once
from runtime.images.levels import from_eight_bits, from_sixteen_bits

ROUNDING = 1e-3
"""Tolerance of floating-point numbers outside 0..1, as resizing leaves them: a quarter of a level of 255."""

FEW_LEVELS = 64
"""Number of levels, of 256, below which values that differ are likely to become one level."""

PIECE = 2**20
"""Number of pixels that are scaled at once; a large image's products need not be in memory together."""


def from_raw_array(
    array: NDArray[Any], count: int | None = None, levels: Levels | None = None, name: str = "array"
) -> NDArray[np.uint8]:
    """Convert [height, width, count] to uint8, a copy of its own; every channel stays. Types are as of `from_array`.

    `count` is the expected number of channels; None takes any. A single one may have no axis. `levels` as of
    `from_array`. `name` is that of the array in messages.

    Raises:
        ImageError: the type or shape is another, or floating-point numbers are out of range.
    """
    planes = array[:, :, None] if array.ndim == 2 else array
    if planes.ndim != 3 or 0 in planes.shape or planes.shape[2] != (count or planes.shape[2]):
        expected = f"[height, width, {count or 'channels'}] for this model"
        if planes.ndim == 3 and planes.shape[0] == count:
            expected += "; numpy.moveaxis(array, 0, -1) puts the channels last"
        raise ImageError(f"{name}: found {array.dtype} {list(array.shape)}, expected {expected}")
    return np.array(to_levels(planes, levels, name), order="C")


def from_array(array: NDArray[Any], channels: str, levels: Levels | None = None) -> NDArray[np.uint8]:
    """Convert [height, width] or [height, width, 1, 3 or 4] to uint8 [height, width, 3 or 1], a copy of its own.

    uint16 is divided by 257; floating-point numbers are multiplied by 255 and rounded. Alpha is dropped.

    Args:
        array: uint8, uint16 or floating-point, with any strides and byte order.
        channels: "RGB" or "L" (grey).
        levels: (black, white), the integers that become 0 and 255; None for the whole range of their type. Those of a
            white above 255 do not apply to uint8. Floating-point numbers are 0..1 in any case.

    Raises:
        ImageError: the type or shape is another, or floating-point numbers are outside 0..1 by more than `ROUNDING`.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ImageError(
            f"array: found {array.dtype} {list(array.shape)}, expected [height, width] or [height, width, 1, 3 or 4]"
        )
    colours = array[:, :, None] if array.ndim == 2 else array[:, :, :3]  # [height, width, 1 or 3]
    pixels = to_levels(colours, levels)
    if pixels.shape[2] == len(channels):
        return np.array(pixels, order="C")
    if channels == "RGB":
        return np.repeat(pixels, 3, axis=2)
    from PIL import Image

    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert(channels))[:, :, None]


def to_levels(array: NDArray[Any], levels: Levels | None = None, name: str = "array") -> NDArray[np.uint8]:
    """Convert values to uint8 levels, 0..255; without `levels` uint8 stays as it is.

    Where different values of others fill fewer than `FEW_LEVELS` of the whole range, one `ImageWarning` says so.

    Raises:
        ImageError: the type is another, or floating-point numbers are out of range.
    """
    if array.dtype == np.uint8:
        return from_eight_bits(array, levels, name)
    if array.dtype.kind == "u" and array.itemsize == 2:  # of either byte order
        if levels is not None:
            return from_sixteen_bits(array, levels, name)
        pixels = (array // 257).astype(np.uint8)
        if levels_used(pixels) < FEW_LEVELS and (array % 257).any():
            warn_of_few_levels(name, array.dtype.name, range_of(array), levels_used(pixels), 65_535)
        return pixels
    if array.dtype.kind == "f":
        pixels = scale_floats(array, name)
        if levels_used(pixels) < FEW_LEVELS and differs_from_levels(array, pixels):
            warn_of_few_levels(name, array.dtype.name, range_of(array), levels_used(pixels), 1)
        return pixels
    advice = "convert it with array.astype(np.uint8) if its values are 0..255"
    if array.dtype == np.bool_:
        advice = "a mask is not an image; for black and white give array * np.uint8(255)"
    raise ImageError(f"{name}: found {array.dtype} values, expected uint8, uint16 or floating-point; {advice}")


def range_of(array: NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    return array.min().item(), array.max().item()


def levels_used(levels: NDArray[np.uint8]) -> int:
    """Return the number of levels from the darkest to the brightest."""
    return int(levels.max()) - int(levels.min()) + 1


def warn_of_few_levels(name: str, kind: str, values: tuple[float, float], used: int, white: int) -> None:
    """Warn of an image whose values, from the first to the second, become `used` levels; once for each `kind`.

    `white` is the value that becomes 255. Values that are all the same are an image without a picture: no warning.
    """
    low, high = values
    if low == high:
        return
    advice = "scale the array so that it fills that range, as in training"
    if name != "array":
        advice = "scale them so that they fill that range, as in training, and give the array"
    if white > 255 >= high:
        advice = "they look like 8 bits, so give array.astype(np.uint8)"
    warn_once(
        kind,
        f"{name}: {kind} values from {low:.6g} to {high:.6g} fill {used} of the 256 levels that the model "
        f"gets, since 0 to {white} becomes 0 to 255; {advice}",
    )


def unmasked(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as a plain one; a mask that hides values is not looked at, and one `ImageWarning` says so."""
    if (
        isinstance(array, np.ma.MaskedArray)
        and not is_told("mask")
        and (hidden := int(np.ma.getmaskarray(array).sum()))
    ):
        warn_once(
            "mask",
            f"array: is a masked array, and the {hidden} values that its mask hides are seen by the model; "
            "replace them first, as in array.filled(0)",
        )
    return np.asarray(array)


def differs_from_levels(array: NDArray[Any], levels: NDArray[np.uint8]) -> bool:
    """Return True unless floats are their levels, divided by 255."""
    rounding = 4 * float(np.finfo(array.dtype).eps * np.abs(array).max())
    return float(np.abs(array - levels / array.dtype.type(255)).max()) > rounding


def scale_floats(array: NDArray[Any], name: str = "array") -> NDArray[np.uint8]:
    """Scale 0..1 to 0..255.

    Raises:
        ImageError: a number is outside 0..1 by more than `ROUNDING`, or NaN.
    """
    low, high = float(array.min()), float(array.max())  # NaN if there is one
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        advice = "divide by 255" if low >= 0 and 2 < high <= 255 else "scale it, or replace NaN and infinity"
        raise ImageError(f"{name}: found {array.dtype} values from {low!r} to {high!r}, expected 0 to 1; {advice}")
    result = np.empty(array.shape, np.uint8)
    rows = max(1, PIECE // array.shape[1])
    for start in range(0, len(array), rows):
        result[start : start + rows] = np.rint(np.clip(array[start : start + rows], 0, 1) * array.dtype.type(255))
    return result
