"""stream: order, batches, bounds, overlap, errors of items and of the source."""

import gc
import random
import sys
import threading
import time
from itertools import count, groupby, islice

import pytest
from batched import Recorded, loaded_only, pair, squares, stream_of
from waiting import Gate, our_threads, wait_until

from runtime.errors import ConfigError

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("no_thread_left")]


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
    answers = stream_of(
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
    assert list(stream_of([])) == []


def test_batches_are_full_where_items_load_faster_than_they_run():
    recorded = Recorded()
    assert len(list(stream_of(range(40), run_many=recorded, batch_size=4))) == 40
    assert [len(batch) for batch in recorded.batches].count(4) >= 8
    assert max(map(len, recorded.batches)) == 4


def test_batches_have_one_key():
    recorded = Recorded()
    sources = [random.Random(seed).choice([1, 22, 333]) for seed in range(100)]
    assert list(stream_of(sources, key=lambda item: len(str(item)), run_many=recorded)) == [(x, x * x) for x in sources]
    assert all(len(set(batch)) == 1 for batch in recorded.batches)
    assert max(map(len, recorded.batches)) > 1


def test_items_of_one_key_are_run_before_those_of_the_next():
    def run(items):
        wait_until(lambda: len(loaded) == 12)
        return recorded(items)

    recorded, loaded = Recorded(), []
    sources = [1, 20] * 6
    answers = stream_of(
        sources,
        load=lambda item: loaded.append(item) or item,
        key=lambda item: len(str(item)),
        run_many=run,
        read_ahead=12,
    )
    assert list(answers) == [(item, item * item) for item in sources]
    assert [key for key, _ in groupby(batch[0] for batch in recorded.batches)] == [1, 20]


def test_slow_source_is_not_waited_for_to_fill_a_batch():
    def slowly():
        for item in range(3):
            yield item
            wait_until(lambda item=item: sum(map(len, recorded.batches)) == item + 1)

    recorded = Recorded()
    assert list(stream_of(slowly(), run_many=recorded)) == [(0, 0), (1, 1), (2, 4)]
    assert recorded.batches == [[0], [1], [2]]


def test_slow_source_does_not_hold_back_what_is_ready():
    def slowly():
        for item in count():
            reads.append(item)
            yield item
            time.sleep(0.02)

    reads = []
    answers = stream_of(slowly(), read_ahead=50)
    assert next(answers) == (0, 0)
    assert len(reads) < 25
    answers.close()


def test_finishing_comes_before_further_loading():
    def load(item):
        time.sleep(0.005)
        loads.append(item)
        return item

    loads, loads_then = [], []
    answers = stream_of(
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
    answers = stream_of(sources(), batch_size=4, read_ahead=read_ahead)
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

    answers = stream_of(range(100), load=Thing, run_many=lambda items: [0] * len(items), finish=Thing, read_ahead=6)
    for _ in answers:
        time.sleep(0.002)
    assert 2 < Thing.most <= 2 * 7  # what was loaded and what was made of it, for each read ahead and the one in hand
    gc.collect()
    assert Thing.alive == 1  # the loop's own last one


def test_work_goes_on_while_the_consumer_is_busy():
    answers = stream_of(range(20), finish=lambda loaded, answer: finished.append(loaded), batch_size=2, read_ahead=6)
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
    answers = stream_of(
        range(3), load=load, run_many=run_many, finish=lambda *both: finishes.passing(both), batch_size=1, workers=2
    )
    assert list(answers) == [(0, 0), (1, 1), (2, 2)]
    watcher.join()


def test_threads_start_with_the_first_answer_that_is_asked_for():
    answers = stream_of(range(5), workers=3)
    assert our_threads() == []
    next(answers)
    assert len(our_threads()) == 4
    assert len(list(answers)) == 4
    assert our_threads() == []


# Errors


def failing(stage):
    """The settings of a stream whose stage of this name fails on the item 5."""

    def fail(item, *_):
        if item == 5:
            raise ValueError(f"bad {item}")
        return item

    function = (lambda items: [fail(item) for item in items]) if stage == "run_many" else fail
    return {"run_many": list, "finish": loaded_only} | {stage: function}


@pytest.mark.parametrize("stage", ["load", "key", "run_many", "finish"])
def test_error_of_an_item_is_raised_in_its_turn(stage):
    answers = stream_of(range(20), **failing(stage))
    given = []
    with pytest.raises(ValueError) as caught:
        given.extend(answers)
    assert str(caught.value) == "bad 5"
    assert given == [0, 1, 2, 3, 4]
    assert list(answers) == []


@pytest.mark.parametrize("stage", ["load", "run_many", "finish"])
def test_error_of_an_item_is_given_in_its_place(stage):
    answers = list(stream_of(range(20), errors="yield", **failing(stage)))
    assert [type(answer) for answer in answers].index(ValueError) == 5
    assert str(answers[5]) == "bad 5"
    assert answers[:5] + answers[6:] == [item for item in range(20) if item != 5]


def test_exit_in_a_thread_is_raised_even_where_errors_are_given():
    with pytest.raises(SystemExit):
        list(stream_of(range(3), load=lambda item: sys.exit(item), errors="yield"))


@pytest.mark.parametrize("errors", ["raise", "yield"])
def test_what_was_read_is_answered_before_the_source_s_error_is_raised(errors):
    def sources():
        yield from range(7)
        raise OSError("the disk is gone")

    given = []
    with pytest.raises(OSError, match="the disk is gone"):
        given.extend(stream_of(sources(), errors=errors))
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
        stream_of([1], **settings)
    assert str(caught.value) == message
