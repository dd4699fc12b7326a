"""The ways to stop a stream early: closed, forgotten, interrupted, forked, or the program ends."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from itertools import count, islice

import pytest
from batched import Recorded, loaded_only, stream_of
from waiting import Gate, our_threads, wait_until

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("no_thread_left")]


def endless(closed):
    try:
        yield from count()
    finally:
        closed.append(True)


def test_closing_ends_the_threads_and_closes_the_source():
    closed = []
    sources = endless(closed)
    answers = stream_of(sources, load=lambda item: time.sleep(0.01) or item)
    assert list(islice(answers, 3)) == [(0, 0), (1, 1), (2, 4)]
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 0.5
    assert (our_threads(), closed) == ([], [True])


def test_forgetting_ends_the_threads_and_closes_the_source():
    closed = []
    for answer in stream_of(endless(closed)):
        if answer[0] == 10:
            break
    assert (our_threads(), closed) == ([], [True])


def test_closing_before_the_start_starts_nothing():
    closed = []
    stream_of(endless(closed)).close()
    assert (our_threads(), closed) == ([], [])


def test_file_that_is_read_from_stays_open(tmp_path):
    (tmp_path / "list.txt").write_text("1\n2\n3\n")
    with open(tmp_path / "list.txt") as lines:
        answers = stream_of(lines, load=int, read_ahead=1)
        assert next(answers) == (1, 1)
        answers.close()
        assert lines.readline() in ("2\n", "3\n")


def test_running_batch_is_waited_for_and_no_other_starts():
    recorded = Recorded()
    answers = stream_of(count(), run_many=lambda items: time.sleep(0.05) or recorded(items), batch_size=1)
    next(answers)
    answers.close()
    batches = len(recorded.batches)
    time.sleep(0.1)
    assert len(recorded.batches) == batches


def test_one_of_its_own_threads_may_close_it():
    def finish(loaded, answer):
        if loaded == 3:
            go.passing(loaded)
            answers.close()
        return loaded

    go = Gate()
    answers = stream_of(count(), finish=finish)
    assert next(answers) == 0
    go.open()
    wait_until(lambda: not our_threads())
    assert list(answers) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer signals")
@pytest.mark.parametrize("stage", ["load", "source", "consumer"])
def test_ctrl_c_ends_everything(interrupted, stage):
    def sources():
        for item in count():
            if stage == "source" and item:
                time.sleep(0.5)
            yield item

    slow = {"load": lambda item: time.sleep(0.2) or item} if stage == "load" else {}
    with interrupted():
        for _ in stream_of(sources(), **slow):
            if stage == "consumer":
                time.sleep(0.5)
    assert our_threads() == []


def test_sources_and_answers_are_not_kept():
    class Thing:
        pass

    def run_many(items):
        kept.extend(weakref.ref(item) for item in items)
        return items

    kept = []
    answers = stream_of([Thing() for _ in range(1)], run_many=run_many, finish=loaded_only)
    first = next(answers)
    assert kept[0]() is first
    del first
    list(answers)
    gc.collect()
    assert kept[0]() is None


PROGRAM = """
import os, sys, time
from itertools import count
from runtime.inference.stream import stream_in_order

def load(item):
    time.sleep(0.02)
    return item

answers = stream_in_order(count(), load=load, key=type, run_many=list, finish=max, batch_size=2, workers=2)
print(next(answers), next(answers), flush=True)
"""


def run_program(root, ending):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


def test_program_that_ends_in_the_middle_does_not_hang(root):
    assert run_program(root, "") == ["0 1"]


FORK = """
child = os.fork()
if not child:
    try:
        next(answers)
    except Exception as error:
        print(type(error).__name__, str(error).replace(str(os.getppid()), "A").replace(str(os.getpid()), "B"))
    sys.exit(0)
print("child", os.waitpid(child, 0)[1])
print(next(answers))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_after_a_fork_the_child_is_told_and_both_end(root):
    assert run_program(root, FORK) == [
        "0 1",
        "ClosedError stream: belongs to process A, this is process B, forked from it; start one in each process",
        "child 0",
        "2",
    ]
