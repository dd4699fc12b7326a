"""Large images in tiles, so that memory is bounded.

Tiles are evenly spaced, so they overlap evenly, and each pixel's probability is the mean over the tiles that cover it,
weighted by a Gaussian around each tile's centre (Isensee et al., "nnU-Net", 2021): near its border a tile knows little
of what surrounds a pixel. Tiles form a grid and a Gaussian is a product of two, so the weights of rows and of columns
are normalised before anything is computed, and answers are added straight into the result: beyond the picture and its
result, memory is that of a few tiles.
"""

import math
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError
from runtime.model_file.golden import NetworkFunction

SIGMA = 1 / 8
"""Standard deviation of a tile's weights, as a share of its side."""

OVERLAP = 0.25
MAX_OVERLAP = 0.9
MAX_TILES = 1_000_000


def tiled(
    run: NetworkFunction,
    picture: NDArray[np.uint8],
    classes: int,
    tile: tuple[int, int],
    *,
    overlap: float = OVERLAP,
    batch_size: int = 1,
) -> NDArray[np.float32]:
    """Probabilities float32 [classes, height, width] of a picture, uint8 [height, width, channels], in tiles.

    Args:
        run: the network.
        picture: of any size; along a side that is shorter than the tile's, tiles are as long as the side.
        classes: planes that `run` answers with.
        tile: (height, width) in pixels.
        overlap: the least that neighbours share, 0 to `MAX_OVERLAP` of a tile's side.
        batch_size: maximum number of tiles given to `run` at once, which changes speed and memory but nothing else.

    Raises:
        ConfigError: more than `MAX_TILES` tiles.
    """
    height, width = picture.shape[:2]
    rows = weighted_spans(height, min(tile[0], height), overlap)
    columns = weighted_spans(width, min(tile[1], width), overlap)
    result = np.zeros((classes, height, width), np.float32)
    count = len(rows) * len(columns)
    if count > MAX_TILES:
        raise ConfigError(
            f"tile: cuts {width}x{height} pixels into {count} tiles, expected at most {MAX_TILES}; "
            "give larger ones, or less overlap"
        )
    grid = product(rows, columns)
    together = -(-count // -(-count // batch_size))  # 9 tiles, 8 at once, are 5 and 4
    while part := list(islice(grid, together)):
        tiles = np.stack([picture[row, column] for (row, _), (column, _) in part])
        for ((row, high), (column, wide)), answer in zip(part, run(tiles), strict=True):
            result[:, row, column] += answer * (high[:, None] * wide)
    np.minimum(result, 1, out=result)  # weights sum to 1 but for rounding
    return result


Span = tuple[slice, NDArray[np.float32]]
"""The place of a tile along one side, and the weight of each of its pixels."""


def weighted_spans(side: int, tile: int, overlap: float) -> list[Span]:
    """Spread tiles evenly over a side, with weights that sum to 1 at every pixel."""
    spans = [slice(start, start + tile) for start in starts(side, tile, overlap)]
    bell = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (SIGMA * tile)) ** 2)
    total = np.zeros(side)
    for span in spans:
        total[span] += bell
    return [(span, (bell / total[span]).astype(np.float32)) for span in spans]


def starts(side: int, tile: int, overlap: float) -> list[int]:
    """Return the starts of as few tiles as overlap by that share, the first at 0 and the last at the end."""
    step = max(1, tile - math.ceil(round(tile * overlap, 9)))
    count = 1 + -(-(side - tile) // step)
    return [round(place) for place in np.linspace(0, side - tile, count)]
