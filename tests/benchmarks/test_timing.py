import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.report import framed
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


@pytest.mark.skipif(not timing.STATISTICS.exists(), reason="needs /proc/stat")
def test_a_busy_program_is_noticed():
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        assert timing.busy_cores() > 0.7
    finally:
        program.kill()
        program.wait()


def test_busy_cores_are_the_share_of_ticks_that_is_neither_idle_nor_waiting(tmp_path, monkeypatch):
    statistics = tmp_path / "stat"
    statistics.write_text("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 ...\n")
    monkeypatch.setattr(timing, "STATISTICS", statistics)
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 4)
    moments = iter([None, "cpu  130 0 60 820 90 0 0 0 0 0\n"])
    monkeypatch.setattr(timing.time, "sleep", lambda _: (text := next(moments)) and statistics.write_text(text))
    assert timing.busy_cores() == pytest.approx(4 * 40 / 100)


def test_where_the_system_does_not_tell_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STATISTICS", tmp_path / "none")
    assert timing.busy_cores(0.0) is None
    assert timing.disturbance(None, None) is None


@pytest.mark.parametrize(
    ("before", "after", "words"), [(0.2, 0.1, None), (0.2, 1.2, "1.2 of 2 cores"), (0.9, None, "0.9 of 2 cores")]
)
def test_what_disturbs_before_or_after_is_told(monkeypatch, before, after, words):
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    found = timing.disturbance(before, after)
    assert found is None if words is None else words in found


@pytest.mark.parametrize(("doubt", "first"), [(None, []), ("it rained", ["**Not a measurement**: it rained.", ""])])
def test_a_report_ends_with_what_it_was_measured_on_and_begins_with_doubts(doubt, first):
    environment = {"cpu": "Abacus", "cores": 2, "versions": {"torch": "3", "numpy": "4"}}
    assert framed(["a", "b"], doubt, environment).splitlines() == [
        *first,
        "a",
        "b",
        "Abacus, 2 cores; torch 3, numpy 4",
    ]


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
