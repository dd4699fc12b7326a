"""Backend: everything that the library has to know about one kind of device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime.card import ModelCard
from runtime.devices.device import Device
from runtime.devices.session import Note, Session, open_inference, session_options
from runtime.errors import ModelError
from runtime.model_file.digest import graph_digest
from runtime.options import ProviderOptions

S = TypeVar("S", bound=Session)

ProviderChain = list[tuple[str, dict[str, str]]]
"""Execution providers to ask ONNX Runtime for, best first, each with its options."""


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """Everything that is needed to open a model's file on a device.

    Attributes:
        path: the .onnx file.
        device: where to run; its kind is the backend's.
        card: the file's card.
        options: the user's options for devices.
        threads: CPU threads of one run.
        note: is told of work that takes minutes.
        check: replays the golden sample on the new session, and raises where its answer is wrong.
        graph_digest: hash of the file's graph and weights, if it was computed, else "".
    """

    path: Path
    device: Device
    card: ModelCard
    options: ProviderOptions
    threads: int
    note: Note = print
    check: Callable[[Session], None] | None = None
    graph_digest: str = ""

    def model_digest(self) -> str:
        """Return the hash of the file's graph and weights, which is computed only if it is not known yet.

        Raises:
            ModelError: the file cannot be read, or is not a complete ONNX file.
        """
        return self.graph_digest or graph_digest(self.path)

    def checked(self, session: S) -> S:
        """Replay the golden sample on a new session, and return the session."""
        if self.check is not None:
            self.check(session)
        return session

    def open_inference(self, chain: ProviderChain, entries: Mapping[str, str] | None = None) -> Any:
        """Open ONNX Runtime's session on these providers; see `runtime.devices.session.open_inference`.

        `entries` are further options of the session, by ONNX Runtime's names.

        Raises:
            ModelError: the card says that the file takes one shape, and the graph takes another one.
        """
        options = session_options(self.threads, self.options)
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        inference = open_inference(self.path, self.device, chain, options)
        fixed = self.card.input.fixed_shape
        if fixed is not None and (found := tuple(inference.get_inputs()[0].shape[:3])) != fixed:
            raise ModelError(
                f"{self.path}: its graph takes batches of {found} (batch, height, width), its card says {fixed}; "
                "export it again"
            )
        return inference


def _needs_no_build(_: SessionRequest) -> bool:
    return False


def _every_file(_: ModelCard, __: ProviderOptions) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One kind of device. A new one is one file that makes such a record, and one entry in `registry.BACKENDS`.

    Attributes:
        kind: the name that users give, "cuda".
        provider: ONNX Runtime's name of the execution provider.
        tolerance: largest |p - golden| of an fp32 file that passes there.
        engine: the program that runs the model.
        reference: True for the kernels that every file is checked on when it is exported: they take every file, and a
            wrong answer is the file's fault.
        on_cpu: True if it runs on the CPU: batches gain nothing.
        numbered: True if a machine may have several, "cuda:1".
        units: processors among which the name chooses, "openvino:GPU"; the first one is taken by default.
        chosen_by_auto: True for a card whose file device="auto" may run there, by the user's options.
        one_profile: True if a session takes certain shapes only, so that the next best device serves the others.
        unavailable_reason: what keeps a device from running here, with the way to mend it; None if nothing was found.
        open: opens a session that has passed `SessionRequest.check`.
        must_build: True if opening it takes minutes, for something that nobody has built yet.
    """

    kind: str
    provider: str
    tolerance: float
    engine: str = "ONNX Runtime"
    reference: bool = False
    on_cpu: bool = False
    numbered: bool = True
    units: tuple[str, ...] = ()
    chosen_by_auto: Callable[[ModelCard, ProviderOptions], bool] = _every_file
    one_profile: bool = False
    unavailable_reason: Callable[[Device], str | None]
    open: Callable[[SessionRequest], Session]
    must_build: Callable[[SessionRequest], bool] = _needs_no_build
