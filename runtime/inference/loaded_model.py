"""LoadedModel: a model on the best device that works, or on the one that was asked for; it says where it runs."""

import ctypes
import logging
import os
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime

from runtime.card import ModelCard
from runtime.devices import availability
from runtime.devices.auto_session import AutoSession, switch_done, switch_failed, switch_pending
from runtime.devices.availability import candidates
from runtime.devices.device import Device
from runtime.devices.registry import BACKENDS, golden_tolerance, must_build, open_session
from runtime.devices.report import Report
from runtime.devices.session import Session, reason_of
from runtime.errors import DeviceError, ModelError, UnetError
from runtime.inference.batcher import GPU_BATCH
from runtime.model_file.digest import Integrity
from runtime.model_file.golden import Golden
from runtime.options import ProviderOptions

LOG = logging.getLogger("runtime")

_alive: weakref.WeakSet["LoadedModel"] = weakref.WeakSet()


def _keep_alive() -> None:
    """After a fork, ONNX Runtime's sessions must never be taken apart: that would wait for threads that are gone."""
    for model in _alive:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_alive)


class LoadedModel:
    """A model's session and where it runs; with "auto" both may change when a TensorRT engine is built.

    Nothing that it holds refers back to it, so its memory is given back as soon as it is dropped.

    Attributes:
        card: the file's card.
        session: the `Session` that answers batches now.
        report: the `Report` of where it runs, what was skipped and why.

    Raises:
        ModelError: the model answers its golden sample wrongly on the CPU, or ONNX Runtime cannot run it.
        DeviceError: an explicit device does not run here.
    """

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        golden: Golden,
        integrity: Integrity,
        device: str,
        threads: int,
        options: ProviderOptions,
    ) -> None:
        self.card = card
        self._factory = SessionFactory(device, path, card, golden, integrity, threads, options)
        self.session: Session
        self.report: Report
        self._open(device)
        _alive.add(self)

    @property
    def on_cpu(self) -> bool:
        """True if runs go to the CPU. Takes no lock, so that it can be asked after a fork."""
        return BACKENDS[self.report.device.partition(":")[0]].on_cpu

    @property
    def batch_size(self) -> int:
        """Number of images that run together: on a CPU more than one gain nothing. A file of one shape has its own."""
        if self.card.input.fixed_batch is not None:
            return self.card.input.fixed_batch
        return 1 if self.on_cpu else min(GPU_BATCH, self._factory.options.max_batch)

    def _open(self, device: str) -> None:
        factory, devices = self._factory, candidates(device, self.card, self._factory.options)
        chosen, (session, error), skipped, late = availability.choose(
            devices, factory.open, factory.build_in_background
        )
        self.session = session
        self.report = replace(
            factory.report(session, error),
            requested=device,
            skipped=tuple((other.kind, reason) for other, reason in skipped),
        )
        if skipped and availability.deserve_warning(self.card, [other for other, _ in skipped]):
            availability.warn_once(self.report.device, self.report.skipped)
        if late:
            self._build_later(session, late[0])
        elif chosen != devices[-1] and BACKENDS[chosen.kind].one_profile:
            following = devices[devices.index(chosen) + 1]
            # Capturing a CUDA graph fails while TensorRT works in another thread.
            other = replace(factory, options=replace(factory.options, cuda_graphs=False))
            self.session = AutoSession(best=session, open_other=lambda: other.open(following)[0])

    def _build_later(self, session: Session, device: Device) -> None:
        """Let a session serve until the engine of a better device is built."""
        start, before, errors = time.monotonic(), self.report, [0.0]
        factory, here = self._factory, weakref.ref(self)
        self.report = replace(before, switch=switch_pending(before.device, device))
        auto = self.session = AutoSession(other=session, open_other=lambda: session)

        def open_best() -> Session:
            best, errors[0] = factory.open(device)
            return best

        def done(best: Session | None, reason: str) -> None:
            if best is None:
                report = replace(before, switch=switch_failed(before.device, device, reason))
            else:
                text = switch_done(before.device, device, time.monotonic() - start)
                report = factory.report(best, errors[0])
                report = replace(report, requested=before.requested, skipped=before.skipped, switch=text)
            model = here()
            if model is not None:
                model.report = report
                LOG.warning(report.switch)

        auto.build(open_best, done)


@dataclass(frozen=True)
class SessionFactory:
    """Opens a model's file on any device; `requested` is the name of the device that the user gave."""

    requested: str
    path: Path
    card: ModelCard
    golden: Golden
    integrity: Integrity
    threads: int
    options: ProviderOptions

    def build_in_background(self, device: Device) -> bool:
        """Return True if another device should serve until this one's engine is built."""
        return (
            self.options.background
            and self._refusal_reason(device) is None
            and must_build(self.path, device, self.card, self.options, self.integrity.graph)
        )

    def open(self, device: Device) -> tuple[Session, float]:
        """Open a session and replay the golden sample on it; return it with the largest error of the replay.

        Raises:
            DeviceError, ModelError: as `LoadedModel`.
        """
        reason = self._refusal_reason(device)
        if reason:
            raise DeviceError(f"device {device}: {reason}")
        errors = [0.0]

        def check(session: Session) -> None:
            tolerance = golden_tolerance(self.card, device.kind, self.golden, bf16=session.bf16)
            exact = BACKENDS[device.kind].on_cpu and not session.bf16
            measure = self.golden.error if exact else self.golden.largest_error
            try:
                errors[0] = measure(lambda images: session.run(images).probability, self.card.input.fixed_size)
            except DeviceError as error:  # there is no smaller batch: this file runs for no image
                here = BACKENDS[device.kind].reference
                advice = "copy or export it again" if here else "if it fails on the CPU too, the file is damaged"
                raise self._failure(
                    device, f"cannot run the golden sample ({reason_of(error.__cause__ or error)}); {advice}"
                ) from error
            if errors[0] > tolerance:
                raise self._failure(
                    device,
                    f"answers the golden sample wrongly (off by {errors[0]:.2g}, expected at most {tolerance:g}); "
                    "export the model again, update the driver or choose another device",
                )

        try:
            session = open_session(
                self.path,
                device,
                self.card,
                self.options,
                note=LOG.warning,
                threads=self.threads,
                check=check,
                graph_digest=self.integrity.graph,
            )
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = f"{BACKENDS[device.kind].engine} cannot run the model ({reason_of(error)})"
            raise self._failure(device, reason) from error
        return session, errors[0]

    def report(self, session: Session, error: float) -> Report:
        """Describe where a session runs; `error` is the largest one of its golden sample."""
        return Report(
            requested=str(session.device),
            device=str(session.device),
            provider=BACKENDS[session.device.kind].provider,
            nodes=session.placement(),
            golden_error=error,
            golden_limit=golden_tolerance(self.card, session.device.kind, self.golden, bf16=session.bf16),
            integrity=self.integrity.told,
            threads=self.threads,
            onnxruntime=onnxruntime.__version__,
            engine=session.engine,
            arithmetic=session.arithmetic,
            node_placement=session.nodes,
        )

    def _refusal_reason(self, device: Device) -> str | None:
        return availability.refusal_reason(device, self.card, self.path.name, self.requested)

    def _failure(self, device: Device, what: str) -> UnetError:
        """Make the error of a model that fails on a device: on the CPU the file is to blame, elsewhere the device."""
        if BACKENDS[device.kind].reference:
            return ModelError(f"{self.path}: {what}")
        return DeviceError(f"device {device}: {what}")
