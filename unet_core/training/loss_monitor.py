"""LossMonitor: the mean loss of an epoch, and the end of a run whose loss is not finite."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.errors import NotFiniteError

if TYPE_CHECKING:
    from torch import Tensor


class LossMonitor:
    """Sum of an epoch's losses. Each loss is read one step late, so that the GPU never waits for the CPU."""

    def __init__(self, total: float = 0.0, seen: int = 0) -> None:
        self.total, self.seen = total, seen
        self._pending: tuple[Callable[[], float], int, Callable[[], str]] | None = None
        self._failure: NotFiniteError | None = None

    @classmethod
    def of_process(cls, rank: int, count: int, sums: Sequence[tuple[float, int]]) -> "LossMonitor":
        """Continue a process's own sums; after a change of the number of processes the first one takes all."""
        if len(sums) == count:
            return cls(*sums[rank])
        if rank:
            return cls()
        return cls(sum(total for total, _ in sums), sum(seen for _, seen in sums))

    def add(self, loss: "Tensor", count: int, where: Callable[[], str]) -> None:
        """Add a mean loss over `count` images, and count the one before; `where` names the images for an error."""
        self._count()
        self._pending = (start_copy(loss.detach()), count, where)

    def look(self) -> None:
        """Count the loss that was added last too; raises as `check`."""
        self._count()
        self.check()

    def check(self) -> None:
        """Check the losses that were counted.

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
        """The mean loss of an image so far; 0 before the first."""
        return self.total / max(self.seen, 1)


def start_copy(loss: "Tensor") -> Callable[[], float]:
    """Start to copy a loss to the CPU; the returned function waits for that loss alone, not for later work."""
    if not loss.is_cuda:
        return loss.item
    import torch

    copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
    copy.copy_(loss, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> float:
        arrived.synchronize()
        return copy.item()

    return wait
