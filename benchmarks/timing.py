"""Timing contestants fairly: in turns within one run, after a warm-up, by the monotonic clock."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WARM_UP_SECONDS = 1.0
MIN_WARM_UP_CALLS = 3
MAX_LOAD = 0.6
"""Load average (one minute) per core up to which a machine counts as idle."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one contestant's calls: median, 90th and 99th percentile."""

    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> "Timing":
        """Summarise the calls [rounds]."""
        median, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
        return cls(median=float(median), p90=float(p90), p99=float(p99))


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Time each contestant once a round, A B A B ..., so that a drifting machine is the same for all.

    Before its timed call each makes one that does not count: thread pools of the one before it may still be spinning.

    Returns:
        Milliseconds, float64 [rounds], by contestant.
    """
    for call in contestants.values():
        warm_up(call)
    times: dict[str, list[int]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            call()
            started = time.perf_counter_ns()
            call()
            times[name].append(time.perf_counter_ns() - started)
    return {name: np.array(values, np.float64) / 1e6 for name, values in times.items()}


def warm_up(call: Callable[[], object]) -> None:
    """Call at least `MIN_WARM_UP_CALLS` times and for `WARM_UP_SECONDS`."""
    started, calls = time.perf_counter(), 0
    while calls < MIN_WARM_UP_CALLS or time.perf_counter() - started < WARM_UP_SECONDS:
        call()
        calls += 1


def disturbance() -> str | None:
    """What makes times taken now doubtful: other programs that keep this machine's cores busy; None if nothing does.

    A thread that waits for a core stalls all threads of its pool, PyTorch's worst, so even a steady time can be wrong.
    To be asked before the work starts: afterwards the load is one's own.
    """
    if not hasattr(os, "getloadavg"):  # Windows
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= MAX_LOAD * cores:
        return None
    return f"other programs kept {load:.1f} of {cores} cores busy when this started; measure again on an idle machine"


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[float, float, float]:
    """How many times as long `slow` took, round by round: median, and the 5th and 95th percentile of 2,000 bootstraps.

    The rounds are drawn as pairs (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).
    """
    ratios = slow / fast
    random = np.random.default_rng(0)
    draws = np.median(random.choice(ratios, (2_000, len(ratios))), axis=1)
    low, high = np.percentile(draws, [5, 95])
    return float(np.median(ratios)), float(low), float(high)
