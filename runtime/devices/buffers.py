"""Memory on a device that is kept between runs."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.devices.session import BatchOutput

IDLE_BUFFERS = 8
"""Number of sets of buffers that are kept: one for each thread at one size, or several sizes in one thread."""

IDLE_BYTES = 2**28
"""Bytes that kept buffers hold together; the last used set is kept whatever its size."""

K = TypeVar("K")


class HoldsBytes(Protocol):
    """An item that holds `nbytes` bytes."""

    nbytes: int


V = TypeVar("V", bound=HoldsBytes)


class Pool(Generic[K, V]):
    """Items for reuse, each lent to one user at a time; the longest unused go when they are too many or too large."""

    def __init__(self, make: Callable[[K], V], limit: int, max_bytes: int) -> None:
        self._make, self._limit, self._max_bytes = make, limit, max_bytes
        self._idle: list[tuple[K, V]] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, key: K) -> Iterator[V]:
        """Lend an item that was made for `key`, or a new one; an item whose user fails is thrown away."""
        with self._lock:
            last = next((place for place in reversed(range(len(self._idle))) if self._idle[place][0] == key), None)
            idle = None if last is None else self._idle.pop(last)[1]
        item = self._make(key) if idle is None else idle
        yield item
        with self._lock:
            self._idle.append((key, item))
            del self._idle[: -self._limit]
            while len(self._idle) > 1 and sum(idle.nbytes for _, idle in self._idle) > self._max_bytes:
                del self._idle[0]

    def clear(self) -> None:
        """Throw the idle ones away."""
        with self._lock:
            self._idle.clear()


class Buffers:
    """Input and output of one shape in a device's memory, at addresses that stay, bound to a session."""

    def __init__(self, inference: Any, place: tuple[str, int], shape: tuple[int, ...], classes: int) -> None:
        batch, height, width, _ = shape
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self.nbytes = math.prod(shape) + 4 * batch * classes * height * width
        self._inference = inference
        self._input = make(shape, np.uint8, *place)
        self._output = make((batch, classes, height, width), np.float32, *place)
        self._binding = inference.io_binding()
        self._binding.bind_ortvalue_input("image", self._input)
        self._binding.bind_ortvalue_output("probability", self._output)

    def run(self, batch: NDArray[np.uint8], options: Any) -> BatchOutput:
        """Copy the batch in, run, and copy the answer out."""
        start = time.perf_counter()
        self._input.update_inplace(batch)
        copied = time.perf_counter()
        self._inference.run_with_iobinding(self._binding, options)
        done = time.perf_counter()
        answer: NDArray[np.float32] = self._output.numpy()
        answer = answer if answer.flags.owndata else answer.copy()  # on the CPU it is the buffer itself
        return BatchOutput(answer, copied - start + time.perf_counter() - done)
