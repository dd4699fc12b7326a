"""Which ONNX Runtime execution provider runs, and why not another.

ONNX Runtime lists providers that cannot run on the machine at hand and falls back to the CPU with no more than a log
line. So nothing it claims is believed: the driver and the libraries are looked for before a session is made, and the
provider of every node is looked up afterwards.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import onnxruntime

from runtime.devices.device import PROVIDER, Device
from runtime.devices.nvidia import _driver_problem, _library_problem
from runtime.errors import DeviceError
from runtime.support.cpu_count import available_threads as available_threads


def unavailable_reason(device: Device) -> str | None:
    """What keeps a device from running here, with the way to mend it; None if nothing was found missing."""
    if device.kind == "cpu":
        return None
    if PROVIDER[device.kind] not in onnxruntime.get_available_providers():
        return (
            f"the installed ONNX Runtime {onnxruntime.__version__} is built without {PROVIDER[device.kind]}; "
            "pip uninstall onnxruntime, then install unet-deploy with its extra [gpu] (Linux or Windows)"
        )
    return _driver_problem(device.index) or _library_problem(device.kind)


T = TypeVar("T")


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
