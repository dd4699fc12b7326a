import math

import numpy as np
import pytest

from benchmarks.measuring.intervals import ratio


def test_ratio_is_taken_round_by_round():
    drift = np.linspace(1, 10, 40)
    median, low, high = ratio(3 * drift, drift)
    assert median == pytest.approx(3)
    assert low == pytest.approx(3)
    assert high == pytest.approx(3)


@pytest.mark.parametrize(
    ("rounds", "low", "high"), [(5, 1, 5), (7, 1, 7), (8, 2, 7), (10, 2, 9), (20, 6, 15), (30, 11, 20)]
)
def test_the_interval_has_the_narrowest_ranks_that_hold_the_median_with_90_percent(rounds, low, high):
    values = np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1))
    assert ratio(values, np.ones(rounds)) == ((rounds + 1) / 2, low, high)
    below = sum(math.comb(rounds, count) for count in range(low)) / 2**rounds  # fewer than `low` below the median
    assert below <= 0.05 < below + math.comb(rounds, low) / 2**rounds


def test_four_rounds_tell_nothing():
    assert ratio(np.arange(1.0, 5.0), np.ones(4)) == (2.5, 0, math.inf)
