"""Batcher: what is in a batch, when it goes off, who waits, and what an error or a cancellation does."""

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from batched import FULL, Gated, batcher_of, reciprocals
from waiting import PATIENCE, wait_until

from runtime.errors import BusyError, ConfigError

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("no_thread_left")]


# Batches


def test_each_item_gets_its_own_answer_from_many_threads():
    with batcher_of(max_waiting=3) as batcher, ThreadPoolExecutor(16) as pool:
        futures = list(pool.map(batcher.submit, range(200)))
        assert [future.result(PATIENCE) for future in futures] == [item * item for item in range(200)]


def test_items_that_came_during_a_batch_make_the_next_ones():
    with Gated(max_batch=4) as gated:
        futures = [gated.batcher.submit(item) for item in range(10)]
        gated.gate.open()
        assert [future.result(PATIENCE) for future in futures] == list(range(10))
    assert gated.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_full_batch_goes_off_before_its_delay():
    with batcher_of(max_batch=3, max_delay_ms=1e6) as batcher:
        futures = [batcher.submit(item) for item in (1, 2, 3)]
        assert [future.result(PATIENCE) for future in futures] == [1, 4, 9]


def test_batch_larger_than_what_may_wait_goes_off_when_all_places_are_taken():
    with batcher_of(max_batch=8, max_delay_ms=1e6, max_waiting=2) as batcher:
        futures = [batcher.submit(item, timeout=PATIENCE) for item in range(4)]
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 4, 9]


def test_batch_waits_for_its_delay_and_no_longer():
    batches = []
    with batcher_of(lambda items: batches.append(items) or items, max_delay_ms=150) as batcher:
        start = time.monotonic()
        first = batcher.submit(1)
        time.sleep(0.05)
        second = batcher.submit(2)
        wait([first, second], PATIENCE)
        assert 0.15 <= time.monotonic() - start < 1
    assert batches == [[1, 2]]


def test_batches_have_one_key_and_the_oldest_goes_first():
    with Gated(key=len, max_batch=2) as gated:
        futures = [gated.batcher.submit(item) for item in ("odd", "ab", "cd", "ef", "gh", "i")]
        gated.gate.open()
        wait(futures, PATIENCE)
    assert gated.batches == [["odd"], ["ab", "cd"], ["ef", "gh"], ["i"]]


def test_a_key_keeps_its_turn_for_all_that_came_before_it_and_no_longer():
    def run(items):
        if len(gated.batches) == 1:
            later.extend(map(gated.batcher.submit, ("a8", "a9")))  # during the turn of "a": one fills its last batch
        return items

    later = []
    with Gated(run, key=lambda item: item[0], max_batch=2) as gated:
        futures = [gated.batcher.submit(item) for item in ("a1", "b1", "a2", "b2", "a3", "b3")]
        gated.gate.open()
        wait(futures, PATIENCE)
        wait(later, PATIENCE)
    assert gated.batches == [["a1", "a2"], ["a3", "a8"], ["b1", "b2"], ["b3"], ["a9"]]


def test_odd_key_is_not_starved_by_full_batches():
    turns = []

    def run(items):
        turns.append(items[0])
        if items[0] != "odd" and "odd" not in turns and len(turns) < 1000:
            batcher.submit("a"), batcher.submit("a")  # there is always a full batch of another key
        return items

    with batcher_of(run, key=str, max_batch=2, max_delay_ms=20) as batcher:
        batcher.submit("a"), batcher.submit("a")
        assert batcher.submit("odd").result(PATIENCE) == "odd"
    assert 1 < turns.index("odd") < 999


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("max_batch", 0, "an integer from 1"),
        ("max_batch", True, "an integer from 1"),
        ("max_waiting", 1.5, "an integer from 1"),
        ("max_delay_ms", -1, "a number of milliseconds from 0 to 3600000"),
        ("max_delay_ms", float("nan"), "a number of milliseconds from 0 to 3600000"),
        ("max_delay_ms", 1e13, "a number of milliseconds from 0 to 3600000"),
        ("max_delay_ms", "2", "a number of milliseconds from 0 to 3600000"),
    ],
)
def test_settings_out_of_bounds_are_refused(setting, value, expected):
    with pytest.raises(ConfigError) as caught:
        batcher_of(**{setting: value})
    assert str(caught.value) == f"{setting}: found {value!r}, expected {expected}"


# Errors


def test_bad_item_does_not_harm_its_neighbours():
    with Gated(reciprocals) as gated:
        futures = [gated.batcher.submit(item) for item in (1, 0, 4)]
        gated.gate.open()
        assert [futures[0].result(PATIENCE), futures[2].result(PATIENCE)] == [1, 0.25]
        error = futures[1].exception(PATIENCE)
        assert isinstance(error, ZeroDivisionError) and error.__context__ is None
        assert gated.batcher.submit(2).result(PATIENCE) == 0.5
    assert gated.batches == [[1, 0, 4], [1], [0], [4], [2]]


def test_run_many_that_gives_too_few_answers_is_an_error_and_not_a_mix_up():
    with batcher_of(lambda items: []) as batcher, pytest.raises(AssertionError, match="0 answers for 1 items"):
        batcher.submit(1).result(PATIENCE)


def test_run_many_that_exits_ends_neither_thread_nor_program():
    with batcher_of(lambda items: sys.exit(3) if items == [1] else items) as batcher:
        assert isinstance(batcher.submit(1).exception(PATIENCE), SystemExit)
        assert batcher.submit(2).result(PATIENCE) == 2


def test_key_that_fails_is_raised_at_once_and_takes_no_place():
    with batcher_of(key=lambda item: [item], max_waiting=1) as batcher:
        for _ in range(3):
            with pytest.raises(TypeError, match="unhashable"):
                batcher.submit(1, timeout=0)


# Cancelling


def test_cancelled_item_is_skipped_and_a_running_one_is_not_cancelled():
    with Gated(max_batch=2) as gated:
        futures = [gated.batcher.submit(item) for item in range(4)]
        assert futures[1].cancel()
        assert not gated.first.cancel()
        gated.gate.open()
        assert [futures[index].result(PATIENCE) for index in (0, 2, 3)] == [0, 2, 3]
    assert gated.batches == [[0], [2, 3]]


def test_places_of_cancelled_items_come_back():
    with Gated(max_waiting=2) as gated:
        assert all(gated.batcher.submit(item).cancel() for item in range(2))
        gated.gate.open()
        assert gated.batcher.submit(3, timeout=PATIENCE).result(PATIENCE) == 3
    assert gated.batches == [[3]]


# Back-pressure


def test_submit_waits_for_a_place():
    with Gated(max_waiting=2, max_batch=1) as gated, ThreadPoolExecutor(3) as pool:
        [gated.batcher.submit(item) for item in range(2)]
        blocked = [pool.submit(gated.batcher.submit, item) for item in range(2, 5)]
        time.sleep(0.05)
        assert not any(future.done() for future in blocked)
        gated.gate.open()
        assert [future.result(PATIENCE).result(PATIENCE) for future in blocked] == [2, 3, 4]
    assert sorted(gated.batches) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_submit_with_a_timeout_says_that_it_is_busy(timeout):
    with Gated(max_waiting=2) as gated:
        [gated.batcher.submit(item) for item in range(2)]
        start = time.monotonic()
        with pytest.raises(BusyError) as caught:
            gated.batcher.submit(2, timeout=timeout)
        assert str(caught.value) == FULL
        assert timeout <= time.monotonic() - start < 1
    assert gated.batches == [[0, 1]]


def test_done_callback_that_submits_does_not_wait_for_itself():
    outcome = []

    def submit_again(_):
        try:
            gated.batcher.submit("again")
        except BusyError as error:
            outcome.append(str(error))

    with Gated(max_waiting=2) as gated:
        gated.first.add_done_callback(submit_again)
        [gated.batcher.submit(item) for item in range(2)]
        gated.gate.open()
        wait_until(lambda: outcome == [FULL])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer signals")
def test_ctrl_c_ends_the_wait_for_a_place_and_for_an_answer(interrupted):
    with Gated(max_waiting=1) as gated:
        waiting = gated.batcher.submit(1)
        with interrupted():
            gated.batcher.submit(2)
        with interrupted():
            waiting.result()
        gated.gate.open()
        assert gated.batcher.submit(3).result(PATIENCE) == 3  # the place that was waited for is not lost
    assert gated.batches == [[1], [3]]
