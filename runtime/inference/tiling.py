"""Large images in tiles, and test-time flips: ways to ask the network about one picture more than once.

Tiles are evenly spaced, so they overlap evenly, and each pixel's probability is the mean over the tiles that cover it,
weighted by a Gaussian around each tile's centre (Isensee et al., "nnU-Net", 2021): near its border a tile knows little
of what surrounds a pixel. Tiles form a grid and a Gaussian is a product of two, so the weights of rows and of columns
are normalised before anything is computed, and answers are added straight into the result: beyond the picture and its
result, memory is that of a few tiles.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.card import MAX_SIDE, InputSpec, ModelCard
from runtime.errors import ConfigError
from runtime.model_file.golden import NetworkFunction

Tta = Literal["flip", "d4"]
"""Test-time augmentation: the picture and its mirror image, or all eight ways to turn and mirror a square."""

SIGMA = 1 / 8
"""Standard deviation of a tile's weights, as a share of its side."""

OVERLAP = 0.25
MAX_OVERLAP = 0.9
MAX_TILES = 1_000_000
MAX_PIXELS = 200_000_000
"""Maximum number of pixels that the network sees at once; each takes some 440 bytes."""


SizeOption = tuple[int, int] | Literal["native"]
"""(height, width) that the network sees, or the image's own size."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """Checked options: an image is fitted as `spec` says, and asked about in tiles of (height, width) or whole."""

    spec: InputSpec
    tile: tuple[int, int] | None
    overlap: float
    tta: Tta | None


class PredictOptions(TypedDict, total=False):
    """The options of `Predictor.predict`."""

    size: SizeOption | None
    tile: tuple[int, int] | None
    overlap: float | None
    tta: Tta | None


def resolve_options(
    card: ModelCard,
    size: SizeOption | None = None,
    tile: tuple[int, int] | None = None,
    overlap: float | None = None,
    tta: Tta | None = None,
    **unknown: object,
) -> ResolvedOptions:
    """Check the options of `Predictor.predict`, and fill in those that were not given.

    Raises:
        ConfigError: a size is none, a side is below 1, the overlap is outside 0..`MAX_OVERLAP`, or an augmentation or
            option is unknown.
    """
    if unknown:
        name = next(iter(unknown))
        hint = "; of the result: result.threshold(0.3)" if name == "threshold" else ""
        raise ConfigError(
            f"{name}: is no option of predict, expected {', '.join(PredictOptions.__annotations__)}{hint}"
        )
    if tile is not None:
        _check_size("tile", tile, "")
    if overlap is not None and tile is None:
        raise ConfigError(f"overlap: found {overlap!r} without tile, whose neighbours it is of; give tile too")
    overlap = OVERLAP if overlap is None else overlap
    if not isinstance(overlap, int | float | np.floating) or not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"overlap: found {overlap!r}, expected 0 to {MAX_OVERLAP}, a share of the tile")
    if tta is not None and tta not in get_args(Tta):
        raise ConfigError(f"tta: found {tta!r}, expected {', '.join(map(repr, get_args(Tta)))} or None")
    spec = card.input
    if (isinstance(size, str) and size == "native") or (size is None and tile is not None):
        spec = replace(spec, fit="native")
    elif size is not None:
        _check_size("size", size, ", or 'native'")
        spec = replace(spec, size=(int(size[0]), int(size[1])), fit="stretch" if spec.fit == "native" else spec.fit)
    return ResolvedOptions(spec=spec, tile=None if tile is None else (tile[0], tile[1]), overlap=overlap, tta=tta)


def _check_size(name: str, size: object, other: str) -> None:
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size)
        or not all(1 <= side <= MAX_SIDE for side in size)
    ):
        raise ConfigError(f"{name}: found {size!r}, expected (height, width), each 1 to {MAX_SIDE}{other}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(f"{name}: found {size!r}, expected at most {MAX_PIXELS} pixels, which take some 90 GB")


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
        batch_size: tiles given to `run` at once, which changes speed and memory but nothing else.

    Raises:
        ConfigError: more than `MAX_TILES` tiles.
    """
    height, width = picture.shape[:2]
    rows = weighted_spans(height, min(tile[0], height), overlap)
    columns = weighted_spans(width, min(tile[1], width), overlap)
    result = np.zeros((classes, height, width), np.float32)
    if len(rows) * len(columns) > MAX_TILES:
        raise ConfigError(
            f"tile: cuts {width}x{height} pixels into {len(rows) * len(columns)} tiles, expected at most {MAX_TILES}; "
            "give larger ones, or less overlap"
        )
    grid = product(rows, columns)
    while part := list(islice(grid, batch_size)):
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


def augmented(run: NetworkFunction, tta: Tta | None) -> NetworkFunction:
    """Return a network that answers the mean over a picture's mirror images and turns, each turned back."""
    if tta is None:
        return run
    turns = list(product([0] if tta == "flip" else range(4), [False, True]))

    def mean(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        total: NDArray[np.float32] | None = None
        for turn, mirror in turns:
            seen = batch[:, :, ::-1] if mirror else batch
            answer = run(np.ascontiguousarray(np.rot90(seen, turn, axes=(1, 2))))
            back = np.rot90(answer, -turn, axes=(2, 3))
            back = back[..., ::-1] if mirror else back
            total = back.copy() if total is None else np.add(total, back, out=total)
        assert total is not None
        total /= len(turns)
        return total

    return mean
