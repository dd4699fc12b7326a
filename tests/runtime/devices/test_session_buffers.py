"""A GPU's buffers, on CPU memory: bindings, and the pool that lends them."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from devices import images, on_cpu_memory

from runtime.devices import cuda as cuda_module
from runtime.devices.cuda import Pool

# Buffers


def test_bound_buffers_answer_as_numpy_whatever_the_sizes_and_the_order(inference, card, answers):
    session = on_cpu_memory(inference, card)
    batches = [
        images(count, height, width, seed=height) for count in (1, 3) for height, width in [(5, 7), (8, 8), (1, 30)]
    ]
    found = [session.run(batch).probability for batch in batches * 2]
    for batch, answer in zip(batches * 2, found, strict=True):  # none was overwritten by a later one
        assert answer.shape == (len(batch), 3, *batch.shape[1:3])
        assert np.abs(answer - answers["softmax"](batch)).max() < 1e-6


def test_threads_share_no_buffer(inference, card, answers):
    session = on_cpu_memory(inference, card)
    batches = [images(1, 40, 60, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = [output.probability for output in pool.map(session.run, batches)]
    assert all(np.abs(a - answers["softmax"](b)).max() < 1e-6 for a, b in zip(found, batches, strict=True))


def test_buffers_are_reused_by_bucket(inference, card, monkeypatch):
    made = []
    real = cuda_module.Buffers.__init__

    def count(self, inference, place, shape, classes):
        made.append(shape)
        real(self, inference, place, shape, classes)

    monkeypatch.setattr(cuda_module.Buffers, "__init__", count)
    session = on_cpu_memory(inference, card)
    for size in [(5, 5), (8, 8), (7, 6), (5, 8), (9, 8)]:
        session.run(images(1, *size))
    assert made == [(1, 8, 8, 3), (1, 12, 8, 3)]


class Thing:
    def __init__(self, nbytes=1):
        self.nbytes = nbytes


def test_pool_keeps_no_more_bytes_than_it_may_and_always_the_last_used():
    made = []
    pool = Pool(lambda size: made.append(size) or Thing(size), limit=9, max_bytes=100)
    for size in (60, 40, 30, 40, 60, 500, 500, 60):
        with pool.lend(size):
            pass
    assert made == [60, 40, 30, 60, 500, 60]


def test_buffers_know_their_bytes(inference):
    assert cuda_module.Buffers(inference, ("cpu", 0), (2, 5, 7, 3), 3).nbytes == 2 * 5 * 7 * 3 + 2 * 3 * 5 * 7 * 4


def test_closed_session_gives_its_memory_back_at_once(inference, card):
    session = on_cpu_memory(inference, card)
    session.run(images(1, 8, 8))
    engine = weakref.ref(session._runner)
    gc.disable()
    try:
        session.close()
        assert engine() is None
    finally:
        gc.enable()


def test_pool_lends_to_one_at_a_time_and_keeps_the_last_used():
    made = []
    pool = Pool(lambda key: made.append(key) or Thing(), limit=2, max_bytes=100)
    with pool.lend("a") as first, pool.lend("a") as second:
        assert first is not second
    with pool.lend("a") as again:
        assert again is first  # the one that came back last
    for key in "bc":
        with pool.lend(key):
            pass
    with pool.lend("a") as third:
        assert third is not first and third is not second
    assert made == ["a", "a", "b", "c", "a"]
    with pytest.raises(ValueError), pool.lend("c"):
        raise ValueError
    with pool.lend("c"):
        pass
    assert made[-1] == "c" and len(made) == 6
    pool.clear()
    with pool.lend("c"):
        pass
    assert len(made) == 7
