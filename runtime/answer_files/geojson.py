"""One file of an image's outlines, in the form of GeoJSON (RFC 7946) with pixels in place of degrees.

A feature is a connected part of a class, largest first, as a polygon with its holes. x and y count from the image's top
left corner, y downwards. Pixels that touch at a corner alone belong to two parts, so that no outline touches itself and
all polygons are valid for tools such as shapely and QuPath.
"""

import json
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.images.polygons import polygons_of, ring_area

if TYPE_CHECKING:
    from runtime.result import Segmentation

END = b"\n]}\n"


def head(height: int, width: int) -> bytes:
    """Return the first bytes of a file for an image of this size."""
    return f'{{"type": "FeatureCollection", "width": {width}, "height": {height}, "features": ['.encode()


def write(result: "Segmentation", file: IO[bytes]) -> None:
    """Write the parts of all classes of the foreground, one line each."""
    file.write(head(*result.shape))
    number = 0
    for index in range(result.output.first_foreground, len(result.classes)):
        for polygon in polygons_of(result.region(index), connectivity=4):
            rings = [polygon.outer, *polygon.holes]
            number += 1
            feature = {
                "type": "Feature",
                "id": number,
                "geometry": {"type": "Polygon", "coordinates": [closed(ring) for ring in rings]},
                "properties": {"class": result.classes[index], "area": round(sum(map(ring_area, rings)))},
            }
            file.write((b",\n" if number > 1 else b"\n") + json.dumps(feature).encode())
    file.write(END)


def closed(ring: NDArray[np.float32]) -> list[list[int]]:
    """Return a ring of whole numbers as a list of points that ends with its first one."""
    points: list[list[int]] = ring.astype(int).tolist()
    return [*points, points[0]]
