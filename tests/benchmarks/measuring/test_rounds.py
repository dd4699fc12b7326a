import numpy as np
import pytest

from benchmarks.measuring import environment, rounds
from benchmarks.measuring.rounds import Timing, interleave


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so, in seconds."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(rounds.time, "perf_counter_ns", lambda: round(now[0] * 1e9))
    return now


def taking(clock, *seconds):
    """A call that takes so many seconds, the last of them for ever; `calls` counts."""

    def call():
        clock[0] += seconds[min(call.calls, len(seconds) - 1)]
        call.calls += 1

    call.calls = 0
    return call


def test_contestants_take_turns_and_every_timed_call_follows_one_that_does_not_count(monkeypatch):
    monkeypatch.setattr(rounds, "WARM_UP_SECONDS", 0.0)
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "aabb" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("seconds", "calls"), [(0.03, 3), (0.1, 1), (0.5, 1)])
def test_a_round_of_short_calls_is_their_mean_after_as_many(clock, monkeypatch, seconds, calls):
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.1)
    call = taking(clock, seconds)
    times = interleave({"a": call}, rounds=2, budget_s=0.001)
    assert call.calls == 1 + 2 * 2 * calls
    assert times["a"] == pytest.approx([1e3 * seconds] * 2)


def test_long_calls_follow_a_pause(clock, monkeypatch):
    pauses = []
    monkeypatch.setattr(rounds.time, "sleep", pauses.append)
    short, long = taking(clock, 2.0), taking(clock, 2.1)
    interleave({"short": short, "long": long}, rounds=5, budget_s=1.0)
    assert (short.calls, long.calls, pauses) == (1 + 10, 1 + 5, [rounds.PAUSE_SECONDS] * 5)


@pytest.mark.parametrize("seconds", [0.5, 2.1])
def test_what_it_takes_at_least(clock, monkeypatch, seconds):
    monkeypatch.setattr(rounds.time, "sleep", lambda pause: clock.__setitem__(0, clock[0] + pause))
    interleave({"a": taking(clock, seconds)}, rounds.MIN_ROUNDS, budget_s=0.1)
    assert clock[0] == pytest.approx(rounds.least_seconds(seconds))


def test_times_are_milliseconds(clock):
    times = interleave({"a": taking(clock, 0.005), "b": taking(clock, 0.25)}, rounds=4)
    assert times["a"] == pytest.approx([5.0] * 4)
    assert times["b"] == pytest.approx([250.0] * 4)


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [
        ((0.1,), 6),  # two windows of three calls
        ((0.01,), 50),  # two windows of 0.25 s
        ((0.2, 0.2, 0.2, 0.1), 9),  # the first window is slower
        ((0.103, 0.103, 0.103, 0.1), 9),
        ((0.101, 0.101, 0.101, 0.1), 6),  # less than 2 % slower
        ((4.0,), 3),  # 10 s are over
        ((60.0,), 1),
    ],
)
def test_warming_up_ends_when_two_windows_agree_or_the_time_is_over(clock, seconds, calls):
    call = taking(clock, *seconds)
    rounds.warm_up(call, limit=10.0)
    assert call.calls == calls


@pytest.mark.parametrize(("budget", "rounds"), [(None, 30), (1000.0, 30), (40.0, 17), (1.0, rounds.MIN_ROUNDS)])
def test_a_budget_means_fewer_rounds_but_at_least_five(clock, budget, rounds):
    times = interleave({"a": taking(clock, 1.0)}, 30, budget_s=budget)
    assert len(times["a"]) == rounds


def test_warming_up_takes_a_quarter_of_a_budget_at_most(clock):
    calls = {"a": taking(clock, 1.0), "b": taking(clock, 1.0)}
    interleave(calls, 1, budget_s=16.0)
    assert [call.calls for call in calls.values()] == [2 + 2] * 2


def test_a_budget_does_not_add_rounds(clock):
    assert len(interleave({"a": taking(clock, 1.0)}, 2, budget_s=1.0)["a"]) == 2


def test_a_trial_warms_nothing_up_makes_single_calls_and_is_told(clock, monkeypatch):
    calls = []
    monkeypatch.setenv(rounds.TRIAL, "1")
    times = interleave({"a": lambda: calls.append(taking(clock, 0.001)())}, rounds=5)
    assert times["a"].tolist() == pytest.approx([1.0] * 5)
    assert len(calls) == 1 + 5
    assert environment.disturbance(0.0, 0.0).startswith("UNET_BENCH_TRIAL is set")


def test_percentiles():
    summary = Timing.of(np.arange(101, dtype=np.float64))
    assert summary == Timing(median=50, p90=90, p99=99)
