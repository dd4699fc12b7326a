import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import Timing, interleave, ratio


def test_contestants_take_turns_and_every_timed_call_follows_one_that_does_not_count(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "aaabbb" + "aabb" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_times_are_milliseconds(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    ticks = iter(range(0, 10**12, 5_000_000))
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(ticks))
    assert interleave({"a": lambda: None}, rounds=4)["a"].tolist() == [5.0] * 4


@pytest.mark.parametrize(("load", "cores", "words"), [(0.4, 2, None), (1.1, 2, None), (3.0, 2, "3.0 of 2 cores")])
def test_a_busy_machine_is_noticed(monkeypatch, load, cores, words):
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (load, 9.0, 9.0), raising=False)
    monkeypatch.setattr(timing.os, "cpu_count", lambda: cores)
    found = timing.disturbance()
    assert found is None if words is None else words in found


def test_percentiles():
    summary = Timing.of(np.arange(101, dtype=np.float64))
    assert summary == Timing(median=50, p90=90, p99=99)


def test_ratio_is_taken_round_by_round():
    drift = np.linspace(1, 10, 40)
    median, low, high = ratio(3 * drift, drift)
    assert median == pytest.approx(3)
    assert low == pytest.approx(3)
    assert high == pytest.approx(3)


def test_noise_widens_the_interval():
    random = np.random.default_rng(1)
    noisy = 2 * np.exp(random.normal(0, 0.3, 50))
    median, low, high = ratio(noisy, np.ones(50))
    assert low < median < high
    assert 0.1 < high - low < 1.0
