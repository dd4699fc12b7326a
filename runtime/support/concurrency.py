"""Threads that never keep a program from ending, and places in a line that threads and coroutines can wait for."""

import atexit
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from runtime.errors import BusyError, ClosedError

T = TypeVar("T")

Outcome = tuple[T, None] | tuple[None, BaseException]
"""What a call gave: (answer, None) or (None, error)."""


def attempt(function: Callable[..., T], *arguments: object) -> Outcome[T]:
    """Call a function and give its answer or its error, so that the error can be raised in another thread."""
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error


class Worker:
    """A thread that is told to stop, and waited for, when the interpreter ends.

    It is a daemon, since Python waits for other threads before it tells anybody that it ends. But a daemon that is left
    inside ONNX Runtime while Python is taken down may crash, hence the wait.

    Args:
        name: of the thread.
        run: what it does; it ends soon after `stop` was called.
        stop: tells it to; called from any thread, perhaps several times.
    """

    def __init__(self, name: str, run: Callable[[], None], stop: Callable[[], None]) -> None:
        self.stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=partial(self._run, run), name=name, daemon=True)
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:
            _running.discard(self)
            raise

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            _running.discard(self)
            self._ended.set()

    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until it has ended; in its own thread, or in a process forked from its own, return at once."""
        if self.is_current() or not self._thread.is_alive():
            return
        self._ended.wait()  # Ctrl-C in Thread.join() makes Python 3.11 believe that the thread has ended
        self._thread.join()


_running: set[Worker] = set()


@atexit.register
def _stop_all() -> None:
    workers = list(_running)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join()


class FairSemaphore:
    """A semaphore that is given out in the order of asking, to threads and to coroutines of any event loop.

    Args:
        count: how many there are.
        full: the message of `BusyError`.
    """

    def __init__(self, count: int, full: str) -> None:
        self._free = count
        self._full = full
        self._line: deque[tuple[Future[None], Any]] = deque()  # each with the event loop that it waits in, if any
        self._lock = threading.Lock()
        self._closed = ""

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for a place; `timeout` in seconds, 0 does not wait, None waits as long as it takes.

        Raises:
            BusyError: none became free in time, or one would have to be waited for in a thread that runs an event loop.
            ClosedError: `close` was called.
        """
        ticket = self._ask()
        try:
            ticket.result(0 if _runs_event_loop() else timeout)
        except TimeoutError:
            if self._withdraw(ticket):
                raise BusyError(self._full) from None
            ticket.result()
        except ClosedError:
            raise
        except BaseException:  # Ctrl-C
            if not self._withdraw(ticket):
                self.release()
            raise

    async def acquire_async(self) -> None:
        """Wait for a place without holding up the event loop.

        Raises:
            ClosedError: `close` was called.
        """
        import asyncio  # costs an app that does not use it 30 ms at its start

        ticket = self._ask(asyncio.get_running_loop())
        try:
            await asyncio.wrap_future(ticket)
        except ClosedError:
            raise
        except BaseException:  # cancelled, or its event loop was closed
            if not self._withdraw(ticket) and not ticket.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a place back: to the first in line, or to whoever asks next."""
        while True:
            with self._lock:
                if not self._line:
                    self._free += 1
                    return
                ticket, loop = self._line.popleft()
            if loop is not None and loop.is_closed():
                ticket.cancel()  # nobody comes for it, and its coroutine must not give back what it never had
                continue
            if ticket.set_running_or_notify_cancel():
                ticket.set_result(None)
                return

    def close(self, reason: str) -> None:
        """Raise `ClosedError(reason)` in all who wait, and in all who ask from now on."""
        with self._lock:
            self._closed = reason
            line, self._line = self._line, deque()
        for ticket, loop in line:
            if loop is not None and loop.is_closed():
                ticket.cancel()
            elif ticket.set_running_or_notify_cancel():
                ticket.set_exception(ClosedError(reason))

    def _ask(self, loop: Any = None) -> Future[None]:
        """A Future that is done once the place is given."""
        ticket: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise ClosedError(self._closed)
            if not self._free:
                self._line.append((ticket, loop))
                return ticket
            self._free -= 1
        ticket.set_result(None)
        return ticket

    def _withdraw(self, ticket: Future[None]) -> bool:
        """Leave the line; False if the place had been given by then."""
        with self._lock:
            left = [entry for entry in self._line if entry[0] is not ticket]
            was_there = len(left) < len(self._line)
            self._line = deque(left)
            return was_there


def _runs_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # a loop runs only where somebody has imported it
    return asyncio is not None and asyncio._get_running_loop() is not None
