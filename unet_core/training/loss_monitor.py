"""LossMonitor: ends a run whose losses are not finite."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.errors import NotFiniteError

if TYPE_CHECKING:
    from torch import Tensor


class LossMonitor:
    """Looks at every loss, one step late, so that a GPU never waits for the CPU to have looked."""

    def __init__(self, total: float = 0.0, seen: int = 0) -> None:
        self.total, self.seen = total, seen
        self._pending: tuple[Callable[[], float], int, Callable[[], str]] | None = None
        self._failure: NotFiniteError | None = None

    @classmethod
    def of_process(cls, rank: int, count: int, sums: Sequence[tuple[float, int]]) -> "LossMonitor":
        """Go on with a process's own sums; with those of another number of processes, the first takes all."""
        if len(sums) == count:
            return cls(*sums[rank])
        if rank:
            return cls()
        return cls(sum(total for total, _ in sums), sum(seen for _, seen in sums))

    def add(self, loss: "Tensor", count: int, where: Callable[[], str]) -> None:
        """A mean loss over `count` images; `where` tells which, if need be. Counts the one before it."""
        self._count()
        self._pending = (_arriving(loss.detach()), count, where)

    def look(self) -> None:
        """Count the loss that was added last too; raises as `check`."""
        self._count()
        self.check()

    def check(self) -> None:
        """Look at what was counted.

        Raises:
            NotFiniteError: a loss is infinite or NaN.
        """
        if self._failure is not None:
            raise self._failure

    def _count(self) -> None:
        if self._pending is None or self._failure is not None:
            return
        loss, count, where = self._pending
        self._pending = None
        value = loss()
        if math.isfinite(value):
            self.total += value * count
            self.seen += count
        else:
            self._failure = NotFiniteError(f"{where()}: the loss became {value}, look at these images")

    @property
    def mean(self) -> float:
        """The mean loss of an image so far."""
        return self.total / max(self.seen, 1)


def _arriving(loss: "Tensor") -> Callable[[], float]:
    """A loss on its way to the CPU: asking for it waits for that loss alone, not for what was queued since."""
    if not loss.is_cuda:
        return loss.item
    import torch

    place = torch.empty((), dtype=loss.dtype, pin_memory=True)
    place.copy_(loss, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> float:
        arrived.synchronize()
        return place.item()

    return wait
