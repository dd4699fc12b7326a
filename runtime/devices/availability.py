"""Devices that work here, why others do not, the choice among them, and the warning about devices that were skipped.

ONNX Runtime lists providers that cannot run on the machine at hand and falls back to the CPU with no more than a log
line. So nothing that it claims is believed: the driver and the libraries are looked for before a session is made, and
the provider of every node is looked up afterwards.
"""

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import SupportsIndex, TypeVar

import onnxruntime

from runtime.card import ModelCard
from runtime.devices import nvidia
from runtime.devices.device import Device
from runtime.devices.registry import BACKENDS
from runtime.devices.report import grouped
from runtime.errors import DeviceError, DeviceWarning, warn_user
from runtime.options import ProviderOptions

T = TypeVar("T")


def device_name(device: object) -> str:
    """Return the name of a device in lower case; a number, or its text, is that of a GPU, as in PyTorch: "gpu:0"."""
    if isinstance(device, SupportsIndex) and not isinstance(device, bool):
        return f"gpu:{operator.index(device)}"
    if not isinstance(device, str):
        return repr(device)
    return f"gpu:{device}" if device.isdecimal() else device.lower()


def candidates(
    device: str | int, card: ModelCard | None = None, options: ProviderOptions | None = None
) -> list[Device]:
    """Parse a device's name, such as "auto", "cpu", "gpu" or "cuda:1", to the devices to try, best first.

    With "auto", those that gain nothing for a file of this `card`, by these `options`, are left out.

    Raises:
        DeviceError: there is no such device.
    """
    names = ["auto", "gpu", "gpu:N"]
    for backend in reversed([*BACKENDS.values()]):
        names += [backend.kind, f"{backend.kind}:N"] if backend.numbered else [backend.kind]
    wrong = DeviceError(f"device {device!r}: expected {', '.join(names[:-1])} or {names[-1]}")
    name = device_name(device)
    if name == "auto":
        return [
            Device(kind=kind, numbered=backend.numbered, unit=(backend.units or ("",))[0])
            for kind, backend in BACKENDS.items()
            if card is None or backend.chosen_by_auto(card, options or ProviderOptions())
        ]
    kind, separator, index = name.partition(":")
    chosen = {
        one: backend for one, backend in BACKENDS.items() if one == kind or (kind == "gpu" and not backend.on_cpu)
    }
    units = BACKENDS[kind].units if kind in chosen else ()
    if units and (index or not separator):
        unit = index.upper() or units[0]
        if unit not in units:
            raise wrong
        return [Device(kind=kind, numbered=False, unit=unit)]
    is_numbered = all(backend.numbered for backend in chosen.values())
    if not chosen or (separator and not (is_numbered and index.isdecimal() and len(index) <= 3)):
        raise wrong
    return [Device(kind=one, index=int(index or 0), numbered=backend.numbered) for one, backend in chosen.items()]


def unavailable_reason(device: Device) -> str | None:
    """Return what keeps a device from running here, with the way to mend it; None if nothing was found missing."""
    backend = BACKENDS[device.kind]
    if backend.engine == "ONNX Runtime" and backend.provider not in onnxruntime.get_available_providers():
        return (
            f"the installed ONNX Runtime {onnxruntime.__version__} is built without {backend.provider}; "
            "pip uninstall onnxruntime, then install unet-deploy with its extra [gpu] (Linux or Windows)"
        )
    return backend.unavailable_reason(device)


def refusal_reason(device: Device, card: ModelCard, name: str, requested: str) -> str | None:
    """Return what keeps a model's file, of this name, from running on a device; None if nothing was found.

    `requested` is the name of the device that the user gave: with "auto", what is missing for a GPU is told before the
    fact that a file for CPUs runs on no GPU.
    """
    if card.target == "cpu" and not BACKENDS[device.kind].reference:
        missing = unavailable_reason(device) if requested == "auto" else None
        return missing or f"{name} is written for CPUs and ONNX Runtime; take the file without --target cpu"
    return unavailable_reason(device)


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


def deserve_warning(card: ModelCard, skipped: Sequence[Device]) -> bool:
    """Return True if skipping these devices costs speed that is there to be had.

    That is where one of them works but for this file, or where this machine has a GPU and the file, if it is not one
    for CPUs, uses none.
    """
    if any(unavailable_reason(device) is None for device in skipped):
        return True
    gpus = {kind for kind, backend in BACKENDS.items() if not backend.on_cpu}
    return card.target != "cpu" and gpus <= {device.kind for device in skipped} and nvidia.is_present()


@lru_cache(maxsize=32)
def warn_once(device: str, skipped: tuple[tuple[str, str], ...]) -> None:
    """Warn of skipped devices, once a process, and blame the line of the user's own code that led here."""
    warn_user(f"running on {device}; {'; '.join(grouped(skipped))}", DeviceWarning)
