"""Changes of shape: whose turn it is, and how many images run together."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest
from waiting import PATIENCE, our_threads, wait_until

from runtime.devices.device import Device
from runtime.devices.out_of_memory import FittingParts
from runtime.devices.session import BatchOutput
from runtime.devices.shape_changes import SteadyBatch, Turns
from runtime.support.concurrency import Worker


class Crowd:
    """Threads that wait for their turns, in the order of `come`, until the first one, which holds it, leaves."""

    def __init__(self):
        self.turns, self.order, self._threads = Turns(), [], []
        self._first = ExitStack()
        self._first.enter_context(self.turns.take("first"))

    def come(self, *keys, then=()):
        """Threads with these keys come one after another; the first brings others `then`, while it has its turn."""
        for key in keys:
            self._threads.append(threading.Thread(target=self._enter, args=(key, then)))
            before, then = len(self.turns._line), ()
            self._threads[-1].start()
            wait_until(lambda before=before: len(self.turns._line) == before + 1)

    def _enter(self, key, then):
        with self.turns.take(key):
            self.order.append(key)
            self.come(*then)

    def go(self):
        self._first.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        return "".join(self.order)


def test_those_who_wait_with_one_key_follow_one_another():
    crowd = Crowd()
    crowd.come(*"abacbaca")
    assert crowd.go() == "aaaabbcc"


def test_who_comes_during_a_turn_waits_for_the_next_one_so_nobody_waits_for_ever():
    crowd = Crowd()
    crowd.come(*"aba", then="aac")
    assert crowd.go() == "aabaac"


def test_a_block_that_fails_ends_its_turn_and_one_that_is_interrupted_while_it_waits_leaves_the_line(monkeypatch):
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.take("a"):
        raise ZeroDivisionError
    with monkeypatch.context() as patched:
        patched.setattr(turns._changed, "wait_for", lambda ready: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), turns.take("a"):
            pass
    with turns.take("b"):
        assert turns._line == []


def test_a_second_interrupt_leaves_nobody_inside(monkeypatch):
    turns = Turns()

    def interrupted_twice():
        with turns.take("a"):
            monkeypatch.setattr(turns, "_changed", Interrupting())
            raise KeyboardInterrupt

    changed = turns._changed
    with pytest.raises(KeyboardInterrupt, match=r"^the second$"):
        interrupted_twice()
    monkeypatch.setattr(turns, "_changed", changed)
    assert (turns._inside, turns._line) == (None, [])


class Interrupting:
    """A condition at whose lock Ctrl-C comes."""

    def __enter__(self):
        raise KeyboardInterrupt("the second")

    def __exit__(self, *error):
        pass


def test_nobody_joins_a_worker_that_waits_for_him(monkeypatch):
    """As the garbage collector would that finds a forgotten stream in the middle of a run."""
    turns, joined = Turns(), []

    def enter():
        with turns.take("b"):
            pass

    with turns.take("a"):
        worker = Worker("unet-test", enter, stop=lambda: None)
        wait_until(lambda: turns._line)
        with monkeypatch.context() as patched:
            patched.setattr(worker._ended, "wait", lambda: joined.append("waits for ever"))
            patched.setattr(worker._thread, "join", lambda: None)
            worker.join()
    assert joined == []
    worker.join()
    assert our_threads() == []


def steps(batch, *runs):
    """The number of images that ran for each (images, height, width, seconds of a run of this shape)."""
    ran, last = [], None
    for *shape, seconds in runs:
        images = batch.images(tuple(shape))
        whole = (images, *shape[1:])
        batch.ran(whole, seconds + (10 if whole != last else 0))  # plans take ten seconds
        batch.wasted(whole, shape[0])
        ran.append(images)
        last = whole
    return ran


def test_a_smaller_batch_is_padded_to_the_one_before():
    assert steps(SteadyBatch(8), (5, 8, 8, 1), (4, 8, 8, 1), (5, 8, 8, 1), (4, 8, 8, 1)) == [5, 5, 5, 5]
    assert steps(SteadyBatch(8), (4, 8, 8, 1), (5, 8, 8, 1), (4, 8, 8, 1)) == [4, 5, 5]


def test_another_size_and_more_than_the_most_are_taken_as_they_are():
    assert steps(SteadyBatch(8), (8, 8, 8, 1), (2, 8, 4, 1), (1, 8, 8, 1)) == [8, 2, 1]
    assert steps(SteadyBatch(8), (50, 8, 8, 1), (2, 8, 8, 1)) == [50, 2]
    batch = SteadyBatch(8)
    assert steps(batch, (8, 8, 8, 1)) == [8]
    batch.forget()
    assert steps(batch, (2, 8, 8, 1)) == [2]


def test_padding_ends_when_it_has_taken_longer_than_new_plans_would():
    ones = [(1, 8, 8, 4)] * 6
    assert steps(SteadyBatch(8), (8, 8, 8, 4), *ones) == [8, 8, 8, 8, 1, 1, 1]  # 3.5 seconds are wasted each time
    # a full batch in between would have needed new plans again
    assert steps(SteadyBatch(8), (8, 8, 8, 4), *ones[:3], (8, 8, 8, 4), *ones[:3]) == [8] * 8
    assert steps(SteadyBatch(8), (8, 8, 8, 0.1), *[(7, 8, 8, 0.1)] * 500) == [8] * 501


def test_parts_as_large_as_those_before_end_when_they_have_taken_longer_than_new_plans_would():
    batch, parts = SteadyBatch(8), FittingParts(Device(kind="cuda"), 8)
    ran = []

    def run_part(part):
        batch.ran(part.shape[:3], 4 + (10 if ran[-1:] != [len(part)] else 0))  # plans take ten seconds
        ran.append(len(part))
        return BatchOutput(np.zeros((len(part), 1, 8, 8), np.float32))

    for count in (8, 8, 9, 9, 9, 9, 9):
        images = np.zeros((count, 8, 8, 3), np.uint8)
        parts.run(images, run_part, batch.before((count, 8, 8)))
    assert ran == [8] * 10 + [5] * 2  # 8 + 8 in place of 5 + 5 wastes three seconds each time
