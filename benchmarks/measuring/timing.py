"""Figures from times, and the number of threads that are timed."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
"""Draws of a bootstrap."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Give PyTorch (within an operator), OpenCV and processes started in the block this many threads."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads(), {name: os.environ.get(name) for name in THREAD_VARIABLES}
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        for name, value in before[2].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[float, float, float]:
    """Divide `slow` by `fast`, round by round; return the median and the ends of its interval of at least 90 %."""
    ratios = slow / fast
    return float(np.median(ratios)), *median_interval(ratios)


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Find the two nearest of the values [rounds] that enclose the median of the distribution with at least 90 %.

    Each value lies below that median with probability 1/2, so the number of those that do is binomial, whatever the
    noise looks like (Conover, "Practical Nonparametric Statistics", 1999, 3.2). With fewer than `MIN_ROUNDS` values the
    ends are 0 and infinity.
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
