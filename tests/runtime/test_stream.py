"""stream: order, batches, bounds, overlap, errors of items and of the source, and the ways to stop early."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from itertools import count, islice

import pytest
from waiting import Gate, our_threads, wait_until

from runtime.errors import ConfigError
from runtime.stream import stream


@pytest.fixture(autouse=True)
def no_thread_left():
    before = threading.active_count()
    yield
    assert our_threads() == []
    assert threading.active_count() <= before


def same(value):
    return value


def pair(loaded, answer):
    return (loaded, answer)


def squares(items):
    return [item * item for item in items]


def run(sources, *, load=same, key=lambda item: 0, run_many=squares, finish=pair, batch_size=4, workers=2, **more):
    return stream(
        sources, load=load, key=key, run_many=run_many, finish=finish, batch_size=batch_size, workers=workers, **more
    )


class Recorded:
    """A `run_many` that squares and remembers its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, items):
        self.batches.append(items)
        return squares(items)


def sometimes_slow(function, seed):
    chance = random.Random(seed)

    def slow(*arguments):
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.004)
        return function(*arguments)

    return slow


# Order and batches


@pytest.mark.parametrize(("workers", "batch_size", "read_ahead"), [(1, 1, 1), (1, 4, 3), (3, 2, None), (8, 5, 40)])
def test_answers_are_those_of_a_loop_in_its_order(workers, batch_size, read_ahead):
    answers = run(
        range(300),
        load=sometimes_slow(lambda item: item + 1, 1),
        key=lambda item: item % 3,
        run_many=sometimes_slow(squares, 2),
        finish=sometimes_slow(pair, 3),
        workers=workers,
        batch_size=batch_size,
        read_ahead=read_ahead,
    )
    assert list(answers) == [(item + 1, (item + 1) ** 2) for item in range(300)]


def test_nothing_in_gives_nothing():
    assert list(run([])) == []


def test_batches_are_full_where_items_load_faster_than_they_run():
    recorded = Recorded()
    assert len(list(run(range(40), run_many=recorded, batch_size=4))) == 40
    assert [len(batch) for batch in recorded.batches].count(4) >= 8
    assert max(map(len, recorded.batches)) == 4


def test_batches_have_one_key():
    recorded = Recorded()
    sources = [random.Random(seed).choice([1, 22, 333]) for seed in range(100)]
    assert list(run(sources, key=lambda item: len(str(item)), run_many=recorded)) == [(x, x * x) for x in sources]
    assert all(len(set(batch)) == 1 for batch in recorded.batches)
    assert max(map(len, recorded.batches)) > 1


def test_slow_source_is_not_waited_for_to_fill_a_batch():
    def slowly():
        for item in range(3):
            yield item
            wait_until(lambda item=item: sum(map(len, recorded.batches)) == item + 1)

    recorded = Recorded()
    assert list(run(slowly(), run_many=recorded)) == [(0, 0), (1, 1), (2, 4)]
    assert recorded.batches == [[0], [1], [2]]


def test_slow_source_does_not_hold_back_what_is_ready():
    def slowly():
        for item in count():
            reads.append(item)
            yield item
            time.sleep(0.02)

    reads = []
    answers = run(slowly(), read_ahead=50)
    assert next(answers) == (0, 0)
    assert len(reads) < 25
    answers.close()


def test_finishing_comes_before_further_loading():
    def load(item):
        time.sleep(0.005)
        loads.append(item)
        return item

    loads, loads_then = [], []
    answers = run(
        range(20), load=load, finish=lambda *both: loads_then.append(len(loads)), batch_size=1, workers=1, read_ahead=20
    )
    list(answers)
    assert loads_then[0] < 15


# Bounds


@pytest.mark.parametrize(("read_ahead", "bound"), [(1, 1), (5, 5), (None, 10)])
def test_no_more_is_read_ahead_than_said(read_ahead, bound):
    def sources():
        for item in count():
            reads.append(item)
            yield item

    reads, taken = [], 0
    answers = run(sources(), batch_size=4, read_ahead=read_ahead)
    for taken, answer in enumerate(islice(answers, 60), 1):
        assert answer == (taken - 1, (taken - 1) ** 2)
        time.sleep(0.001)
        assert len(reads) <= taken + bound
    answers.close()
    assert bound < len(reads) <= 60 + bound


def test_what_is_in_memory_at_once_is_bounded_when_the_consumer_is_slow():
    class Thing:
        alive = 0
        most = 0

        def __init__(self, *_):
            Thing.alive += 1
            Thing.most = max(Thing.most, Thing.alive)

        def __del__(self):
            Thing.alive -= 1

    answers = run(range(100), load=Thing, run_many=lambda items: [0] * len(items), finish=Thing, read_ahead=6)
    for _ in answers:
        time.sleep(0.002)
    assert 2 < Thing.most <= 2 * 7  # what was loaded and what was made of it, for each read ahead and the one in hand
    gc.collect()
    assert Thing.alive == 1  # the loop's own last one


def test_work_goes_on_while_the_consumer_is_busy():
    answers = run(range(20), finish=lambda loaded, answer: finished.append(loaded), batch_size=2, read_ahead=6)
    finished = []
    next(answers)
    wait_until(lambda: len(finished) >= 6)
    answers.close()


def test_loading_running_and_finishing_overlap():
    loads, runs, finishes = Gate(), Gate(), Gate()

    def load(item):
        return item if item < 2 else loads.passing(item)

    def run_many(items):
        return items if items == [0] else runs.passing(items)

    def watch():
        wait_until(lambda: (loads.arrived, runs.arrived, finishes.arrived) == ([2], [[1]], [(0, 0)]))
        [gate.open() for gate in (loads, runs, finishes)]

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = run(
        range(3), load=load, run_many=run_many, finish=lambda *both: finishes.passing(both), batch_size=1, workers=2
    )
    assert list(answers) == [(0, 0), (1, 1), (2, 2)]
    watcher.join()


def test_threads_start_with_the_first_answer_that_is_asked_for():
    answers = run(range(5), workers=3)
    assert our_threads() == []
    next(answers)
    assert len(our_threads()) == 4
    assert len(list(answers)) == 4
    assert our_threads() == []


# Errors


def fail_on(bad):
    def function(item, *_):
        if item == bad:
            raise ValueError(f"bad {item}")
        return item

    return function


@pytest.mark.parametrize("stage", ["load", "key", "run_many", "finish"])
def test_error_of_an_item_is_raised_in_its_turn(stage):
    failing = fail_on(5)
    function = (lambda items: [failing(item) for item in items]) if stage == "run_many" else failing
    settings = {"run_many": list, "finish": same2, "key": lambda item: 0} | {stage: function}
    answers = run(range(20), **settings)
    given = []
    with pytest.raises(ValueError) as caught:
        given.extend(answers)
    assert str(caught.value) == "bad 5"
    assert given == [0, 1, 2, 3, 4]
    assert list(answers) == []


def same2(loaded, _answer):
    return loaded


@pytest.mark.parametrize("stage", ["load", "run_many", "finish"])
def test_error_of_an_item_is_given_in_its_place(stage):
    failing = fail_on(5)
    function = (lambda items: [failing(item) for item in items]) if stage == "run_many" else failing
    answers = list(run(range(20), errors="yield", **({"run_many": list, "finish": same2} | {stage: function})))
    assert [type(answer) for answer in answers].index(ValueError) == 5
    assert str(answers[5]) == "bad 5"
    assert answers[:5] + answers[6:] == [item for item in range(20) if item != 5]


def test_exit_in_a_thread_is_raised_even_where_errors_are_given():
    with pytest.raises(SystemExit):
        list(run(range(3), load=lambda item: sys.exit(item), errors="yield"))


@pytest.mark.parametrize("errors", ["raise", "yield"])
def test_what_was_read_is_answered_before_the_source_s_error_is_raised(errors):
    def sources():
        yield from range(7)
        raise OSError("the disk is gone")

    given = []
    with pytest.raises(OSError, match="the disk is gone"):
        given.extend(run(sources(), errors=errors))
    assert given == [(item, item * item) for item in range(7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0, expected an integer from 1"),
        ({"workers": 1.0}, "workers: found 1.0, expected an integer from 1"),
        ({"read_ahead": 0}, "read_ahead: found 0, expected an integer from 1"),
        ({"errors": "skip"}, "errors: found 'skip', expected 'raise' or 'yield'"),
    ],
)
def test_settings_out_of_bounds_are_refused_at_the_call(settings, message):
    with pytest.raises(ConfigError) as caught:
        run([1], **settings)
    assert str(caught.value) == message


# Stopping early


def endless(closed):
    try:
        yield from count()
    finally:
        closed.append(True)


def test_closing_ends_the_threads_and_closes_the_source():
    closed = []
    sources = endless(closed)
    answers = run(sources, load=lambda item: time.sleep(0.01) or item)
    assert list(islice(answers, 3)) == [(0, 0), (1, 1), (2, 4)]
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 0.5
    assert (our_threads(), closed) == ([], [True])


def test_forgetting_ends_the_threads_and_closes_the_source():
    closed = []
    for answer in run(endless(closed)):
        if answer[0] == 10:
            break
    assert (our_threads(), closed) == ([], [True])


def test_closing_before_the_start_starts_nothing():
    closed = []
    run(endless(closed)).close()
    assert (our_threads(), closed) == ([], [])


def test_file_that_is_read_from_stays_open(tmp_path):
    (tmp_path / "list.txt").write_text("1\n2\n3\n")
    with open(tmp_path / "list.txt") as lines:
        answers = run(lines, load=int, read_ahead=1)
        assert next(answers) == (1, 1)
        answers.close()
        assert lines.readline() in ("2\n", "3\n")


def test_running_batch_is_waited_for_and_no_other_starts():
    recorded = Recorded()
    answers = run(count(), run_many=lambda items: time.sleep(0.05) or recorded(items), batch_size=1)
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
    answers = run(count(), finish=finish)
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
        for _ in run(sources(), **slow):
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
    answers = run([Thing() for _ in range(1)], run_many=run_many, finish=same2)
    first = next(answers)
    assert kept[0]() is first
    del first
    list(answers)
    gc.collect()
    assert kept[0]() is None


PROGRAM = """
import os, sys, time
from itertools import count
from runtime.stream import stream

def load(item):
    time.sleep(0.02)
    return item

answers = stream(count(), load=load, key=type, run_many=list, finish=max, batch_size=2, workers=2)
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
