"""The pixels that rings of points enclose."""

import numpy as np


def area(ring):
    """Shoelace formula; above 0 where the points turn clockwise on the screen, y pointing down."""
    x, y = np.asarray(ring, float).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def filled(polygons, size):
    """Pixels inside an odd number of rings, from the vertical edges left of each pixel; rings along pixels only."""
    crossings = np.zeros((size[0], size[1] + 1), bool)
    for ring in (ring for outer, holes in polygons for ring in (outer, *holes)):
        for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x == to_x) != (y == to_y)
            if x == to_x:
                crossings[int(min(y, to_y)) : int(max(y, to_y)), int(x)] ^= True
    return np.logical_xor.accumulate(crossings[:, :-1], axis=1)
