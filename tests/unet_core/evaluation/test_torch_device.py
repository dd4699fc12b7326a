"""Names of PyTorch's devices: those that there are, and those that are refused."""

import pytest
import torch

from runtime.errors import DeviceError
from unet_core.evaluation.torch_device import torch_device


@pytest.mark.parametrize("name", ["mps", "gpu:", "gpus", "tensorrt", "cuda:x", "cuda:", "cuda:1000", "cpu:0", ""])
def test_names_of_no_device(name):
    with pytest.raises(DeviceError) as error:
        torch_device(name)
    assert str(error.value) == f"device {name!r}: is no device of PyTorch; expected auto, cpu, gpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda:999", "gpu:999", "999", 999])
def test_a_gpu_that_is_not_there_is_one_line(name):
    with pytest.raises(DeviceError) as error:
        torch_device(name)
    assert str(error.value).startswith(f"device {name!r}: PyTorch cannot use it (")
    assert str(error.value).endswith("); expected auto, cpu, gpu, cuda or cuda:N")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpu", "cuda"), ("GPU", "cuda"), ("gpu:1", "cuda:1"), ("0", "cuda:0"), (2, "cuda:2"), ("Cuda:1", "cuda:1")],
)
def test_gpus_have_the_names_that_they_have_in_the_runtime(monkeypatch, name, expected):
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    assert torch_device(name) == torch.device(expected)


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, there, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert torch_device("auto") == torch.device(kind)
    assert torch_device("CPU") == torch_device("cpu") == torch.device("cpu")
