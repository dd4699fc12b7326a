"""Timing contestants fairly: in turns within one run, after a warm-up, by the monotonic clock."""

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
"""A contestant that is not stable by then is timed as it is; its spread tells."""
WINDOW_CALLS = 3
WINDOW_SECONDS = 0.25
STABLE = 0.02
"""Two windows of calls in a row are stable where their medians differ by no more than this share."""
LONG_SECONDS, PAUSE_SECONDS = 2.0, 0.5
"""A call that takes longer than this is preceded by a pause, not by a call that does not count."""
ROUND_SECONDS = 0.1
"""A round of short calls is as many in a row as take this long, and its time their mean."""
MIN_ROUNDS = 5
"""The median lies between the smallest and the largest of 5 values with 94 %, of 4 with 88 %: too few for 90 %."""
DRAWS = 2_000
"""Of a bootstrap."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MAX_BUSY = 0.15
"""Share of the cores that other programs may keep busy during a measurement."""
STATISTICS = Path("/proc/stat")
TRIAL = "UNET_BENCH_TRIAL"
"""Environment variable for tests and CI: where it is set, nothing is warmed up and a round is one call.

So every part runs soon, even on a busy machine. The times mean nothing, and the report says so.
"""


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


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, budget_s: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """Time each contestant once a round, A B A B ..., so that a drifting machine is the same for all.

    A round is one call, or several in a row (`ROUND_SECONDS`). Before it, as many are made that do not count: thread
    pools of the contestant before it may still be spinning, its data have left the caches, and cores that slept wake up
    slowly. Where calls are long, a pause is enough (`LONG_SECONDS`). A contestant comes back when its work is done,
    with the answer in host memory. With a budget in seconds (warm-up included, which takes a quarter of it at most)
    there are fewer rounds, but never fewer than `MIN_ROUNDS` of those asked for.

    Returns:
        Milliseconds a call, float64 [rounds], by contestant.
    """
    started = time.perf_counter()
    limit = WARM_UP_SECONDS if budget_s is None else min(WARM_UP_SECONDS, budget_s / 4 / max(1, len(contestants)))
    limit = 0.0 if os.environ.get(TRIAL) else limit
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
            else:
                _repeated(call, calls)
            times[name].append(_repeated(call, calls) / calls)
    return {name: np.array(values, np.float64) / 1e6 for name, values in times.items()}


def _repeated(call: Callable[[], object], times: int) -> int:
    """Nanoseconds that so many calls take."""
    before = time.perf_counter_ns()
    for _ in range(times):
        call()
    return time.perf_counter_ns() - before


def calls_of(call_s: float) -> int:
    """How many calls of so many seconds are a round."""
    return max(1, round(ROUND_SECONDS / call_s)) if call_s and not os.environ.get(TRIAL) else 1


def least_seconds(call_s: float) -> float:
    """What `interleave` takes for a contestant with calls of so many seconds: one to warm up, and the fewest rounds."""
    timed = calls_of(call_s) * call_s
    return call_s + MIN_ROUNDS * (timed + (PAUSE_SECONDS if call_s > LONG_SECONDS else timed))


def warm_up(call: Callable[[], object], limit: float) -> float:
    """Call until it is stable, at least once, and return its seconds; after `limit` seconds no further call is begun.

    Calls are looked at in windows of at least `WINDOW_CALLS` and `WINDOW_SECONDS`; it is stable when the medians of
    two windows in a row differ by no more than `STABLE`.
    """
    ends = time.perf_counter() + limit
    previous = None
    while True:
        median = _window(call, ends)
        if time.perf_counter() >= ends or (previous and abs(median - previous) <= STABLE * previous):
            return median / 1e9
        previous = median


def _window(call: Callable[[], object], ends: float) -> float:
    """The median of a window's calls, in nanoseconds; ends early at `ends`."""
    started, times = time.perf_counter(), list[int]()
    while True:
        before = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - before)
        now = time.perf_counter()
        if now >= ends or (len(times) >= WINDOW_CALLS and now - started >= WINDOW_SECONDS):
            return float(np.median(times))


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Within the block, PyTorch (within an operator), OpenCV and processes started in it have this many threads."""
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
    """How many of the cores that this process may use others keep busy while it sleeps; None where nothing tells it.

    A thread that waits for a core stalls all threads of its pool, PyTorch's worst, so on a busy machine even a steady
    time can be wrong. To be asked before and after the timing.
    """
    time.sleep(0.2)  # thread pools spin on for a moment after their last work
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1]) * len(os.sched_getaffinity(0))


def _cpu_ticks() -> tuple[int, int] | None:
    """Busy and all ticks of our cores since boot (proc(5), /proc/stat): cpuN user nice system idle iowait irq ..."""
    if not STATISTICS.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    ticks = [sum(column) for column in zip(*(map(int, line[1:9]) for line in lines if line[0] in ours), strict=True)]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def disturbance(before: float | None, after: float | None) -> str | None:
    """What makes times doubtful, from `busy_cores` before and after; None if nothing is known to."""
    if os.environ.get(TRIAL):
        return f"{TRIAL} is set, so nothing was warmed up; unset it and measure again"
    busy, cores = max(before or 0.0, after or 0.0), available_threads()
    if busy <= MAX_BUSY * cores:
        return None
    return f"other programs kept {busy:.1f} of {cores} cores busy; measure again on an idle machine"


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[float, float, float]:
    """How many times as long `slow` took, round by round: median, and the ends of its interval of at least 90 %."""
    ratios = slow / fast
    return float(np.median(ratios)), *median_interval(ratios)


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Two of the values [rounds] that have the median of all possible ones between them, with at least 90 %.

    As many are left out at each end as can be: each value lies below the median with 1/2, so how many do is binomial,
    whatever the noise looks like (Conover, "Practical Nonparametric Statistics", 1999, 3.2). With fewer than
    `MIN_ROUNDS` values, 0 and infinity.
    """
    count = len(values)
    outer, ways = 0, 1  # of the 2 ** count ways to fall below or above, `ways` have exactly `outer` below
    beyond = ways
    while 20 * beyond <= 2**count:  # 5 % at each end
        ways = ways * (count - outer) // (outer + 1)
        beyond += ways
        outer += 1
    if not outer:
        return 0.0, math.inf
    ordered = np.sort(values)
    return float(ordered[outer - 1]), float(ordered[-outer])
