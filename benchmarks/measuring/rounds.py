"""Rounds of timing: contestants take turns within one run, after a warm-up, by the monotonic clock."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW_CALLS, WINDOW_SECONDS = 3, 0.25
"""Minimum size of a window of calls in a warm-up."""
LONG_SECONDS, PAUSE_SECONDS = 2.0, 0.5
"""A call of more than `LONG_SECONDS` is preceded by a pause instead of an untimed call."""
MIN_ROUNDS = 5
"""Minimum number of rounds: the median lies between the extremes of 5 values with 94 %, of 4 with only 88 %."""

WARM_UP_SECONDS = 10.0
"""Time limit of a warm-up. A contestant that is not stable by then is timed as it is, and its spread shows it."""

STABLE = 0.02
"""Maximum difference of the medians of two windows in a row, as a share, for a contestant to be stable."""

ROUND_SECONDS = 0.1
"""Length of a round of short calls, of which the mean counts."""

TRIAL = "UNET_BENCH_TRIAL"
"""Environment variable for tests and CI: if it is set, nothing is warmed up and a round is one call.

Whatever its options say, `unet-bench` then makes one round and ten predictions, and its large image is 640x640. So
every part is quick, even on a busy machine. The times mean nothing, and the report says so.
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
