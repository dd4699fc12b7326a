"""Ratios of times, and intervals for their medians."""

import math

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
"""Draws of a bootstrap."""


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[float, float, float]:
    """Divide `slow` by `fast`, round by round; return the median and the ends of its interval of at least 90 %."""
    ratios = slow / fast
    return float(np.median(ratios)), *median_interval(ratios)


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Find the two nearest of the values [rounds] that enclose the median of the distribution with at least 90 %.

    Each value lies below that median with probability 1/2, so the number of those that do is binomial, whatever the
    noise looks like (Conover, "Practical Nonparametric Statistics", 1999, 3.2). With fewer than
    `rounds.MIN_ROUNDS` values the ends are 0 and infinity.
    """
    count = len(values)
    outer, ways = 0, 1  # `ways` of the 2 ** count ways to fall below or above have exactly `outer` values below
    beyond = ways
    while 20 * beyond <= 2**count:  # 5 % at each end
        ways = ways * (count - outer) // (outer + 1)
        beyond += ways
        outer += 1
    if not outer:
        return 0.0, math.inf
    ordered = np.sort(values)
    return float(ordered[outer - 1]), float(ordered[-outer])
