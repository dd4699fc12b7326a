"""Changes of shape on the stand-in: they build cuDNN's plans anew, which are counted."""

import pytest

pytestmark = pytest.mark.stub

BEGIN = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from on_stand_in import images, mark, no_golden, open_on
from runtime import Batching, Predictor
from runtime.devices.shape_changes import SteadyBatch

def by_a_quiet_clock(steady, shape, seconds, ran=SteadyBatch.ran):
    ran(steady, shape, 0.001 if shape == steady._shape else 1.0)

SteadyBatch.ran = by_a_quiet_clock  # a busy machine would measure plans that cost nothing

def until(ready):
    for _ in range(1000):
        if ready():
            return
        time.sleep(0.01)
    raise TimeoutError
"""
MODEL = 2
"""Convolutions of the model, each with a plan of its own."""


def built(ran, name):
    """The number of times that the plans of all convolutions were built."""
    return ran.part(name).count("cudnn plan") / MODEL


def batches(ran, name):
    """Images of each run."""
    words = [line.split() for line in ran.part(name) if line.startswith("cudnn answer")]
    return [int(batch) for _, _, batch, *_ in words][::MODEL]


def test_parts_of_a_batch_and_smaller_batches_run_by_the_same_plans(stand_in, models):
    code = """
session = open_on(sys.argv[1])
run, steady = session.run, session.run_steady
for name, ask, count in [
    ("nine", run, 9), ("nine again", run, 9), ("four", steady, 4), ("one", steady, 1), ("exact", run, 2),
    ("two", steady, 1), ("twenty", steady, 20),
]:
    mark(name)
    assert ask(images(count, 64, 64)).probability.shape == (count, 1, 64, 64)
session = open_on(sys.argv[1], cuda_graphs=True)
mark("graphs")
session.run(images(9, 64, 64))
session.run(images(9, 64, 64))
mark("end")
"""
    ran = stand_in.run(BEGIN + code, models["conv"])
    names = ("nine", "nine again", "four", "one", "exact", "two", "twenty")
    assert [batches(ran, name) for name in names] == [[5, 5], [5, 5], [5], [5], [2], [2], [7, 7, 7]]
    assert [built(ran, name) for name in names] == [1, 0, 0, 0, 1, 0, 1]
    graphs = [line for line in ran.part("graphs") if line.startswith("cudaGraph")]
    assert graphs == ["cudaGraphInstantiate", *["cudaGraphLaunch"] * 4]


def test_threads_and_queues_keep_one_shape_together(stand_in, models):
    code = """
no_golden()
predictor = Predictor(sys.argv[1], "cuda", batching=Batching(max_batch=4, max_waiting=64))
session = predictor._model.session
turns = session._runner._turns

def held():
    turn = turns.take("other")
    turn.__enter__()
    return lambda: turn.__exit__(None, None, None)

go = held()
with ThreadPoolExecutor(8) as pool:
    futures = [pool.submit(predictor.run, images(1, 32 * (1 + place % 2), 64)) for place in range(8)]
    until(lambda: len(turns._line) == 8)
    mark("threads")
    go()
mark("submitted")
go = held()
first = predictor.submit(images(1, 96, 64)[0])
until(lambda: len(turns._line) == 1)
futures = [predictor.submit(images(1, 32 * (1 + place % 2), 64)[0]) for place in range(16)]
go()
for future in futures:
    future.result()
mark("batches")
assert len(predictor.predict_batch(list(images(10, 64, 64)), batch_size=4)) == 10
mark("alone")
predictor.predict(images(1, 64, 64)[0])
mark("tiles")
predictor.predict(images(1, 64, 576)[0], tile=(64, 64), overlap=0)
mark("end")
"""
    ran = stand_in.run(BEGIN + code, models["conv"])
    assert built(ran, "threads") == 2 and batches(ran, "threads") == [1] * 8
    assert built(ran, "submitted") == 3 and batches(ran, "submitted") == [1, 4, 4, 4, 4]
    # A busy machine loads too slowly for full batches: then there are more of them, and each is filled up.
    assert built(ran, "batches") == 0 and len(batches(ran, "batches")) >= 3 and set(batches(ran, "batches")) == {4}
    assert built(ran, "alone") == 1 and batches(ran, "alone") == [1]
    assert built(ran, "tiles") == 1 and batches(ran, "tiles") == [5, 5]
