"""Tiles: where they begin, their weights, and answers that are known beforehand."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from asked import noise, place_of

from runtime.errors import ConfigError
from runtime.inference.tiling import starts, tiled, weighted_spans


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "expected"),
    [
        (10, 10, 0.25, [0]),
        (11, 10, 0.0, [0, 1]),
        (20, 10, 0.0, [0, 10]),
        (20, 10, 0.5, [0, 5, 10]),
        (100, 40, 0.25, [0, 30, 60]),
        (101, 40, 0.25, [0, 20, 41, 61]),
        (3, 1, 0.9, [0, 1, 2]),
        (24, 20, 0.9, [0, 2, 4]),
        (12, 10, 0.8, [0, 2]),
    ],
)
def test_tiles_begin_at_0_end_at_the_end_and_are_even(side, tile, overlap, expected):
    assert starts(side, tile, overlap) == expected


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("side", "tile"), [(1, 1), (7, 7), (97, 16), (64, 16), (301, 100)])
def test_each_pixel_is_covered_with_weights_that_sum_to_1(side, tile, overlap):
    total = np.zeros(side)
    found = weighted_spans(side, tile, overlap)
    for span, weights in found:
        assert span.stop - span.start == len(weights) == tile
        assert weights.min() > 0
        total[span] += weights
    assert np.abs(total - 1).max() < 1e-6
    shared = [first.stop - second.start for (first, _), (second, _) in pairwise(found)]
    assert all(overlap_of >= int(overlap * tile) for overlap_of in shared)


def test_weights_are_a_bell_of_an_eighth_of_the_tile():
    (first, weights), (second, _) = weighted_spans(12, 8, 0.5)
    assert (first, second) == (slice(0, 8), slice(4, 12))
    bell = np.exp(-0.5 * (np.arange(8) - 3.5) ** 2)
    assert weights[:4].tolist() == [1] * 4
    assert weights[4:] == pytest.approx(bell[4:] / (bell[4:] + bell[:4]))


@pytest.mark.parametrize("kind", ["brightness", "softmax"])
@pytest.mark.parametrize("tile", [(8, 8), (5, 30), (23, 31), (100, 100), (1, 1)])
def test_a_network_that_looks_at_single_pixels_answers_as_for_the_whole(answers, kind, tile):
    picture = noise(23, 31, 3)
    run = answers[kind]
    whole = run(picture[None])[0]
    found = tiled(run, picture, len(whole), tile)
    assert found.dtype == np.float32
    assert np.abs(found - whole).max() < 2e-7


def test_one_tile_is_the_whole_bit_for_bit(answers):
    picture = noise(23, 31, 3)
    assert np.array_equal(tiled(answers["conv"], picture, 1, (23, 31)), answers["conv"](picture[None])[0])
    assert np.array_equal(tiled(answers["conv"], picture, 1, (64, 64)), answers["conv"](picture[None])[0])


def test_where_tiles_meet_their_weighted_mean_is_taken():
    found = tiled(place_of, noise(1, 12, 3), 1, (1, 8), overlap=0.5)[0, 0]
    bell = np.exp(-0.5 * (np.arange(8) - 3.5) ** 2)
    expected = [0, 0.1, 0.2, 0.3]
    for x in range(4, 8):
        expected.append((bell[x] * x / 10 + bell[x - 4] * (x - 4) / 10) / (bell[x] + bell[x - 4]))
    expected += [0.4, 0.5, 0.6, 0.7]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize(("batch_size", "together"), [(8, [7, 7, 6]), (7, [7, 7, 6]), (19, [10, 10]), (1, [1] * 20)])
def test_tiles_are_asked_about_in_batches_of_about_one_size(batch_size, together):
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return np.zeros((len(batch), 1, *batch.shape[1:3]), np.float32)

    tiled(run, np.zeros((64, 52, 3), np.uint8), 1, (16, 16), batch_size=batch_size)
    assert sizes == together


@pytest.mark.parametrize("batch_size", [2, 3, 7, 100])
def test_the_size_of_batches_changes_nothing(answers, batch_size):
    picture = noise(50, 61, 3)
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return answers["conv"](batch)

    one = tiled(answers["conv"], picture, 1, (16, 16))
    assert np.array_equal(tiled(run, picture, 1, (16, 16), batch_size=batch_size), one)
    assert max(sizes) == min(batch_size, 20) and sum(sizes) == 20


def test_probabilities_stay_within_1():
    found = tiled(
        lambda batch: np.ones((len(batch), 1, *batch.shape[1:3]), np.float32), noise(200, 211, 1), 1, (17, 19)
    )
    assert found.max() == 1 and found.min() > 1 - 1e-6


def test_memory_beyond_picture_and_result_is_that_of_a_few_tiles():
    def run(batch):
        return np.full((len(batch), 1, *batch.shape[1:3]), 0.5, np.float32)

    def peak(side):
        picture = np.zeros((side, side, 3), np.uint8)
        tracemalloc.start()
        result = tiled(run, picture, 1, (64, 64), batch_size=4)
        beyond = tracemalloc.get_traced_memory()[1] - result.nbytes
        tracemalloc.stop()
        return beyond

    assert peak(1000) < 1_000_000
    assert peak(4000) < 2_000_000  # 64 MB of result, 48 MB of picture


def test_so_many_tiles_that_nobody_means_it(answers):
    with pytest.raises(ConfigError, match=r"tile: cuts 1500x1500 pixels into 2250000 tiles, expected at most 1000000;"):
        tiled(answers["conv"], np.zeros((1500, 1500, 3), np.uint8), 1, (1, 1))
