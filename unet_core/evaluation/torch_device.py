"""The PyTorch device that training and evaluation run on."""

import re

import torch

from runtime.devices.availability import device_name
from runtime.errors import DeviceError

EXPECTED = "expected auto, cpu, gpu, cuda or cuda:N"


def torch_device(device: str | int) -> torch.device:
    """The PyTorch device for "auto", "cpu", "cuda" or "cuda:N"; "gpu", "gpu:N" and the number N are CUDA's, too.

    Raises:
        DeviceError: the device does not exist, or PyTorch cannot use it.
    """
    name = re.sub(r"^gpu(?=$|:)", "cuda", device_name(device))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise DeviceError(f"device {device!r}: is no device of PyTorch; {EXPECTED}")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"device {device!r}: PyTorch cannot use it ({reason}); {EXPECTED}") from error
    return found
