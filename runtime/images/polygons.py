"""Outlines of a region of pixels: its bounding box, and polygons along the edges of its pixels.

Points are (x, y) in pixels from the top left corner of the image. The pixel in column 0 and row 0 covers 0..1 in x and
y; its centre is (0.5, 0.5). So a polygon encloses exactly the pixels of its region, a single pixel is a square of area
1, and the extremes of the points are the box. OpenCV's own contours run through the centres of pixels instead, which
have whole numbers there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError


class Polygon(NamedTuple):
    """One connected part of a region; points are float32 [corners, 2] (x, y), without a repeated first point.

    `outer` turns clockwise on the screen, each of `holes` counterclockwise. So the shoelace formula gives `outer` a
    positive area and holes a negative one, and the sum is the number of pixels. `shapely.Polygon(*polygon)` works.
    """

    outer: NDArray[np.float32]
    holes: list[NDArray[np.float32]]


def box_of(region: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Smallest box (x0, y0, x1, y1) around bool [height, width], x1 and y1 excluded; None for an empty region."""
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    return (x, y, x + width, y + height) if width else None


def polygons_of(region: NDArray[np.bool_], tolerance: float = 0.0, connectivity: int = 8) -> list[Polygon]:
    """Find the connected parts of bool [height, width], largest first.

    Parts that touch at a corner are one part, whose outline comes through the corner twice. With `connectivity` 4 they
    are two, and no outline touches itself.

    `tolerance` is the distance, in pixels, that an outline may move to save points (Douglas and Peucker, 1973). From 1
    on, slopes have no steps. An outline that would shrink to less than a triangle stays as it is. Simplified outlines
    may cross one another. This takes 8 bytes of memory for each pixel of the region's box.

    Raises:
        ConfigError: `tolerance` is negative or not a number.
    """
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance: found {tolerance!r}, expected a number of pixels, 0 or more")
    box = box_of(region)
    if box is None:
        return []
    x0, y0, x1, y1 = box
    if connectivity == 4 and (apart := apart_at_corners(region, box)):
        found_apart = [(corner, polygons_of(part, tolerance)[0]) for corner, part in apart]
        moved = [Polygon(outer + corner, [hole + corner for hole in holes]) for corner, (outer, holes) in found_apart]
        return sorted(moved, key=lambda part: -cv2.contourArea(part.outer))
    # With four pixels for each pixel, OpenCV's points are a quarter of a pixel from the corner of the outline.
    quarters = cv2.resize(
        region[y0:y1, x0:x1].view(np.uint8), (2 * (x1 - x0), 2 * (y1 - y0)), interpolation=cv2.INTER_NEAREST
    )
    corner = np.array([x0, y0], np.float32)
    found, hierarchy = cv2.findContours(quarters, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [ring + corner for ring in corners(found)]
    if tolerance:
        simplified = [np.asarray(cv2.approxPolyDP(ring, tolerance, True)[:, 0], np.float32) for ring in rings]
        rings = [fewer if len(fewer) >= 3 else ring for fewer, ring in zip(simplified, rings, strict=True)]
    parts = {index: Polygon(ring, []) for index, ring in enumerate(rings) if hierarchy[0, index, 3] < 0}
    for index, ring in enumerate(rings):
        if index not in parts:
            parts[int(hierarchy[0, index, 3])].holes.append(ring)
    return sorted(parts.values(), key=lambda part: -cv2.contourArea(part.outer))


def apart_at_corners(
    region: NDArray[np.bool_], box: tuple[int, int, int, int]
) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Split a region with this box into parts that share no edge, each as its corner (x, y) and its pixels there.

    Returns an empty list if no two of them touch at a corner.
    """
    x0, y0, x1, y1 = box
    pixels = region[y0:y1, x0:x1].view(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(pixels, connectivity=4)
    if count == cv2.connectedComponents(pixels, connectivity=8)[0]:
        return []
    parts = []
    for index, (left, top, width, height, _) in enumerate(boxes[1:].tolist(), 1):
        corner = np.array([x0 + left, y0 + top], np.float32)
        parts.append((corner, labels[top : top + height, left : left + width] == index))
    return parts


def bridged(polygon: Polygon) -> NDArray[np.float32]:
    """Return a polygon as one ring, for formats without holes: each hole is joined to the outer ring's nearest corner.

    The line between the two is part of the ring twice, in both directions, so that the enclosed pixels stay the same.
    """
    outer, holes = polygon
    after: dict[int, list[NDArray[np.float32]]] = {}
    for hole in holes:
        nearest = int(((outer - hole[0]) ** 2).sum(axis=1).argmin())
        after.setdefault(nearest, []).extend([hole, hole[:1], outer[nearest : nearest + 1]])
    pieces, done = [], 0
    for index in sorted(after):
        pieces += [outer[done : index + 1], *after[index]]
        done = index + 1
    return np.concatenate([*pieces, outer[done:]])


def ring_area(ring: NDArray[np.float32]) -> float:
    """Area by the shoelace formula: positive for outer rings, negative for holes."""
    x, y = ring.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def corners(found: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """Turn rings of quarter pixels, int32 [points, 1, 2], into their corners [corners, 2], in the opposite direction.

    All rings are treated together, since a noisy mask has a hundred thousand of them.
    """
    lengths = np.array([len(points) for points in reversed(found)])
    points = (np.concatenate(found)[::-1, 0] + 1) // 2  # [all points, 2]
    points, lengths = kept(points, lengths, (points != before(points, lengths)).any(axis=1))
    step = np.sign(points - before(points, lengths))
    # A point is a corner if the steps before and after it differ.
    points, lengths = kept(before(points, lengths), lengths, (step != before(step, lengths)).any(axis=1))
    return np.split(points.astype(np.float32), np.cumsum(lengths)[:-1])[::-1]


def before(values: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Return the predecessor of each value in its ring; the rings have these `lengths` and follow one another."""
    after = np.cumsum(lengths)
    index = np.arange(-1, len(values) - 1)
    index[after - lengths] = after - 1
    found: NDArray[Any] = values[index]
    return found


def kept(
    values: NDArray[Any], lengths: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the values to keep, and their number in each ring."""
    return values[keep], np.add.reduceat(keep.astype(np.int64), np.cumsum(lengths) - lengths)
