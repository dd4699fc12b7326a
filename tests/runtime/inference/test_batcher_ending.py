"""The end of a batcher: closed, forgotten, interrupted, forked, or the program simply ends."""

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
from batched import Gated, batcher_of
from waiting import PATIENCE, our_threads, wait_until

from runtime.errors import ClosedError
from runtime.inference.batcher import CLOSED

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("no_thread_left")]


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


def test_a_callback_that_exits_harms_nobody_else():
    with Gated(max_batch=1) as gated:
        futures = [gated.batcher.submit(item) for item in range(3)]
        futures[0].add_done_callback(lambda _: sys.exit())
        gated.gate.open()
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]
        assert gated.batcher.submit(4).result(PATIENCE) == 4


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
from runtime.inference.batcher import Batcher

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
from runtime.inference.batcher import Batcher

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
