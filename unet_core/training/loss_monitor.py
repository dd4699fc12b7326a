"""LossMonitor: the mean loss of an epoch, the end of a run whose loss is not finite; LossTrend: losses that rise."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.errors import NotFiniteError

if TYPE_CHECKING:
    from torch import Tensor


LOOKS = (20, 40, 80, 160)
"""Numbers of steps after which `LossTrend` looks at the losses."""

FIRST, LAST = 3, 10
"""Numbers of losses that are compared: of the first steps, and of those before a look."""

RISE = 1.25
"""Ratio of their means above which a loss rises."""


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


class LossTrend:
    """Tells once if the loss rises from the first steps, as it does where the learning rate is too high.

    That is said when, at step 20, 40, 80 or 160, each of the last ten losses is above each of the first three, and
    their mean by a fourth. Losses that only scatter do so once in 286 times, and hardly ever by that much.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rises = False
        self._total, self._seen = 0.0, 0
        self._epoch: LossMonitor | None = None

    def look(self, epoch: LossMonitor) -> bool:
        """Look at the sums of an epoch after a step; returns True once, if the loss rises."""
        if epoch is not self._epoch:
            self._epoch, self._total, self._seen = epoch, 0.0, 0
        if epoch.seen == self._seen or len(self.losses) >= LOOKS[-1]:
            return False
        self.losses.append((epoch.total - self._total) / (epoch.seen - self._seen))
        self._total, self._seen = epoch.total, epoch.seen
        if self.rises or len(self.losses) not in LOOKS:
            return False
        first, last = self.losses[:FIRST], self.losses[-LAST:]
        self.rises = min(last) > max(first) and sum(last) / LAST > RISE * sum(first) / FIRST
        return self.rises

    def note(self, lr: float) -> str:
        """Describe a loss that rises at a learning rate."""
        first, last = sum(self.losses[:FIRST]) / FIRST, sum(self.losses[-LAST:]) / LAST
        return (
            f"the loss rises from {first:.4g} to {last:.4g} in the first {len(self.losses)} steps; --lr {lr:g} is "
            f"probably too high, start again with --lr {lr / 10:g}"
        )


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
