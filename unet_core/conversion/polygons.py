"""Polygons drawn as COCO's own tools draw them."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.commands.entry import exit_without
from runtime.errors import ImageError


def draw_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw polygons, each a list x, y, x, y, ... in pixels, by pycocotools; bool [height, width].

    Raises:
        ImageError: a polygon has fewer than three points, or coordinates that are no numbers or far outside.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        exit_without(error, "data")
    height, width = size
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            count = len(polygon) if isinstance(polygon, list) else 0
            raise ImageError(f"has a polygon of {count} numbers, expected x, y of 3 points or more")
        try:
            points = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ImageError("has a polygon with coordinates that are no numbers") from error
        # pycocotools walks along every edge in steps of a fifth of a pixel.
        if points.ndim != 1 or not np.isfinite(points).all() or np.abs(points).max() > 2 * max(size):
            raise ImageError(f"has a polygon with coordinates far outside its image of {width}x{height}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools' arrays with NumPy 2
        drawn = mask.decode(
            mask.merge(mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width))
        )
    return np.asarray(drawn, np.bool_)
