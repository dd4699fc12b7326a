"""AutoSession: serves on CUDA while TensorRT's engine is built."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.devices.device import Device
from runtime.devices.placement import Node
from runtime.devices.session import CLOSED, BatchOutput, Session
from runtime.errors import ClosedError, one_line
from runtime.support.concurrency import Worker


def switch_pending(serving: str, better: Device) -> str:
    """Return the text of `Report.switch` while the engine of a better device is built."""
    return f"{better} is being built, {serving} serves until then"


def switch_failed(serving: str, better: Device, reason: str) -> str:
    """Return the text of `Report.switch` after a build that failed."""
    return f"stayed on {serving}, since {better} failed: {reason}"


def switch_done(before: str, better: Device, seconds: float) -> str:
    """Return the text of `Report.switch` once the better device serves, with the duration of its build."""
    return f"switched from {before} to {better} after {seconds:.0f} s"


class AutoSession(Session):
    """The best session there is, and another one for what it does not take; the best one may come later.

    Until `build` has given a session, and for shapes that the best one does not take, `other` serves: it is opened when
    it is first needed, and kept, since TensorRT takes the shapes of its profile only.
    """

    def __init__(self, *, best: Session | None = None, other: Session | None = None, open_other: Callable[[], Session]):
        self._best, self._other, self._open_other = best, other, open_other
        self._lock = threading.Lock()
        self._builder: Worker | None = None
        self._closed = False

    @property
    def device(self) -> Device:  # type: ignore[override]
        """The device that most runs go to now."""
        return self._now().device

    @property
    def nodes(self) -> tuple[Node, ...]:  # type: ignore[override]
        """The placement of nodes in the session that serves now."""
        return self._now().nodes

    def build(self, open_best: Callable[[], Session], done: Callable[[Session | None, str], None]) -> None:
        """Open the best session in another thread and switch to it.

        `done` is called there when it serves, with "", or when it failed, with None and the reason. Nothing is raised.
        The end of the program waits for it: a build cannot be stopped, and Python must not be taken down around it.
        """

        def work() -> None:
            try:
                best = open_best()
            except Exception as error:  # a build that fails must never harm the predictions
                if not self._closed:
                    done(None, one_line(str(error)))
                return
            with self._lock:
                closed = self._closed
                if not closed:
                    self._best = best
            if closed:
                best.close()
            else:
                done(best, "")

        self._builder = Worker("unet-tensorrt-build", work, stop=lambda: None)

    def run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Answer a batch on the best session that takes it; see `Session.run`."""
        return self._taking(batch).run(batch)

    def run_steady(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Answer a batch as `run` does; see `Session.run_steady`."""
        return self._taking(batch).run_steady(batch)

    def run_dlpack(self, tensor: Any) -> Any:
        """Answer a batch on the device; see `Session.run_dlpack`."""
        value = self._now()._imported(tensor)
        batch, height, width, _ = value.shape()
        best = self._best
        if best is not None and best.takes_whole((batch, height, width)):
            return best.run_dlpack(value)
        return self._opened_other().run_dlpack(value)

    def prepare(self) -> None:
        """Wait for the build, if there is one, and run one batch."""
        if self._builder is not None:
            self._builder.join()
        self._now().prepare()

    def close(self) -> None:
        """Close both; an engine that is still being built is closed when it is done."""
        with self._lock:
            self._closed = True
            opened = self._best, self._other
        for session in opened:
            if session is not None:
                session.close()

    def _taking(self, batch: NDArray[np.uint8]) -> Session:
        best = self._best
        if best is not None and best.takes((batch.shape[0], batch.shape[1], batch.shape[2])):
            return best
        return self._opened_other()

    def _now(self) -> Session:
        return self._best or self._opened_other()

    def _opened_other(self) -> Session:
        with self._lock:
            if self._closed:
                raise ClosedError(CLOSED)
            self._other = self._other or self._open_other()
            return self._other
