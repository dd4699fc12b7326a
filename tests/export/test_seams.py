"""Tiles on a trained network: what a hand-made one cannot show."""

import numpy as np
import pytest

from runtime.inference.tiling import starts, tiled

TILE = (64, 96)


@pytest.fixture(scope="module")
def mosaic(trained):
    """Nine pictures side by side, shifted so that no tile shows exactly one of them."""
    pictures = trained.samples.pictures(6)
    rows = [np.concatenate([pictures[(3 * row + column) % 6] for column in range(3)], axis=1) for row in range(3)]
    return np.roll(np.concatenate(rows), (32, 48), axis=(0, 1))


def jump(probability, overlap):
    """The mean difference of neighbouring pixels where one tile ends and the next begins."""
    _, height, width = probability.shape
    across = np.abs(np.diff(probability[0], axis=0))[[y - 1 for y in starts(height, TILE[0], overlap)[1:]]]
    along = np.abs(np.diff(probability[0], axis=1))[:, [x - 1 for x in starts(width, TILE[1], overlap)[1:]]]
    return (across.sum() + along.sum()) / (across.size + along.size)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_overlapping_tiles_leave_no_seam_and_the_others_do(trained, mosaic, overlap):
    whole = trained.exact(mosaic[None])[0]
    apart = tiled(trained.exact, mosaic, 1, TILE, overlap=0)
    blended = tiled(trained.exact, mosaic, 1, TILE, overlap=overlap)
    assert jump(apart, 0) > 1.5 * jump(whole, 0)
    assert jump(blended, overlap) < 1.1 * jump(whole, overlap)
    assert np.mean((blended > 0.5) != (whole > 0.5)) < np.mean((apart > 0.5) != (whole > 0.5))
