"""The CPU: ONNX Runtime's own kernels, which are always there."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.backend import Backend, ProviderChain, SessionRequest
from runtime.devices.device import Device
from runtime.devices.session import BatchOutput, Session
from runtime.support.cpu_count import available_threads

CPU_CHAIN: ProviderChain = [("CPUExecutionProvider", {})]
"""The last link of every chain: what no other provider takes runs on the CPU."""


class CpuSession(Session):
    """A model on the CPU, with as many runs at once as there are cores: others wait.

    More of them would take no less time, but each would hold its own activations.
    """

    def __init__(self, inference: Any, device: Device, card: ModelCard) -> None:
        super().__init__(inference, device, card)
        self._places = threading.Semaphore(available_threads())

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        with self._places:
            return super()._run(batch)

    def _run_value(self, value: Any) -> Any:
        with self._places:
            return super()._run_value(value)


def _open(request: SessionRequest) -> Session:
    return request.checked(CpuSession(request.open_inference(CPU_CHAIN), request.device, request.card))


def _always_available(_: Device) -> None:
    return None


CPU = Backend(
    kind="cpu",
    provider="CPUExecutionProvider",
    tolerance=1e-4,  # 1e-7 to 1e-6 is seen; this leaves room for other kernels and still shows a damaged weight
    reference=True,
    on_cpu=True,
    numbered=False,
    unavailable_reason=_always_available,
    open=_open,
)
