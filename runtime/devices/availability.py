"""Availability: which devices work here, why another one does not, and the choice among them.

ONNX Runtime lists providers that cannot run on the machine at hand and falls back to the CPU with no more than a log
line. So nothing that it claims is believed: the driver and the libraries are looked for before a session is made, and
the provider of every node is looked up afterwards.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import onnxruntime

from runtime.devices.device import Device
from runtime.devices.registry import BACKENDS
from runtime.errors import DeviceError

T = TypeVar("T")


def candidates(device: str) -> list[Device]:
    """Parse a device's name, such as "auto", "cpu" or "cuda:1", to the devices to try, best first.

    Raises:
        DeviceError: there is no such device.
    """
    names = ["auto"]
    for backend in reversed([*BACKENDS.values()]):
        names += [backend.kind, f"{backend.kind}:N"] if backend.numbered else [backend.kind]
    wrong = DeviceError(f"device {device!r}: expected {', '.join(names[:-1])} or {names[-1]}")
    if not isinstance(device, str):
        raise wrong
    if device == "auto":
        return [Device(kind=kind, numbered=backend.numbered) for kind, backend in BACKENDS.items()]
    kind, separator, index = device.partition(":")
    chosen = BACKENDS.get(kind)
    if chosen is None or (separator and not (chosen.numbered and index.isdecimal() and len(index) <= 3)):
        raise wrong
    return [Device(kind=kind, index=int(index or 0), numbered=chosen.numbered)]


def unavailable_reason(device: Device) -> str | None:
    """Return what keeps a device from running here, with the way to mend it; None if nothing was found missing."""
    backend = BACKENDS[device.kind]
    if backend.provider not in onnxruntime.get_available_providers():
        return (
            f"the installed ONNX Runtime {onnxruntime.__version__} is built without {backend.provider}; "
            "pip uninstall onnxruntime, then install unet-deploy with its extra [gpu] (Linux or Windows)"
        )
    return backend.unavailable_reason(device)


def choose(
    devices: Sequence[Device], attempt: Callable[[Device], T], build_in_background: Callable[[Device], bool]
) -> tuple[Device, T, list[tuple[Device, str]], list[Device]]:
    """Try devices, best first; one that has to `build_in_background` comes after the next one, and only if that fails.

    Returns the device, what `attempt` gave for it, what was passed over and why (in the order of `devices`), and what
    was put off and not tried.

    Raises:
        DeviceError: `attempt` raised it for the last device.
    """
    order = list(devices)
    late = [device for device in order[:-1] if build_in_background(device)]
    for device in late:
        place = order.index(device)
        order[place], order[place + 1] = order[place + 1], order[place]
    refused: dict[Device, str] = {}
    for device in order:
        try:
            found = attempt(device)
        except DeviceError as refusal:
            if device == order[-1]:
                raise
            refused[device] = str(refusal).removeprefix(f"device {device}: ")
            continue
        skipped = [(other, refused[other]) for other in devices if other in refused]
        return device, found, skipped, [other for other in late if other != device and other not in refused]
    raise AssertionError("no device was given")
