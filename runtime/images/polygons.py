"""Outlines of a region of pixels: its bounding box, and polygons along the edges of its pixels.

Points are (x, y) in pixels from the top left corner of the image: pixel (column 0, row 0) covers 0..1 in x and in y,
and its centre is (0.5, 0.5). So a polygon encloses exactly the pixels of its region, one pixel is a square of area 1,
and the extremes of the points are the box. OpenCV's own contours run through the centres of pixels instead, and count
these as whole numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError


class Polygon(NamedTuple):
    """One connected part of a region; points are float32 [corners, 2] (x, y), the first is not repeated at the end.

    `outer` turns clockwise as seen on the screen, each of `holes` the other way round: the shoelace formula gives the
    outer one a positive area, holes a negative one, and their sum is the number of pixels. `shapely.Polygon(*polygon)`.
    """

    outer: NDArray[np.float32]
    holes: list[NDArray[np.float32]]


def box_of(region: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Smallest box (x0, y0, x1, y1) around bool [height, width], x1 and y1 being one past the last; None if empty."""
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    return (x, y, x + width, y + height) if width else None


def polygons_of(region: NDArray[np.bool_], tolerance: float = 0.0) -> list[Polygon]:
    """The connected parts of bool [height, width], largest first; parts that touch at a corner are one.

    `tolerance` is how far, in pixels, an outline may move where points are left out (Douglas and Peucker, 1973); from 1
    on, slopes have no steps. An outline of which less than a triangle would be left is kept as it is. Simplified
    outlines may cross one another. This takes 8 bytes of memory for each pixel of the region's box.

    Raises:
        ConfigError: `tolerance` is negative or not a number.
    """
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance: found {tolerance!r}, expected a number of pixels, 0 or more")
    box = box_of(region)
    if box is None:
        return []
    x0, y0, x1, y1 = box
    # With four pixels for each one, OpenCV's points are at a quarter of a pixel, next to the corner that is meant.
    quarters = cv2.resize(
        region[y0:y1, x0:x1].view(np.uint8), (2 * (x1 - x0), 2 * (y1 - y0)), interpolation=cv2.INTER_NEAREST
    )
    corner = np.array([x0, y0], np.float32)
    found, hierarchy = cv2.findContours(quarters, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_simplified(ring + corner, tolerance) for ring in _corners(found)]
    parts = {index: Polygon(ring, []) for index, ring in enumerate(rings) if hierarchy[0, index, 3] < 0}
    for index, ring in enumerate(rings):
        if index not in parts:
            parts[int(hierarchy[0, index, 3])].holes.append(ring)
    return sorted(parts.values(), key=lambda part: -cv2.contourArea(part.outer))


def _corners(found: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """Quarters of pixels, int32 [points, 1, 2] for each ring, to its corners [corners, 2] in the opposite order.

    All rings at once: noise has a hundred thousand of them.
    """
    lengths = np.array([len(points) for points in reversed(found)])
    points = (np.concatenate(found)[::-1, 0] + 1) // 2  # [all points, 2]
    points, lengths = _kept(points, lengths, (points != _before(points, lengths)).any(axis=1))
    step = np.sign(points - _before(points, lengths))
    # Where the step to a point is unlike the step before it, the point between them is a corner.
    points, lengths = _kept(_before(points, lengths), lengths, (step != _before(step, lengths)).any(axis=1))
    return np.split(points.astype(np.float32), np.cumsum(lengths)[:-1])[::-1]


def _before(values: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """The value before each one in its ring; rings of `lengths` follow one another."""
    after = np.cumsum(lengths)
    index = np.arange(-1, len(values) - 1)
    index[after - lengths] = after - 1
    found: NDArray[Any] = values[index]
    return found


def _kept(
    values: NDArray[Any], lengths: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values to keep, and how many of each ring they are."""
    return values[keep], np.add.reduceat(keep.astype(np.int64), np.cumsum(lengths) - lengths)


def _simplified(ring: NDArray[np.float32], tolerance: float) -> NDArray[np.float32]:
    if not tolerance:
        return ring
    fewer = np.asarray(cv2.approxPolyDP(ring, tolerance, True)[:, 0], np.float32)
    return fewer if len(fewer) >= 3 else ring
