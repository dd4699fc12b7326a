"""The CPU: ONNX Runtime's own kernels, which are always there."""

from runtime.devices.backend import Backend, ProviderChain, SessionRequest
from runtime.devices.device import Device
from runtime.devices.session import Session

CPU_CHAIN: ProviderChain = [("CPUExecutionProvider", {})]
"""The last link of every chain: what no other provider takes runs on the CPU."""


def _open(request: SessionRequest) -> Session:
    return request.checked(Session(request.open_inference(CPU_CHAIN), request.device, request.card))


def _always_available(_: Device) -> None:
    return None


CPU = Backend(
    kind="cpu",
    provider="CPUExecutionProvider",
    tolerance=1e-4,  # 1e-7 to 1e-6 is seen; this leaves room for other kernels and still shows a damaged weight
    on_cpu=True,
    numbered=False,
    unavailable_reason=_always_available,
    open=_open,
)
