"""Batchers and streams of small items, whose answers are squares unless a test says otherwise."""

from waiting import Gate, wait_until

from runtime.inference.batcher import Batcher
from runtime.inference.stream import stream_in_order

FULL = "batcher: 2 items wait already; try again later, or in a coroutine await the answer"


def squares(items):
    return [item * item for item in items]


def reciprocals(items):
    return [1 / item for item in items]


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


def same(value):
    return value


def pair(loaded, answer):
    return (loaded, answer)


def loaded_only(loaded, _answer):
    return loaded


def stream_of(
    sources, *, load=same, key=lambda item: 0, run_many=squares, finish=pair, batch_size=4, workers=2, **more
):
    return stream_in_order(
        sources, load=load, key=key, run_many=run_many, finish=finish, batch_size=batch_size, workers=workers, **more
    )


class Recorded:
    """A `run_many` that squares and remembers its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, items):
        self.batches.append(items)
        return squares(items)
