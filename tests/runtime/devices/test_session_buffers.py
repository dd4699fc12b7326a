"""A GPU's session on the memory of the CPU: copies in and out, and memory that is given back."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from devices import images, on_cpu_memory


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


@pytest.mark.parametrize("graphs", [False, True])
def test_a_batch_that_is_not_contiguous_is_taken(inference, card, answers, graphs):
    batch = images(4, 16, 24)[::2, ::-1, 4:16]
    answer = on_cpu_memory(inference, card, cuda_graphs=graphs).run(batch).probability
    assert np.abs(answer - answers["softmax"](batch)).max() < 1e-6


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
