"""Threads that never keep a program from ending, a fair semaphore for threads and coroutines, locks on objects."""

import atexit
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from runtime.errors import BusyError, ClosedError

T = TypeVar("T")

Outcome = tuple[T, None] | tuple[None, BaseException]
"""Result of a call: (answer, None) or (None, error)."""


def attempt(function: Callable[..., T], *arguments: object) -> Outcome[T]:
    """Call a function and return its answer or its error, so that another thread can raise the error."""
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error


class Worker:
    """A thread that is stopped and joined when the interpreter ends.

    It is a daemon, since Python waits for all other threads before it runs exit handlers. But a daemon that is still
    inside ONNX Runtime while Python shuts down may crash, so an exit handler joins it.

    Args:
        name: name of the thread.
        run: work of the thread; it ends soon after a call of `stop`.
        stop: asks the thread to end. Any thread may call it, several times.
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
        """Return True if the caller runs in this thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until the thread has ended. Returns at once in the thread itself, in a forked process, and where
        `join_nobody` says so."""
        if self.is_current() or not self._thread.is_alive() or _here.joins_nobody:
            return
        self._ended.wait()  # Ctrl-C in Thread.join() makes Python 3.11 believe that the thread has ended
        self._thread.join()


class _Here(threading.local):
    joins_nobody = False


_here = _Here()


def join_nobody(nobody: bool = True) -> bool:
    """Let this thread join no worker from now on, or join them again; return what was so before.

    It is for a thread that others wait for. The garbage collector may close a forgotten stream in any thread, and one
    that joined the stream's worker while this worker waits for it would wait for ever.
    """
    before, _here.joins_nobody = _here.joins_nobody, nobody
    return before


_running: set[Worker] = set()


@atexit.register
def _stop_all() -> None:
    workers = list(_running)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join()


class FairSemaphore:
    """A semaphore that serves threads, and coroutines of any event loop, in the order of their requests.

    Args:
        count: number of places.
        full: message of `BusyError`.
    """

    def __init__(self, count: int, full: str) -> None:
        self._free = count
        self._full = full
        self._line: deque[tuple[Future[None], Any]] = deque()  # with the event loop, if any
        self._lock = threading.Lock()
        self._closed = ""

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for a place, at most `timeout` seconds; 0 does not wait, None waits for ever.

        Raises:
            BusyError: no place became free in time, or the caller would have to wait in a thread with an event loop.
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
        """Wait for a place without blocking the event loop.

        Raises:
            ClosedError: `close` was called.
        """
        import asyncio  # takes 30 ms, which apps without it save

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
        """Give a place back, to the first in the queue or to the next request."""
        while True:
            with self._lock:
                if not self._line:
                    self._free += 1
                    return
                ticket, loop = self._line.popleft()
            if loop is not None and loop.is_closed():
                ticket.cancel()  # so that its coroutine does not give back a place that it never had
                continue
            if ticket.set_running_or_notify_cancel():
                ticket.set_result(None)
                return

    def close(self, reason: str) -> None:
        """Raise `ClosedError(reason)` in all who wait, and for every later request."""
        with self._lock:
            self._closed = reason
            line, self._line = self._line, deque()
        for ticket, loop in line:
            if loop is not None and loop.is_closed():
                ticket.cancel()
            elif ticket.set_running_or_notify_cancel():
                ticket.set_exception(ClosedError(reason))

    def _ask(self, loop: Any = None) -> Future[None]:
        """Return a Future that is done when the place is granted."""
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
        """Leave the queue; returns False if the place was already granted."""
        with self._lock:
            left = [entry for entry in self._line if entry[0] is not ticket]
            was_there = len(left) < len(self._line)
            self._line = deque(left)
            return was_there


def _runs_event_loop() -> bool:
    """Return True if an event loop runs in this thread."""
    asyncio = sys.modules.get("asyncio")  # a loop runs only where somebody has imported it
    return asyncio is not None and asyncio._get_running_loop() is not None


_locks: weakref.WeakValueDictionary[int, "threading.Lock"] = weakref.WeakValueDictionary()
_locking = threading.Lock()


@contextmanager
def alone_with(thing: object) -> Iterator[None]:
    """Let one thread at a time into the block with an object that is not thread-safe, such as a file or a picture.

    Threads with other objects do not wait. A thread must not enter twice with the same object.
    """
    with _locking:
        lock = _locks.get(id(thing))
        if lock is None:
            lock = _locks[id(thing)] = threading.Lock()
    with lock:
        yield


def _after_fork() -> None:
    """Other threads may have held the locks, and are not there to release them."""
    global _locking
    _locking = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
