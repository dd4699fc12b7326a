"""Device: one place to run, by the name that users give it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from runtime.errors import DeviceError
from runtime.support.cpu_count import available_threads as available_threads

Kind = Literal["tensorrt", "cuda", "cpu"]

PROVIDER: Mapping[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One place to run: its kind, and which GPU."""

    kind: Kind
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


def candidates(device: str) -> list[Device]:
    """Parse "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "tensorrt:1" to the devices to try, best first.

    Raises:
        DeviceError: none of these.
    """
    if not isinstance(device, str):
        raise DeviceError(f"device {device!r}: expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
    if device == "auto":
        return [Device(kind="tensorrt"), Device(kind="cuda"), Device(kind="cpu")]
    kind, separator, index = device.partition(":")
    if kind not in get_args(Kind) or (separator and (kind == "cpu" or not index.isdecimal() or len(index) > 3)):
        raise DeviceError(f"device {device!r}: expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
    return [Device(kind=kind, index=int(index or 0))]  # type: ignore[arg-type]
