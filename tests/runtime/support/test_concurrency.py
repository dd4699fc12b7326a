"""Places in a line: given in the order of asking, to threads and coroutines alike, and never lost."""

import asyncio
import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import PATIENCE, our_threads, wait_until

from runtime.errors import BusyError, ClosedError
from runtime.support.concurrency import FairSemaphore, Worker, alone_with, attempt


def test_places_are_given_in_the_order_of_asking():
    places, served = FairSemaphore(1, "full"), []
    places.acquire()
    with ThreadPoolExecutor(5) as pool:
        for name in range(5):
            pool.submit(lambda name=name: (places.acquire(), served.append(name)))
            wait_until(lambda name=name: len(places._line) == name + 1)
        for name in range(5):
            places.release()
            wait_until(lambda name=name: served == list(range(name + 1)))


def test_threads_and_coroutines_stand_in_one_line():
    async def main():
        task = asyncio.create_task(places.acquire_async())
        await asyncio.sleep(0.02)
        thread = threading.Thread(target=lambda: (places.acquire(), served.append("thread")))
        thread.start()
        wait_until(lambda: len(places._line) == 2)
        places.release()
        await task
        assert served == []
        places.release()
        await asyncio.to_thread(thread.join)

    places, served = FairSemaphore(1, "full"), []
    places.acquire()
    asyncio.run(main())
    assert served == ["thread"]


def test_place_offered_to_a_task_that_was_cancelled_is_given_once():
    async def main():
        task = asyncio.create_task(places.acquire_async())
        await asyncio.sleep(0.02)
        places._line[0][0].cancel()
        places.release()  # before the task has been woken
        with pytest.raises(asyncio.CancelledError):
            await task

    places = FairSemaphore(1, "full")
    places.acquire()
    asyncio.run(main())
    places.acquire(timeout=0)
    with pytest.raises(BusyError):
        places.acquire(timeout=0)


def test_as_many_as_were_made_and_no_more():
    places = FairSemaphore(2, "two are taken")
    places.acquire(timeout=0)
    places.acquire(timeout=0)
    for _ in range(3):
        with pytest.raises(BusyError) as caught:
            places.acquire(timeout=0)
        assert str(caught.value) == "two are taken"
    places.release()
    places.acquire(timeout=0)
    assert not places._line  # those who went away are not served


def test_many_threads_never_hold_more_than_there_are():
    places, lock = FairSemaphore(3, "full"), threading.Lock()
    held, most = 0, 0

    def work(_):
        nonlocal held, most
        for _ in range(50):
            places.acquire()
            with lock:
                held += 1
                most = max(most, held)
            with lock:
                held -= 1
            places.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 1 <= most <= 3
    for _ in range(3):
        places.acquire(timeout=0)


def test_close_tells_those_who_wait_and_those_who_come():
    places = FairSemaphore(1, "full")
    places.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(places.acquire)
        wait_until(lambda: places._line)
        places.close("it is over")
        assert str(waiting.exception(PATIENCE)) == "it is over"
    places.release()
    with pytest.raises(ClosedError, match="it is over"):
        places.acquire()


def test_attempt_gives_the_answer_or_the_error():
    assert attempt(divmod, 7, 2) == ((3, 1), None)
    answer, error = attempt(divmod, 7, 0)
    assert answer is None
    assert isinstance(error, ZeroDivisionError)


def test_worker_that_joins_itself_goes_on():
    ended = []

    def run():
        wait_until(lambda: workers)
        workers[0].join()
        ended.append(workers[0].is_current())

    workers = []
    workers.append(Worker("unet-test", run, lambda: None))
    workers[0].join()
    assert ended == [True]
    assert our_threads() == []


@pytest.mark.parametrize("is_collected_first", [True, False])
@pytest.mark.parametrize("end", [FairSemaphore.release, lambda places: places.close("closed")])
def test_coroutines_that_are_thrown_away_leave_the_line_and_give_nothing_back(is_collected_first, end):
    places = FairSemaphore(1, "full")
    places.acquire()
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(places.acquire_async()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    if not is_collected_first:
        end(places)
    del task, tasks
    gc.collect()
    if is_collected_first:
        end(places)
    assert places._free == (1 if end is FairSemaphore.release else 0)


def test_one_thread_at_a_time_is_alone_with_an_object_and_others_have_their_own():
    thing, other, entered, leave = object(), object(), threading.Event(), threading.Event()
    order = []

    def stay():
        with alone_with(thing):
            entered.set()
            leave.wait(PATIENCE)
            order.append("first")

    def follow():
        with alone_with(thing):
            order.append("second")

    threads = [threading.Thread(target=stay), threading.Thread(target=follow)]
    threads[0].start()
    assert entered.wait(PATIENCE)
    threads[1].start()
    with alone_with(other):
        order.append("other")
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["other", "first", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_object_is_free_in_a_forked_process():
    thing = object()
    with alone_with(thing):
        child = os.fork()
        if not child:
            signal.alarm(5)
            with alone_with(thing):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
