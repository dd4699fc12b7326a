"""Batcher and coroutines: answers, places in the line, cancelled tasks, closing."""

import asyncio
import subprocess
import sys

import pytest
from batched import FULL, Gated, batcher_of, reciprocals
from waiting import PATIENCE

from runtime.errors import BusyError
from runtime.inference.batcher import CLOSED

pytestmark = pytest.mark.usefixtures("no_thread_left")


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
        while not gated.batcher._places._closed:
            await asyncio.sleep(0.002)
        gated.gate.open()
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Gated(max_waiting=1) as gated:
        answer, error = asyncio.run(main())
    assert answer == 0
    assert str(error) == CLOSED


def test_asyncio_is_not_imported_by_those_who_do_without(root):
    program = "import runtime.inference.batcher, runtime.inference.stream, sys; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
