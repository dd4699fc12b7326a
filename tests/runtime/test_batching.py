"""Batcher: what is in a batch, when it goes off, who waits, and what an error, a cancellation or an end does."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest
from waiting import PATIENCE, Gate, our_threads, wait_until

from runtime.batching import Batcher
from runtime.errors import BusyError, ClosedError, ConfigError

FULL = (
    "batcher: 2 items wait already (max_waiting); try again later, or in a coroutine await the answer"  # as it is told
)
CLOSED = "batcher: is closed; make another one"


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert our_threads() == []


def squares(items):
    return [item * item for item in items]


def batcher_of(run_many=squares, *, key=lambda item: 0, max_batch=4, max_delay_ms=0, max_waiting=64):
    return Batcher(run_many, key=key, max_batch=max_batch, max_delay_ms=max_delay_ms, max_waiting=max_waiting)


class Gated:
    """A batcher whose first batch, of the item "first", runs until `gate.open()`; `batches` are those after it."""

    def __init__(self, run_many=list, **settings):
        self.gate = Gate()
        self.batches = []
        self.run_many = run_many
        self.batcher = batcher_of(self.run, **settings)
        self.first = self.batcher.submit("first")
        wait_until(lambda: self.gate.arrived)

    def run(self, items):
        if items == ["first"]:
            return [self.gate.passing("first")]
        self.batches.append(items)
        return self.run_many(items)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.gate.open()
        self.batcher.close()


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
        ("max_delay_ms", -1, "a number of milliseconds from 0"),
        ("max_delay_ms", float("nan"), "a number of milliseconds from 0"),
        ("max_delay_ms", "2", "a number of milliseconds from 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(setting, value, expected):
    with pytest.raises(ConfigError) as caught:
        batcher_of(**{setting: value})
    assert str(caught.value) == f"{setting}: found {value!r}, expected {expected}"


# Errors


def reciprocals(items):
    return [1 / item for item in items]


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


# Ending


def test_close_finishes_what_waits():
    gated = Gated()
    futures = [gated.batcher.submit(item) for item in range(6)]
    threading.Timer(0.05, gated.gate.open).start()
    gated.batcher.close()
    assert our_threads() == []
    assert [future.result(0) for future in futures] == list(range(6))


def test_close_does_not_wait_for_the_delay():
    with batcher_of(max_delay_ms=1e6) as batcher:
        future = batcher.submit(3)
    assert future.result(0) == 9


def test_close_with_cancel_lets_the_running_batch_end_and_cancels_the_rest():
    gated = Gated()
    futures = [gated.batcher.submit(item) for item in range(6)]
    threading.Timer(0.05, gated.gate.open).start()
    gated.batcher.close(cancel=True)
    assert gated.first.result(0) == "first"
    assert all(future.cancelled() for future in futures)
    assert len(wait(futures, 0).done) == 6
    assert gated.batches == []


def test_with_block_left_by_an_error_cancels_what_waits():
    with contextlib.suppress(KeyError), batcher_of(max_delay_ms=1e6) as batcher:
        future = batcher.submit(1)
        raise KeyError
    with pytest.raises(CancelledError):
        future.result(0)


def test_closed_batcher_takes_nothing():
    batcher = batcher_of()
    batcher.close()
    batcher.close()
    for call in (lambda: batcher.submit(1), lambda: asyncio.run(batcher.run_async(1))):
        with pytest.raises(ClosedError) as caught:
            call()
        assert str(caught.value) == CLOSED


def test_close_wakes_those_who_wait_for_a_place():
    with Gated(max_waiting=1) as gated, ThreadPoolExecutor(2) as pool:
        waiting = gated.batcher.submit(1)
        blocked = pool.submit(gated.batcher.submit, 2)
        wait_until(lambda: gated.batcher._places._line)
        closing = pool.submit(gated.batcher.close)
        assert str(blocked.exception(PATIENCE)) == CLOSED
        gated.gate.open()
        closing.result(PATIENCE)
        assert waiting.result(0) == 1


def test_close_in_a_done_callback_ends_the_thread():
    batcher = batcher_of()
    batcher.submit(1).add_done_callback(lambda _: batcher.close())
    wait_until(lambda: not our_threads())


def test_forgotten_batcher_finishes_and_ends_its_thread():
    with Gated() as gated:
        gated.batcher.submit(2).add_done_callback(lambda _: None)
        gated.gate.open()
        gone = weakref.ref(gated.batcher)
        gated.first.result(PATIENCE)
        gated.batcher = batcher_of()
    gc.collect()
    wait_until(lambda: not our_threads())
    assert gone() is None
    assert gated.batches == [[2]]


def test_owner_that_is_run_by_its_own_batcher_can_be_forgotten():
    class Owner:
        def __init__(self):
            self.batcher = batcher_of(self.run)

        def run(self, items):
            return items

    owner = Owner()
    owner.batcher.submit(1).result(PATIENCE)
    gone = weakref.ref(owner)
    del owner
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
    wait_until(lambda: not our_threads())


def test_items_and_answers_are_not_kept():
    class Thing:
        pass

    with batcher_of(lambda items: [Thing() for _ in items]) as batcher:
        thing = Thing()
        future = batcher.submit(thing)
        kept = [weakref.ref(thing), weakref.ref(future.result(PATIENCE))]
        del thing, future
        wait_until(lambda: [reference() for reference in kept] == [None, None])


def test_idle_batcher_uses_no_time():
    with batcher_of() as batcher:
        batcher.submit(1).result(PATIENCE)
        start = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - start < 0.1


PROGRAM = """
import signal, sys, time
from runtime.batching import Batcher

def run(items):
    time.sleep(0.2)
    print("ran", items, flush=True)
    return items

batcher = Batcher(run, key=type, max_batch=1, max_delay_ms=0, max_waiting=100)
futures = [batcher.submit(item) for item in range(50)]
time.sleep(0.1)
"""


def run_program(root, ending):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM + ending], cwd=root, capture_output=True, text=True)
    assert time.monotonic() - start < 5
    return done


def test_program_that_ends_without_close_does_not_hang(root):
    done = run_program(root, "")
    assert (done.stdout, done.stderr, done.returncode) == ("ran [0]\n", "", 0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer signals")
def test_program_that_is_interrupted_does_not_hang(root):
    ending = "signal.signal(signal.SIGALRM, signal.default_int_handler); signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
    done = run_program(root, ending + "with batcher: futures[-1].result()")
    assert done.stdout == "ran [0]\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert "Exception ignored" not in done.stderr


FORK = """
import os, sys
from runtime.batching import Batcher

batcher = Batcher(list, key=type, max_batch=1, max_delay_ms=0, max_waiting=1)
print(batcher.submit(1).result(), flush=True)
child = os.fork()
if not child:
    try:
        batcher.submit(2)
    except Exception as error:
        print(type(error).__name__, str(error).replace(str(os.getppid()), "A").replace(str(os.getpid()), "B"))
    batcher.close()
    sys.exit(0)
print("child", os.waitpid(child, 0)[1])
print(batcher.submit(3).result())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_after_a_fork_the_child_is_told_and_both_end(root):
    done = subprocess.run([sys.executable, "-c", FORK], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "1",
        "ClosedError batcher: belongs to process A, this is process B, forked from it; make one in each process",
        "child 0",
        "3",
    ]


# asyncio


def test_coroutines_are_batched_and_get_their_own_answers():
    async def main():
        return await asyncio.gather(*[batcher.run_async(item) for item in range(50)])

    with batcher_of(max_waiting=3) as batcher:
        assert asyncio.run(main()) == [item * item for item in range(50)]
        assert asyncio.run(main()) == [item * item for item in range(50)]  # in another event loop


def test_coroutine_gets_the_error_of_its_own_item():
    async def main():
        return await asyncio.gather(*[batcher.run_async(item) for item in (1, 0, 2)], return_exceptions=True)

    with batcher_of(reciprocals) as batcher:
        one, error, half = asyncio.run(main())
    assert (one, half) == (1, 0.5)
    assert isinstance(error, ZeroDivisionError)


def test_waiting_for_a_place_does_not_hold_up_the_event_loop():
    async def main():
        tasks = [asyncio.create_task(gated.batcher.run_async(item)) for item in range(6)]
        await asyncio.sleep(0.02)
        assert len(gated.batcher._places._line) == 4
        with pytest.raises(BusyError) as caught:
            gated.batcher.submit(7)  # would hold it up
        assert str(caught.value) == FULL
        gated.gate.open()
        return await asyncio.gather(*tasks)

    with Gated(max_waiting=2, max_batch=2) as gated:
        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == list(range(6))
    assert gated.batches[0] == [0, 1]
    assert sorted(item for batch in gated.batches for item in batch) == list(range(6))


@pytest.mark.parametrize("cancelled", [1, 3], ids=["waits for its batch", "waits for a place"])
def test_cancelling_a_task_takes_its_item_back(cancelled):
    async def main():
        tasks = [asyncio.create_task(gated.batcher.run_async(item)) for item in range(5)]
        await asyncio.sleep(0.02)
        tasks[cancelled].cancel()
        await asyncio.sleep(0.02)
        gated.gate.open()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Gated(max_waiting=2, max_batch=1) as gated:
        answers = asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert gated.batcher.submit(9).result(PATIENCE) == 9
    assert [index for index, answer in enumerate(answers) if isinstance(answer, asyncio.CancelledError)] == [cancelled]
    assert gated.batches == [[item] for item in range(5) if item != cancelled] + [[9]]


def test_cancelling_a_task_whose_place_was_given_meanwhile_gives_it_back():
    async def main():
        task = asyncio.create_task(gated.batcher.run_async("late"))
        await asyncio.sleep(0.02)
        gated.batcher._places.release()  # given, but the task has not been woken
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gated.batcher._places.acquire(timeout=0)  # the place that was released above

    with Gated(max_waiting=1) as gated:
        gated.batcher.submit(1)
        asyncio.run(main())
    assert gated.batches == [[1]]


def test_close_reaches_coroutines_that_wait():
    async def main():
        tasks = [asyncio.create_task(gated.batcher.run_async(item)) for item in range(2)]
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(asyncio.to_thread(gated.batcher.close))
        await asyncio.sleep(0.02)
        gated.gate.open()
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Gated(max_waiting=1) as gated:
        answer, error = asyncio.run(main())
    assert answer == 0
    assert str(error) == CLOSED


def test_asyncio_is_not_imported_by_those_who_do_without(root):
    program = "import runtime.batching, runtime.stream, sys; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
