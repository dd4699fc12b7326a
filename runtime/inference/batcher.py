"""Batcher: items come one by one from threads and coroutines, run in batches, and are answered one by one."""

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from runtime.errors import ClosedError, ConfigError
from runtime.support.concurrency import FairSemaphore, Outcome, Worker, attempt
from runtime.support.validation import FieldChecks, make_integers_plain

GPU_BATCH = 8
"""Number of images that run together on a GPU, unless told otherwise."""

MAX_DELAY_MS = 3_600_000
CLOSED = "batcher: is closed; make another one"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Settings by which `Predictor.submit` gathers images; the fields are those of `Batcher`.

    With `max_batch` None the device decides: one image on the CPU, up to eight on a GPU. `on_batch` is called with the
    number of images of each batch that starts, in the batches' thread.

    Raises:
        ConfigError: a number is out of its bounds.
    """

    max_batch: int | None = 8
    max_delay_ms: float = 0.0
    max_waiting: int = 32
    on_batch: Callable[[int], object] | None = None

    def __post_init__(self) -> None:
        make_integers_plain(self)
        check = FieldChecks(ConfigError, "Batching.")
        if self.max_batch is not None:
            check.integer("max_batch", self.max_batch, 1)
        check.integer("max_waiting", self.max_waiting, 1)
        check.number("max_delay_ms", self.max_delay_ms, 0, MAX_DELAY_MS, "milliseconds")


End = Literal["finish", "cancel"]
"""The end of the items that wait when a batcher is closed."""


class Batcher(Generic[T, R]):
    """Gathers single items into batches, in one thread of its own.

    The items of a batch have one key. A batch goes off when `max_batch` items are there or its first item has waited
    `max_delay_ms`. Among batches that may go, one of the key before goes first while its items came before that key had
    its turn, since a GPU needs time for each change of shape; then the one whose first item came first, so no key
    starves. If a batch fails, its items are run one by one, and each gets its own answer or error. The thread starts
    with the first item.

    Closing it, or leaving its `with` block, finishes what waits; leaving the block by an error cancels it. A batcher
    that is forgotten ends its thread when it is garbage-collected. At the end of the program what waits is cancelled.

    Args:
        run_many: answers a list of 1 to `max_batch` items of one key, in order; called in one thread.
        key: what the items of a batch have in common, for images their shape.
        max_batch: items in a batch, at least 1.
        max_delay_ms: how long a batch waits for more, in milliseconds; with 0 it takes what has come while the batch
            before it ran.
        max_waiting: items that may wait, beside the batch that runs; further ones wait in `submit`, in order.
        closed, full: the messages of `ClosedError` and `BusyError`, where others are better.

    Raises:
        ConfigError: a number is out of its bounds.
    """

    def __init__(
        self,
        run_many: Callable[[list[T]], Sequence[R]],
        *,
        key: Callable[[T], Hashable],
        max_batch: int,
        max_delay_ms: float,
        max_waiting: int,
        closed: str = CLOSED,
        full: str = "",
    ) -> None:
        check = FieldChecks(ConfigError)
        check.integer("max_batch", max_batch, 1)
        check.integer("max_waiting", max_waiting, 1)
        check.number("max_delay_ms", max_delay_ms, 0, MAX_DELAY_MS, "milliseconds")
        self.run_many = run_many
        self._key = key
        self._places = FairSemaphore(
            max_waiting,
            full or f"batcher: {max_waiting} items wait already; try again later, or in a coroutine await the answer",
        )
        # With fewer places than a batch has, a batch of max_batch would never be complete.
        self._serve = partial(_serve, self._places, min(max_batch, max_waiting), max_delay_ms / 1000)
        self._inbox: queue.SimpleQueue[WaitingItem[T, R] | End] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._closed, self._closed_text = False, closed
        self._process = os.getpid()

    def submit(self, item: T, *, timeout: float | None = None) -> Future[R]:
        """Queue an item and return the Future of its answer.

        Waits while `max_waiting` items wait, at most `timeout` seconds (0: not at all, None: as long as it takes), but
        never in a thread that runs an event loop, nor in a done-callback of this batcher. The Future's `cancel()` works
        until its batch starts. Its callbacks run in the batcher's thread: keep them short.

        Raises:
            BusyError: still too many items wait.
            ClosedError: the batcher was closed, or belongs to another process (after a fork).
        """
        self._check_process()
        self._places.acquire(0 if self.is_current() else timeout)
        return self._enqueue(item)

    async def run_async(self, item: T) -> R:
        """Queue an item and await its answer; cancelling the task takes the item back if its batch has not started.

        The event loop goes on while `max_waiting` items wait.

        Raises:
            ClosedError: as `submit`. What `run_many` raises for the item is raised here.
        """
        import asyncio

        self._check_process()
        await self._places.acquire_async()
        return await asyncio.wrap_future(self._enqueue(item))

    def is_current(self) -> bool:
        """Return True if the caller runs in the batcher's thread, as callbacks of its Futures do."""
        return self._worker is not None and self._worker.is_current()

    def close(self, *, cancel: bool = False) -> None:
        """Take no more items, finish (or cancel) what waits, and wait until the thread has ended.

        May be called again, from any thread, but not from a signal handler, which may have interrupted the thread that
        holds a lock; after a fork it does nothing.
        """
        if os.getpid() != self._process:
            return
        self._places.close(self._closed_text)
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker:
            self._inbox.put("cancel" if cancel else "finish")
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def _enqueue(self, item: T) -> Future[R]:
        """Put an item, whose place is held, into the inbox."""
        try:
            key = self._key(item)
            hash(key)
            entry = WaitingItem(item, key, Future[R](), time.monotonic(), self)
            with self._lock:
                if self._closed:
                    raise ClosedError(self._closed_text)
                self._worker = self._worker or self._start()
                self._inbox.put(entry)
        except BaseException:
            self._places.release()
            raise
        return entry.future

    def _start(self) -> Worker:
        worker = Worker("unet-batcher", partial(self._serve, self._inbox), partial(self._inbox.put, "cancel"))
        # Nothing waits when this is called, since entries hold their batcher. It must not wait for a lock.
        weakref.finalize(self, self._inbox.put, "finish").atexit = False
        return worker

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError(
                f"batcher: belongs to process {self._process}, this is process {os.getpid()}, forked from it; "
                "make one in each process"
            )


def run_each(run_many: Callable[[list[T]], Sequence[R]], items: list[T]) -> list[Outcome[R]]:
    """Run a batch; if it fails, run its items one by one, so that each has its own answer or error."""
    answers, error = attempt(_run_all, run_many, items)
    if answers is not None:
        return [(answer, None) for answer in answers]
    if len(items) == 1 and error is not None:
        return [(None, error)]
    return [outcome for item in items for outcome in run_each(run_many, [item])]


def _run_all(run_many: Callable[[list[T]], Sequence[R]], items: list[T]) -> Sequence[R]:
    answers = run_many(items)
    assert len(answers) == len(items), f"run_many gave {len(answers)} answers for {len(items)} items"
    return answers


@dataclass(frozen=True, slots=True, eq=False)
class WaitingItem(Generic[T, R]):
    """An item that waits; `arrived` in seconds of `time.monotonic`. It keeps its batcher from being collected."""

    item: T
    key: Hashable
    future: Future[R]
    arrived: float
    batcher: Batcher[T, R]


class _Waiting(Generic[T, R]):
    """The items that wait, by key, each key's in order. Only the batcher's thread touches them."""

    def __init__(self, max_batch: int, max_delay: float) -> None:
        self._max_batch, self._max_delay = max_batch, max_delay
        self._lines: dict[Hashable, deque[WaitingItem[T, R]]] = {}
        self._ending = False
        self._turn: tuple[Hashable, float] = None, 0.0  # the key of the last batch, and when its first batch went off

    @property
    def ended(self) -> bool:
        return self._ending and not self._lines

    def receive(self, message: WaitingItem[T, R] | End) -> int:
        """Take an item, or an order to end, from the inbox; return how many items that order cancelled."""
        if isinstance(message, WaitingItem):
            self._lines.setdefault(message.key, deque()).append(message)
            return 0
        self._ending = True
        return self._cancel() if message == "cancel" else 0

    def patience(self) -> float | None:
        """Return the seconds until the next batch is due; None if nothing waits."""
        if not self._lines:
            return None
        return max(0.0, min(map(self._start_of, self._lines.values())) - time.monotonic())

    def take(self) -> list[WaitingItem[T, R]]:
        """Take the next batch; cancelled items are still in it."""
        now = time.monotonic()
        ready = [line for line in self._lines.values() if self._start_of(line) <= now]
        if not ready:
            return []
        key, began = self._turn
        same = [line for line in ready if line[0].key == key and line[0].arrived <= began]
        line = min(same or ready, key=lambda line: line[0].arrived)
        if not same:
            self._turn = line[0].key, now
        batch = [line.popleft() for _ in range(min(self._max_batch, len(line)))]
        if not line:
            del self._lines[batch[0].key]
        return batch

    def _start_of(self, line: deque[WaitingItem[T, R]]) -> float:
        if self._ending or len(line) >= self._max_batch:
            return line[0].arrived
        return line[0].arrived + self._max_delay

    def _cancel(self) -> int:
        entries = [entry for line in self._lines.values() for entry in line]
        self._lines.clear()
        for entry in entries:
            entry.future.cancel()
            entry.future.set_running_or_notify_cancel()  # wakes those who wait for several Futures
        return len(entries)


def _serve(
    places: FairSemaphore, max_batch: int, max_delay: float, inbox: "queue.SimpleQueue[WaitingItem[T, R] | End]"
) -> None:
    """The thread. While it waits no local name holds an item, an answer or the batcher."""
    waiting: _Waiting[T, R] = _Waiting(max_batch, max_delay)
    while not waiting.ended:
        if not _receive(inbox, waiting, places):  # so a batch is complete, or has waited long enough
            _answer(waiting.take(), places)


def _receive(
    inbox: "queue.SimpleQueue[WaitingItem[T, R] | End]", waiting: _Waiting[T, R], places: FairSemaphore
) -> bool:
    """Take one message out of the inbox; False if none came before a batch has to go off."""
    try:
        message = inbox.get(timeout=waiting.patience())
    except queue.Empty:
        return False
    for _ in range(waiting.receive(message)):
        places.release()
    return True


def _answer(batch: list[WaitingItem[T, R]], places: FairSemaphore) -> None:
    running = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
    for _ in batch:
        places.release()
    if not running:
        return
    outcomes = run_each(running[0].batcher.run_many, [entry.item for entry in running])
    for entry, (answer, error) in zip(running, outcomes, strict=True):
        # A callback that raises SystemExit must not end the thread that others wait for.
        if error is None:
            attempt(entry.future.set_result, answer)
        else:
            attempt(entry.future.set_exception, error)
