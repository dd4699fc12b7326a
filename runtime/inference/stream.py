"""stream: an ordered pipeline. Items are loaded in threads, run in batches in one thread, finished in threads."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

from runtime.errors import ClosedError, ConfigError
from runtime.inference.batcher import run_each
from runtime.support.concurrency import Worker, attempt
from runtime.support.validation import FieldChecks

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")

MAX_WORKERS = 16
"""Threads that decode for one stream, however many cores there are."""


@overload
def stream_in_order(
    sources: Iterable[S],
    *,
    load: Callable[[S], T],
    key: Callable[[T], Hashable],
    run_many: Callable[[list[T]], Sequence[R]],
    finish: Callable[[T, R], A],
    batch_size: int,
    workers: int,
    read_ahead: int | None = None,
    errors: Literal["raise"] = "raise",
    stopped: threading.Event | None = None,
) -> Generator[A]: ...
@overload
def stream_in_order(
    sources: Iterable[S],
    *,
    load: Callable[[S], T],
    key: Callable[[T], Hashable],
    run_many: Callable[[list[T]], Sequence[R]],
    finish: Callable[[T, R], A],
    batch_size: int,
    workers: int,
    read_ahead: int | None = None,
    errors: Literal["yield"],
    stopped: threading.Event | None = None,
) -> Generator[A | Exception]: ...
def stream_in_order(
    sources: Iterable[S],
    *,
    load: Callable[[S], T],
    key: Callable[[T], Hashable],
    run_many: Callable[[list[T]], Sequence[R]],
    finish: Callable[[T, R], A],
    batch_size: int,
    workers: int,
    read_ahead: int | None = None,
    errors: Literal["raise", "yield"] = "raise",
    stopped: threading.Event | None = None,
) -> Generator[A | Exception]:
    """Answer each source, in order: finish(loaded, answer), where loaded = load(source) and answer is run_many's.

    `sources` is read in the caller's thread, at most `read_ahead` items beyond the last answer taken, so it may be
    endless or slow, and need not be thread-safe. If it raises, what it gave before is answered first.

    Threads start with the first `next()`; they end with the last answer, or when the generator is closed or collected.
    That closes `sources` too if it is a generator.

    Args:
        load: called in `workers` threads.
        key: items of one batch have the same, for images their shape.
        run_many: answers a list of 1 to `batch_size` loaded items of one key, in order; called in one thread.
        finish: called in the same `workers` threads, before they load further items.
        batch_size: items in a batch. Fewer are run when nothing more is being loaded.
        read_ahead: items between being read and being taken, at least 1. None is what keeps all busy: one batch that
            runs, one that is next, and one item for each worker.
        errors: "raise" ends the stream with the error of an item, when its turn has come; "yield" gives the exception
            in its place and goes on.
        stopped: is set when the stream is closed, so that `run_many` can end early; the threads are waited for.

    Raises:
        ConfigError: a number is out of its bounds.
        ClosedError: the generator is asked on in a process that was forked from its own.
    """
    check = FieldChecks()
    check.integer("batch_size", batch_size, 1)
    check.integer("workers", workers, 1)
    ahead = 2 * batch_size + workers if read_ahead is None else read_ahead
    check.integer("read_ahead", ahead, 1)
    if errors not in ("raise", "yield"):
        raise ConfigError(f"errors: found {errors!r}, expected 'raise' or 'yield'")
    pipeline = _Pipeline(load, key, run_many, finish, batch_size, stopped or threading.Event())
    return _answers(iter(sources), pipeline, workers, ahead, errors == "yield")


def _answers(
    sources: Iterator[S], pipeline: "_Pipeline[S, T, R, A]", workers: int, ahead: int, give_errors: bool
) -> Generator[A | Exception]:
    line: deque[_Item] = deque()
    broken: Exception | None = None
    more = True
    try:
        pipeline.start(workers)
        while True:
            # One in for each one out keeps the threads busy; more than that only while there is nothing to give.
            read = False
            while more and len(line) < ahead and not (read and line[0].done):
                try:
                    source = next(sources)
                except StopIteration:
                    more = False
                except Exception as error:
                    more, broken = False, error
                else:
                    line.append(pipeline.add(source))
                    del source
                    read = True
            if not line:
                break
            yield pipeline.take(line.popleft(), give_errors)
        if broken:
            raise broken
    finally:
        pipeline.close()
        if isinstance(sources, Generator):
            sources.close()


class _Item:
    """One source on its way; `value` is the source, then what was loaded, then what is to be given."""

    __slots__ = ("answer", "done", "error", "key", "value")

    def __init__(self, source: Any) -> None:
        self.value = source
        self.key: Hashable = None
        self.answer: Any = None
        self.error: BaseException | None = None
        self.done = False


class _Pipeline(Generic[S, T, R, A]):
    """The threads and what lies between them, guarded by one condition: an item brings no more than a few changes."""

    def __init__(
        self,
        load: Callable[[S], T],
        key: Callable[[T], Hashable],
        run_many: Callable[[list[T]], Sequence[R]],
        finish: Callable[[T, R], A],
        batch_size: int,
        stopped: threading.Event,
    ) -> None:
        self._load_one, self._key, self._run_many, self._finish_one = load, key, run_many, finish
        self._batch_size = batch_size
        self._changed = threading.Condition()
        self._to_load: deque[_Item] = deque()
        self._loading = 0  # items that were read and are not loaded yet
        self._to_run: list[_Item] = []
        self._last_key: Hashable = None
        self._to_finish: deque[_Item] = deque()
        self._stopped, self._told = False, stopped
        self._threads: list[Worker] = []
        self._process = os.getpid()

    def start(self, workers: int) -> None:
        self._process = os.getpid()
        for run in [self._run_next, *[self._work_next] * workers]:
            self._threads.append(Worker("unet-stream", partial(_repeat, run), self._stop))

    def add(self, source: S) -> _Item:
        self._check_process()
        item = _Item(source)
        with self._changed:
            self._to_load.append(item)
            self._loading += 1
            self._changed.notify_all()
        return item

    def take(self, item: _Item, give_errors: bool) -> A | Exception:
        """Wait for an item; its answer, or its error, given or raised."""
        self._check_process()
        with self._changed:
            self._changed.wait_for(lambda: item.done or self._stopped)
        if not item.done:
            raise ClosedError("stream: was stopped, since the program ends")
        if item.error is None:
            answer: A = item.value
            return answer
        if give_errors and isinstance(item.error, Exception):
            return item.error
        raise item.error

    def close(self) -> None:
        """Stop the threads after what they are at, and wait for them; after a fork there are none."""
        if os.getpid() != self._process:
            return
        self._stop()
        if any(thread.is_current() for thread in self._threads):
            return  # one of them closes the stream, or collects it, perhaps with the lock held that the others need
        for thread in self._threads:
            thread.join()
        self._threads = []  # they refer back to this, and it to a model

    def _stop(self) -> None:
        if os.getpid() != self._process:
            return  # the lock may have been held when the process was forked
        self._told.set()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError(
                f"stream: belongs to process {self._process}, this is process {os.getpid()}, forked from it; "
                "start one in each process"
            )

    def _work_next(self) -> bool:
        """A worker's step; False when it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._to_finish or self._to_load)
            if self._stopped:
                return False
            task = self._finish if self._to_finish else self._load
            item = (self._to_finish or self._to_load).popleft()
        task(item)
        return True

    def _load(self, item: _Item) -> None:
        loaded, error = attempt(self._load_with_key, item.value)
        with self._changed:
            self._loading -= 1
            if loaded is None:
                self._settle(item, None, error)
            else:
                item.key, item.value = loaded
                self._to_run.append(item)
            self._changed.notify_all()

    def _load_with_key(self, source: S) -> tuple[Hashable, T]:
        loaded = self._load_one(source)
        key = self._key(loaded)
        hash(key)
        return key, loaded

    def _run_next(self) -> bool:
        """The step of the thread that runs batches; False when it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._batch_is_ready())
            if self._stopped:
                return False
            batch = self._take_batch()
        outcomes = run_each(self._run_many, [item.value for item in batch])
        with self._changed:
            for item, (answer, error) in zip(batch, outcomes, strict=True):
                if error is None:
                    item.answer = answer
                    self._to_finish.append(item)
                else:
                    self._settle(item, None, error)
            self._changed.notify_all()
        return True

    def _batch_is_ready(self) -> bool:
        """Items of several keys may never make a full batch of one, so it is their number that counts."""
        return len(self._to_run) >= self._batch_size or bool(self._to_run and not self._loading)

    def _take_batch(self) -> list[_Item]:
        """Items of one key: that of the batch before, since a GPU needs time for each change of shape, or else that of
        the item which has waited longest. It does not wait for ever, as no more than `read_ahead` items overtake it."""
        same = any(item.key == self._last_key for item in self._to_run)
        key = self._last_key = self._last_key if same else self._to_run[0].key
        batch = [item for item in self._to_run if item.key == key][: self._batch_size]
        self._to_run = [item for item in self._to_run if item not in batch]
        return batch

    def _finish(self, item: _Item) -> None:
        result, error = attempt(self._finish_one, item.value, item.answer)
        with self._changed:
            self._settle(item, result, error)
            self._changed.notify_all()

    def _settle(self, item: _Item, result: Any, error: BaseException | None) -> None:
        item.value, item.answer, item.error, item.done = result, None, error, True


def _repeat(step: Callable[[], bool]) -> None:
    while step():
        pass
