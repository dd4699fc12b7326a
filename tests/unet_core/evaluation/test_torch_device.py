"""Names of PyTorch's devices: those that there are, and those that are refused."""

import pytest
import torch

from runtime.errors import DeviceError
from unet_core.evaluation.torch_device import torch_device


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:x", "cuda:", "cuda:1000", "cpu:0", ""])
def test_names_of_no_device(name):
    with pytest.raises(DeviceError) as error:
        torch_device(name)
    assert str(error.value) == f"device {name!r}: is no device of PyTorch; expected auto, cpu, cuda or cuda:N"


def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(DeviceError) as error:
        torch_device("cuda:999")
    assert str(error.value).startswith("device 'cuda:999': PyTorch cannot use it (")
    assert str(error.value).endswith("); expected auto, cpu, cuda or cuda:N")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, there, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert torch_device("auto") == torch.device(kind)
    assert torch_device("cpu") == torch.device("cpu")
