"""Reasons why a device cannot run, and the facts that engines depend on, with stand-ins for driver and libraries."""

import ctypes
import platform
from pathlib import Path

import onnxruntime
import pytest
from devices import GPU

from runtime.devices import nvidia
from runtime.devices.availability import unavailable_reason
from runtime.devices.device import Device
from runtime.devices.engine_facts import gpu_facts
from runtime.devices.registry import PROVIDER
from runtime.errors import DeviceError


class Driver:
    """Stands in for libcuda, libnvinfer and libnvidia-ml, with the functions that are called."""

    def __init__(self, gpus=1, init=0, count=0, name=0, management=0):
        self.gpus, self.init, self.count, self.name, self.management = gpus, init, count, name, management

    def cuDeviceGet(self, pointer, index):  # noqa: N802
        pointer._obj.value = 40 + index
        return 0

    def cuDeviceGetName(self, buffer, length, device):  # noqa: N802
        buffer.value = f"GPU {device.value}".encode()
        return self.name

    def cuDeviceGetAttribute(self, pointer, attribute, device):  # noqa: N802
        pointer._obj.value = {75: 9, 76: 1}[attribute]
        return 0

    def cuDriverGetVersion(self, pointer):  # noqa: N802
        pointer._obj.value = 13000
        return 0

    def getInferLibVersion(self):  # noqa: N802
        return 101300

    def nvmlInit_v2(self):  # noqa: N802
        return self.management

    def nvmlSystemGetDriverVersion(self, buffer, length):  # noqa: N802
        buffer.value = b"580.65.06"
        return 0

    def cuInit(self, flags):  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.gpus
        return self.count


@pytest.fixture
def libraries(monkeypatch):
    """Stand in for the dynamic loader: {part of a name: what loading gives, or raises}; other names load."""
    answers = {"libcuda.so.1": Driver()}
    asked = []

    def load(name, mode=ctypes.DEFAULT_MODE):
        asked.append(name)
        for part, answer in answers.items():
            if part in name:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDER.values()))
    monkeypatch.setattr(nvidia, "preload", lambda: "what ONNX Runtime printed")
    nvidia._library_problem.cache_clear()
    answers["asked"] = asked
    yield answers
    nvidia._library_problem.cache_clear()


# Why not


def test_nothing_keeps_the_cpu_from_running():
    assert unavailable_reason(Device(kind="cpu")) is None


@pytest.mark.parametrize(
    ("kind", "provider"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_build_without_the_provider_is_told_with_the_mend(cpu_build, kind, provider):
    reason = unavailable_reason(Device(kind=kind))
    assert f"ONNX Runtime {onnxruntime.__version__} is built without {provider};" in reason
    assert "pip uninstall onnxruntime, then install unet-deploy with its extra [gpu]" in reason


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_absent_driver_is_named(libraries, kind):
    libraries["libcuda.so.1"] = OSError("libcuda.so.1: cannot open shared object file")
    assert unavailable_reason(Device(kind=kind)) == (
        "no NVIDIA driver (libcuda.so.1: cannot open shared object file); "
        "install it, or start the container with --gpus all"
    )


def test_driver_of_windows_has_another_name(libraries, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    libraries["nvcuda.dll"] = OSError("not found")
    assert unavailable_reason(GPU).startswith("no NVIDIA driver (not found)")


@pytest.mark.parametrize(("driver", "code"), [(Driver(init=803), 803), (Driver(count=100), 100)])
def test_driver_error_is_told_by_its_number(libraries, driver, code):
    libraries["libcuda.so.1"] = driver
    assert (
        unavailable_reason(GPU) == f"the NVIDIA driver finds no usable GPU (CUDA driver error {code}); see nvidia-smi"
    )


@pytest.mark.parametrize(("index", "gpus"), [(0, 0), (2, 2), (7, 1)])
def test_gpu_that_does_not_exist_is_told_with_the_count(libraries, index, gpus):
    libraries["libcuda.so.1"] = Driver(gpus=gpus)
    reason = unavailable_reason(Device(kind="cuda", index=index))
    assert reason == (f"GPU {index} does not exist, the driver sees {gpus}; see nvidia-smi and CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("kind", "missing", "extra"), [("cuda", "libcurand.so.10", "gpu"), ("tensorrt", "libnvinfer.so.10", "tensorrt")]
)
def test_missing_library_is_named_with_the_extra_that_brings_it(libraries, kind, missing, extra):
    libraries[f"libonnxruntime_providers_{kind}.so"] = OSError(f"{missing}: cannot open shared object file")
    reason = unavailable_reason(Device(kind=kind))
    assert reason == f"{missing}: cannot open shared object file; install unet-deploy with its extra [{extra}]"


def test_missing_library_on_windows_repeats_what_onnxruntime_said(libraries, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    libraries["nvcuda.dll"] = Driver()
    libraries["onnxruntime_providers_cuda.dll"] = OSError("[WinError 126]")
    assert (
        unavailable_reason(GPU)
        == "[WinError 126]; install unet-deploy with its extra [gpu] (what ONNX Runtime printed)"
    )


def test_provider_library_is_loaded_after_what_it_stands_on(libraries):
    assert unavailable_reason(GPU) is None
    folder = Path(onnxruntime.__file__).parent / "capi"
    wanted = [str(folder / f"libonnxruntime_providers_{part}.so") for part in ("shared", "cuda")]
    assert libraries["asked"] == ["libcuda.so.1", *wanted]


# What an engine depends on


def test_facts_are_told_by_driver_and_libraries(libraries, monkeypatch):
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    libraries["libnvinfer.so.10"] = libraries["libnvidia-ml.so.1"] = Driver()
    assert gpu_facts(2) == {
        "gpu": "GPU 42",
        "compute_capability": "9.1",
        "driver": "580.65.06",
        "driver_cuda": "13000",
        "cuda": "13.0",
        "tensorrt": "101300",
        "onnxruntime": onnxruntime.__version__,
    }


@pytest.mark.parametrize(
    "management", [Driver(management=9), OSError("libnvidia-ml.so.1: cannot open shared object file"), object()]
)
def test_device_is_described_where_nvml_does_not_tell(libraries, management):
    libraries["libnvinfer.so.10"], libraries["libnvidia-ml.so.1"] = Driver(), management
    facts = gpu_facts(0)
    assert (facts["gpu"], facts["driver"], facts["driver_cuda"]) == ("GPU 40", "", "13000")


@pytest.mark.parametrize(
    ("part", "answer", "told"),
    [
        ("libcuda.so.1", Driver(name=101), "the NVIDIA driver does not describe it (CUDA driver error 101)"),
        ("libnvinfer.so.10", OSError("no libnvinfer"), "its versions cannot be told (no libnvinfer); see nvidia-smi"),
    ],
)
def test_facts_that_cannot_be_had_are_a_device_error(libraries, part, answer, told):
    libraries["libnvinfer.so.10"] = libraries["libnvidia-ml.so.1"] = Driver()
    libraries[part] = answer
    with pytest.raises(DeviceError) as caught:
        gpu_facts(0)
    assert str(caught.value) == f"device cuda:0: {told}"
