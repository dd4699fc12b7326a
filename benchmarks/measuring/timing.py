"""Fair timing: contestants take turns within one run, after a warm-up, by the monotonic clock."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.support.cpu_count import available_threads

WARM_UP_SECONDS = 10.0
"""Time limit of a warm-up. A contestant that is not stable by then is timed as it is, and its spread shows it."""
WINDOW_CALLS, WINDOW_SECONDS = 3, 0.25
"""Minimum size of a window of calls in a warm-up."""
STABLE = 0.02
"""Maximum difference of the medians of two windows in a row, as a share, for a contestant to be stable."""
LONG_SECONDS, PAUSE_SECONDS = 2.0, 0.5
"""A call of more than `LONG_SECONDS` is preceded by a pause instead of an untimed call."""
ROUND_SECONDS = 0.1
"""Length of a round of short calls, of which the mean counts."""
MIN_ROUNDS = 5
"""Minimum number of rounds: the median lies between the extremes of 5 values with 94 %, of 4 with only 88 %."""
DRAWS = 2_000
"""Draws of a bootstrap."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MAX_BUSY = 0.15
"""Share of the cores that other programs may keep busy during a measurement."""
STATISTICS = Path("/proc/stat")
"""Linux's counts of busy and idle time, see proc(5)."""
TRIAL = "UNET_BENCH_TRIAL"
"""Environment variable for tests and CI: if it is set, nothing is warmed up and a round is one call.

So every part is quick, even on a busy machine. The times mean nothing, and the report says so.
"""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median, 90th and 99th percentile of one contestant's calls, in milliseconds."""

    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> "Timing":
        """Summarise milliseconds [rounds]."""
        median, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
        return cls(median=float(median), p90=float(p90), p99=float(p99))


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, budget_s: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """Time each contestant once a round, A B A B ..., so that a drifting machine is the same for all.

    A round is one call, or several in a row (`ROUND_SECONDS`). As many untimed calls precede it: thread pools of the
    previous contestant may still be spinning, its own data have left the caches, and cores that slept wake up slowly.
    Where calls are long, a pause is enough (`LONG_SECONDS`). A call must return only when the answer is in host memory.

    Args:
        contestants: calls by name.
        rounds: rounds to time.
        budget_s: seconds, warm-up included, which takes a quarter of them at most. If time is short there are fewer
            rounds, but at least `MIN_ROUNDS` of those asked for.

    Returns:
        Milliseconds a call, float64 [rounds], by name.
    """
    started = time.perf_counter()
    limit = WARM_UP_SECONDS if budget_s is None else min(WARM_UP_SECONDS, budget_s / 4 / max(1, len(contestants)))
    limit = 0.0 if is_trial() else limit
    usual = {name: warm_up(call, limit) for name, call in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    first = time.perf_counter()
    for done in range(rounds):
        now = time.perf_counter()
        if budget_s is not None and done >= MIN_ROUNDS and now - started + (now - first) / done > budget_s:
            break
        for name, call in contestants.items():
            calls = calls_of(usual[name])
            if usual[name] > LONG_SECONDS:
                time.sleep(PAUSE_SECONDS)
            elif not is_trial():
                nanoseconds_of(call, calls)
            times[name].append(nanoseconds_of(call, calls) / calls)
    return {name: np.array(values, np.float64) / 1e6 for name, values in times.items()}


def is_trial() -> bool:
    """Return True if every part shall run soon, whatever its times mean: see `TRIAL`."""
    return bool(os.environ.get(TRIAL))


def nanoseconds_of(call: Callable[[], object], times: int) -> int:
    """Call `times` times in a row; return the nanoseconds of all calls together."""
    before = time.perf_counter_ns()
    for _ in range(times):
        call()
    return time.perf_counter_ns() - before


def calls_of(call_s: float) -> int:
    """Number of calls in a round, if one takes `call_s` seconds."""
    return max(1, round(ROUND_SECONDS / call_s)) if call_s and not is_trial() else 1


def least_seconds(call_s: float) -> float:
    """Minimum seconds of `interleave` for calls of `call_s` seconds: one call to warm up, and the fewest rounds."""
    timed = calls_of(call_s) * call_s
    return call_s + MIN_ROUNDS * (timed + (PAUSE_SECONDS if call_s > LONG_SECONDS else timed))


def warm_up(call: Callable[[], object], limit: float) -> float:
    """Call until it is stable, at least once; return the seconds of a call.

    Calls form windows of at least `WINDOW_CALLS` and `WINDOW_SECONDS`. A contestant is stable when the medians of two
    windows in a row differ by no more than `STABLE`. After `limit` seconds no further call starts.
    """
    started = window_started = time.perf_counter()
    previous, times = None, list[int]()
    while True:
        times.append(nanoseconds_of(call, 1))
        now = time.perf_counter()
        is_over = now >= started + limit
        if not is_over and (len(times) < WINDOW_CALLS or now - window_started < WINDOW_SECONDS):
            continue
        median = float(np.median(times))
        if is_over or (previous and abs(median - previous) <= STABLE * previous):
            return median / 1e9
        previous, times, window_started = median, [], now


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
