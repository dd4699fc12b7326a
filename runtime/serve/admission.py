"""Admission: the bounded number of requests that a worker takes at once, and who is turned away."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.serve.problems import RequestRefusedError

MAX_RETRY = 60
"""Most seconds that a client is told to wait."""


class Admission:
    """Counts the requests that wait or run; all of it happens in the event loop's thread.

    Attributes:
        count: requests that wait or run now.
        seconds: moving average of the time that a request took.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count, self.seconds = 0, 0.0

    def refusal(self) -> RequestRefusedError:
        """Return the error of a request that is turned away: a full queue is worked off in the time of one request."""
        wait = min(MAX_RETRY, max(1, math.ceil(self.seconds)))
        return RequestRefusedError(
            429,
            f"server: {self.capacity} requests wait or run already; ask again in {wait} s",
            Retry_After=str(wait),
        )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for one request.

        Raises:
            RequestRefusedError: there is none.
        """
        if self.count >= self.capacity:
            raise self.refusal()
        self.count += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.count -= 1
            self.seconds += 0.1 * (time.monotonic() - began - self.seconds)
