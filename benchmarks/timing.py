"""Timing contestants fairly: in turns within one run, after a warm-up, by the monotonic clock."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WARM_UP_SECONDS = 1.0
MIN_WARM_UP_CALLS = 3
MAX_BUSY = 0.15
"""Share of the cores that other programs may keep busy during a measurement."""
STATISTICS = Path("/proc/stat")


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


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other programs keep busy while this one sleeps; None where the system does not tell (no /proc).

    A thread that waits for a core stalls all threads of its pool, PyTorch's worst, so on a busy machine even a steady
    time can be wrong. To be asked before and after the timing.
    """
    time.sleep(0.2)  # thread pools spin on for a moment after their last work
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1]) * (os.cpu_count() or 1)


def _cpu_ticks() -> tuple[int, int] | None:
    """Busy and all ticks of all cores since boot (proc(5), /proc/stat): user nice system idle iowait irq ..."""
    if not STATISTICS.exists():
        return None
    ticks = [int(word) for word in STATISTICS.read_text().partition("\n")[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def disturbance(before: float | None, after: float | None) -> str | None:
    """What makes times doubtful, from `busy_cores` before and after; None if nothing is known to."""
    busy, cores = max(before or 0.0, after or 0.0), os.cpu_count() or 1
    if busy <= MAX_BUSY * cores:
        return None
    return f"other programs kept {busy:.1f} of {cores} cores busy; measure again on an idle machine"


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[float, float, float]:
    """How many times as long `slow` took, round by round: median, and the 5th and 95th percentile of 2,000 bootstraps.

    The rounds are drawn as pairs (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).
    """
    ratios = slow / fast
    random = np.random.default_rng(0)
    draws = np.median(random.choice(ratios, (2_000, len(ratios))), axis=1)
    low, high = np.percentile(draws, [5, 95])
    return float(np.median(ratios)), float(low), float(high)
