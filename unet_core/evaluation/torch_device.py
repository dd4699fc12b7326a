"""The PyTorch device that training and evaluation run on."""

import re

import torch

from runtime.errors import DeviceError


def torch_device(name: str) -> torch.device:
    """The PyTorch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: the device does not exist, or PyTorch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise DeviceError(f"device {name!r}: is no device of PyTorch; expected auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"device {name!r}: PyTorch cannot use it ({reason}); expected auto, cpu, cuda or cuda:N"
        ) from error
    return device
