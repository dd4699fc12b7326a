"""Opening a model on the best device that works, or on the one that was asked for, and saying where it runs."""

import ctypes
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices import availability
from runtime.devices.auto_session import AutoSession
from runtime.devices.device import PROVIDER, Device, candidates
from runtime.devices.opening import must_build, open_session
from runtime.devices.report import Report, grouped
from runtime.devices.session import Session
from runtime.errors import ClosedError, DeviceError, DeviceWarning, ModelError, UnetError, one_line
from runtime.inference.pipeline import NetworkOutput, PreparedImage, infer
from runtime.model_file.golden import Golden, NetworkFunction, golden_tolerance
from runtime.options import ProviderOptions

LOG = logging.getLogger("runtime")

GPU_BATCH = 8
"""Images that run together on a GPU, unless told otherwise."""

_alive: weakref.WeakSet["LoadedModel"] = weakref.WeakSet()


def _keep_alive() -> None:
    """After a fork, ONNX Runtime's sessions must never be taken apart: that would wait for threads that are gone."""
    for opened in _alive:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_alive)


class LoadedModel:
    """A model's session and where it runs; with "auto" both may change when a TensorRT engine is built.

    Nothing that it holds refers back to it, so its memory is given back as soon as it is dropped.

    Raises:
        ModelError: it answers its golden sample wrongly on the CPU, or ONNX Runtime cannot run it.
        DeviceError: an explicit device does not run here.
    """

    def __init__(
        self, path: Path, card: ModelCard, golden: Golden, device: str, threads: int, options: ProviderOptions
    ) -> None:
        self._opener = SessionFactory(device, path, card, golden, threads, options)
        self.session: Session
        self.report: Report
        self._open(device)
        _alive.add(self)

    @property
    def kind(self) -> str:
        """ "cpu", "cuda" or "tensorrt": where most runs go now. Takes no lock, so that it can be asked after a fork."""
        return self.report.device.partition(":")[0]

    @property
    def batch_size(self) -> int:
        """Images that run together: on a CPU more than one gain nothing."""
        return 1 if self.kind == "cpu" else min(GPU_BATCH, self._opener.options.max_batch)

    def infer(self, loaded: Sequence[PreparedImage], stopped: threading.Event | None = None) -> list[NetworkOutput]:
        """Ask the network about images of one key together; see `runtime.inference.pipeline.infer`.

        Raises:
            ClosedError: `stopped` was set; it is looked at before each run, of which an image in tiles takes many.
        """

        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            if stopped is not None and stopped.is_set():
                raise ClosedError("stream: was stopped")
            return self.session.run(batch)

        return infer(run, loaded, len(self._opener.card.output.classes), self.batch_size)

    def _open(self, device: str) -> None:
        opener, devices = self._opener, candidates(device)
        chosen, (session, error), skipped, late = availability.choose(devices, opener.open, opener.build_in_background)
        self.session = session
        self.report = replace(
            opener.report(session, error),
            requested=device,
            skipped=tuple((other.kind, reason) for other, reason in skipped),
        )
        if skipped and opener.loses([other for other, _ in skipped]):
            _warn_once(self.report.device, self.report.skipped)
        if late:
            self._build_later(session, late[0])
        elif device == "auto" and chosen.kind == "tensorrt":
            cuda = devices[devices.index(chosen) + 1]
            # Capturing a CUDA graph fails while TensorRT works in another thread.
            other = replace(opener, options=replace(opener.options, cuda_graphs=False))
            self.session = AutoSession(best=session, open_other=lambda: other.open(cuda)[0])

    def _build_later(self, session: Session, device: Device) -> None:
        """Let a session serve until the engine of a better device is built."""
        start, before, errors = time.monotonic(), self.report, [0.0]
        opener, here = self._opener, weakref.ref(self)
        self.report = replace(before, switch=f"{device} is being built, {before.device} serves until then")
        auto = self.session = AutoSession(other=session, open_other=lambda: session)

        def open_best() -> Session:
            best, errors[0] = opener.open(device)
            return best

        def done(best: Session | None, reason: str) -> None:
            if best is None:
                report = replace(before, switch=f"stayed on {before.device}, since {device} failed: {reason}")
            else:
                text = f"switched from {before.device} to {device} after {time.monotonic() - start:.0f} s"
                report = opener.report(best, errors[0])
                report = replace(report, requested=before.requested, skipped=before.skipped, switch=text)
            opened = here()
            if opened is not None:
                opened.report = report
                LOG.warning(report.switch)

        auto.build(open_best, done)


@dataclass(frozen=True)
class SessionFactory:
    """What it takes to open a model's file on any device; `requested` is the user's word for it."""

    requested: str
    path: Path
    card: ModelCard
    golden: Golden
    threads: int
    options: ProviderOptions

    def build_in_background(self, device: Device) -> bool:
        """Whether another device should serve until this one's engine is built."""
        return (
            self.options.background
            and self._why_not(device) is None
            and must_build(self.path, device, self.card, self.options)
        )

    def open(self, device: Device) -> tuple[Session, float]:
        """Open a session on the device and replay the golden sample there: the session, and the largest error."""
        reason = self._why_not(device)
        if reason:
            raise DeviceError(f"device {device}: {reason}")
        errors = [0.0]
        try:
            session = open_session(
                self.path,
                device,
                self.card,
                self.options,
                note=LOG.warning,
                threads=self.threads,
                check=lambda run: errors.append(self._check_golden(device, run)),
            )
        except UnetError:
            raise
        except Exception as failure:  # ONNX Runtime's errors share no base class
            raise _wrong(self.path, device, f"ONNX Runtime cannot run the model ({_brief(failure)})") from failure
        return session, errors[-1]

    def loses(self, skipped: Sequence[Device]) -> bool:
        """Whether these devices are a loss: to a file for CPUs, those that would run another file."""
        return self.card.target != "cpu" or any(availability.unavailable_reason(device) is None for device in skipped)

    def _why_not(self, device: Device) -> str | None:
        if self.card.target == "cpu" and device.kind != "cpu":
            missing = availability.unavailable_reason(device) if self.requested == "auto" else None
            return missing or f"{self.path.name} is written for CPUs; take the file without --target cpu"
        return availability.unavailable_reason(device)

    def report(self, session: Session, error: float) -> Report:
        return Report(
            requested=str(session.device),
            device=str(session.device),
            provider=PROVIDER[session.device.kind],
            nodes=session.placement(),
            golden_error=error,
            threads=self.threads,
            onnxruntime=onnxruntime.__version__,
            node_placement=session.nodes,
        )

    def _check_golden(self, device: Device, run: NetworkFunction) -> float:
        error, tolerance = self.golden.error(run), golden_tolerance(self.card, device.kind)
        if error > tolerance:
            raise _wrong(
                self.path,
                device,
                f"answers the golden sample wrongly (off by {error:.2g}, expected at most {tolerance:g}); "
                "export the model again, update the driver or choose another device",
            )
        return error


def _wrong(path: Path, device: Device, what: str) -> UnetError:
    """What goes wrong on the CPU is the file's fault, elsewhere the device's."""
    return ModelError(f"{path}: {what}") if device.kind == "cpu" else DeviceError(f"device {device}: {what}")


@lru_cache(maxsize=32)
def _warn_once(device: str, skipped: tuple[tuple[str, str], ...]) -> None:
    text = f"running on {device}; {'; '.join(grouped(skipped))}"
    warnings.warn(text, DeviceWarning, stacklevel=_level_of_user() - 1)


def _level_of_user() -> int:
    """How many frames up, counted from here, the first one outside this package is: the line that a warning blames."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "runtime":
        level, frame = level + 1, frame.f_back
    return level


def _brief(error: Exception) -> str:
    return one_line(str(error))[:300]
