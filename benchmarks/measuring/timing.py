"""Figures from times, and the conditions of timing: threads, and a machine that is busy otherwise."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.rounds import TRIAL, is_trial
from runtime.support.cpu_count import available_threads

DRAWS = 2_000
"""Draws of a bootstrap."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MAX_BUSY = 0.15
"""Share of the cores that other programs may keep busy during a measurement."""
STATISTICS = Path("/proc/stat")
"""Linux's counts of busy and idle time, see proc(5)."""


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


def busy_cores(seconds: float = 0.5) -> float | None:
    """Number of cores that other programs keep busy while this process sleeps, of those it may use; None if unknown.

    Ask before and after the timing: a thread that waits for a core stalls all threads of its pool, PyTorch's worst, so
    on a busy machine even a steady time can be wrong.
    """
    time.sleep(0.2)  # thread pools spin on for a moment after their last work
    before = cpu_ticks()
    time.sleep(seconds)
    after = cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1]) * len(os.sched_getaffinity(0))


def cpu_ticks() -> tuple[int, int] | None:
    """Busy ticks and all ticks of our cores since boot, by `STATISTICS`: cpuN user nice system idle iowait irq ..."""
    if not STATISTICS.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    ticks = [sum(column) for column in zip(*(map(int, line[1:9]) for line in lines if line[0] in ours), strict=True)]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def disturbance(before: float | None, after: float | None) -> str | None:
    """Return why times are doubtful, from `busy_cores` before and after; None if no other program was busy."""
    if is_trial():
        return f"{TRIAL} is set, so nothing was warmed up; unset it and measure again"
    busy, cores = max(before or 0.0, after or 0.0), available_threads()
    if busy <= MAX_BUSY * cores:
        return None
    return f"other programs kept {busy:.1f} of {cores} cores busy; measure again on an idle machine"


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
