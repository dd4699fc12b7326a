"""Changes of shape: each one makes ONNX Runtime build all of cuDNN's plans anew, so there should be few.

Seen with ONNX Runtime 1.31.1 on a stand-in for CUDA: its convolutions keep the plan of one shape, the last. Nine images
as 5 + 4 build every plan twice, and so do two threads that ask about two sizes in turns.
"""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import count

from runtime.devices.profiles import Shape, part_size
from runtime.support.concurrency import join_nobody

Ticket = tuple[int, Hashable]
"""A thread that waits: the number of its arrival, and its key."""


class Turns:
    """Lets one thread in at a time, and those of one key one after another.

    The turn of a key lasts until all threads that waited with this key when the turn began have been in. Then the turn
    of the thread that has waited longest begins, so nobody waits for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = count()
        self._line: list[Ticket] = []
        self._inside: Ticket | None = None
        self._key: Hashable = None
        self._end = 0  # number of the first ticket that is not part of the turn

    @contextmanager
    def take(self, key: Hashable) -> Iterator[None]:
        """Wait until it is this thread's turn; others wait until the block ends, which must not wait for them."""
        ticket, before = (next(self._numbers), key), join_nobody()
        try:
            with self._changed:
                self._line.append(ticket)
                self._changed.wait_for(lambda: self._inside is None and self._next() is ticket)
                self._inside = ticket
                self._line.remove(ticket)
                if key != self._key or ticket[0] >= self._end:
                    self._key, self._end = key, next(self._numbers)
            yield
        finally:  # also after Ctrl-C, wherever it came
            if self._inside is ticket:
                self._inside = None  # before all that a second Ctrl-C may interrupt
            try:
                with self._changed:
                    self._line = [other for other in self._line if other is not ticket]
                    self._changed.notify_all()
            finally:
                join_nobody(before)

    def _next(self) -> Ticket:
        """Return the first ticket of the turn, or the first of all if nobody is left in it."""
        return next(
            (ticket for ticket in self._line if ticket[1] == self._key and ticket[0] < self._end), self._line[0]
        )


class SteadyBatch:
    """The number of images that run together, which changes only where that is worth new plans.

    A batch that is smaller than the one before it is padded to the same number, and padding wastes time. The number
    falls once more time was wasted than new plans take, as both were measured here. So padding never costs more than
    about twice the best choice (the ski-rental problem).

    Args:
        most: no batch is padded to more images.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shape: Shape | None = None
        self._first = self._last = 0.0  # seconds of the first and the last run of this shape; the first builds plans
        self._building: float | None = None  # how much longer the first run took than the second one
        self._wasted = 0.0  # seconds of padding since a batch needed all its places

    def images(self, shape: Shape) -> int:
        """Return the number of images to run for a batch of (images, height, width)."""
        last, building = self._shape, self._building
        if last is None or last[1:] != shape[1:] or not shape[0] <= last[0] <= self._most:
            return shape[0]
        return shape[0] if building is not None and self._wasted > building else last[0]

    def before(self, shape: Shape) -> int:
        """Return the number of images of the last run, if a batch of this shape should be split into such parts, or 0.

        What they waste over parts that are as small as possible is noted, if there are no more of them.
        """
        last, building = self._shape, self._building  # which another thread may change
        if last is None or last[1:] != shape[1:]:
            return 0
        smallest = part_size(shape[0], self._most)
        if part_size(shape[0], self._most, last[0]) == smallest:
            return last[0]
        if building is not None and self._wasted > building:
            return 0
        self._wasted += self._last * -(-shape[0] // smallest) * (last[0] - smallest) / last[0]
        return last[0]

    def ran(self, shape: Shape, seconds: float) -> None:
        """Note a run of this shape."""
        if shape != self._shape:
            self._shape, self._first, self._building, self._wasted = shape, seconds, None, 0.0
        elif self._building is None:
            self._building = max(0.0, self._first - seconds)
        self._last = seconds

    def wasted(self, shape: Shape, images: int) -> None:
        """Note that so many images of the last run, if it had this shape, were no padding."""
        if shape == self._shape:
            self._wasted = 0.0 if images == shape[0] else self._wasted + self._last * (1 - images / shape[0])

    def forget(self) -> None:
        """Note that the plans are those of another shape now."""
        self._shape = None
