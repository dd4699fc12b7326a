"""Reasons why a device cannot run, and the facts that engines depend on, with stand-ins for driver and libraries."""

import ctypes
import os
import platform
import sys
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

    def __init__(self, gpus=1, init=0, count=0, name=0, management=0, cuda=13000):
        self.gpus, self.init, self.count, self.name, self.management = gpus, init, count, name, management
        self.cuda = cuda

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
        pointer._obj.value = self.cuda
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
        if mode == os.RTLD_NOLOAD and name not in answers.get("loaded", ()):
            raise OSError(f"{name} is not loaded yet")
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
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("what ONNX Runtime\n printed"), raising=False)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(nvidia, "package_places", lambda package: [])
    monkeypatch.setattr(nvidia, "loaded_cudnn_folders", list)  # PyTorch may have loaded one for other tests
    nvidia.library_problem.cache_clear()
    answers["asked"] = asked
    yield answers
    nvidia.library_problem.cache_clear()


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


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_driver_of_an_older_cuda_is_told_with_both_versions(libraries, kind):
    libraries["libcuda.so.1"] = Driver(cuda=12080)
    assert unavailable_reason(Device(kind=kind)) == (
        "the NVIDIA driver is for CUDA 12.8, ONNX Runtime needs CUDA 13; install a newer driver"
    )


@pytest.mark.parametrize(("driver", "built"), [(13000, "13.2"), (14010, "13.0"), (12040, "12.8")])
def test_driver_of_the_same_or_a_newer_major_version_serves(libraries, monkeypatch, driver, built):
    libraries["libcuda.so.1"] = Driver(cuda=driver)
    monkeypatch.setattr(onnxruntime, "cuda_version", built, raising=False)
    assert unavailable_reason(GPU) is None


CUDA = {
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
    "libcudnn_graph.so.9": "nvidia-cudnn-cu13",
    "libcudnn_ops.so.9": "nvidia-cudnn-cu13",
}
TENSORRT = {"libnvinfer.so.10": "tensorrt-cu13-libs", "libnvonnxparser.so.10": "tensorrt-cu13-libs"}


@pytest.mark.parametrize(
    ("kind", "extra", "name", "package"),
    [
        *[("cuda", "gpu", *library) for library in CUDA.items()],
        *[("tensorrt", "tensorrt", *library) for library in (CUDA | TENSORRT).items()],
    ],
)
def test_missing_library_is_named_with_the_extra_and_the_package_that_bring_it(libraries, kind, extra, name, package):
    libraries[name] = OSError(f"{name}: cannot open shared object file")
    assert unavailable_reason(Device(kind=kind)) == (
        f"{name}: cannot open shared object file; "
        f"install unet-deploy with its extra [{extra}], which brings PyPI's {package}"
    )


def test_packages_for_cuda_12_have_other_names():
    assert [tuple(library) for library in nvidia.needed_libraries("tensorrt", "12.8")] == [
        ("libcudart.so.12", "nvidia-cuda-runtime-cu12"),
        ("libcublasLt.so.12", "nvidia-cublas-cu12"),
        ("libcublas.so.12", "nvidia-cublas-cu12"),
        ("libcurand.so.10", "nvidia-curand-cu12"),
        ("libcudnn.so.9", "nvidia-cudnn-cu12"),
        ("libcudnn_graph.so.9", "nvidia-cudnn-cu12"),
        ("libcudnn_ops.so.9", "nvidia-cudnn-cu12"),
        ("libnvinfer.so.10", "tensorrt-cu12-libs"),
        ("libnvonnxparser.so.10", "tensorrt-cu12-libs"),
    ]


def test_provider_that_does_not_load_is_told(libraries):
    libraries["libonnxruntime_providers_cuda.so"] = OSError("libonnxruntime_providers_cuda.so: undefined symbol: x")
    assert unavailable_reason(GPU) == (
        "libonnxruntime_providers_cuda.so: undefined symbol: x; install unet-deploy with its extra [gpu]"
    )


def test_missing_library_on_windows_repeats_what_onnxruntime_said(libraries, monkeypatch, capsys):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    libraries["nvcuda.dll"] = Driver()
    libraries["onnxruntime_providers_cuda.dll"] = OSError("[WinError 126]")
    assert (
        unavailable_reason(GPU)
        == "[WinError 126]; install unet-deploy with its extra [gpu] (what ONNX Runtime printed)"
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_provider_library_is_loaded_after_what_it_stands_on(libraries, kind):
    assert unavailable_reason(Device(kind=kind)) is None
    folder = Path(onnxruntime.__file__).parent / "capi"
    wanted = [str(folder / f"libonnxruntime_providers_{part}.so") for part in ("shared", kind)]
    tensorrt = [*CUDA, *TENSORRT, "libnvrtc.so.13", "libnvinfer_plugin.so.10"]
    below = [*CUDA, "libnvrtc.so.13"] if kind == "cuda" else tensorrt
    assert libraries["asked"] == ["libcuda.so.1", *below, *wanted]


@pytest.mark.parametrize("name", ["libnvinfer_plugin.so.10", "libnvrtc.so.13"])
def test_some_libraries_may_be_missing(libraries, name):
    libraries[name] = OSError("none")
    assert unavailable_reason(Device(kind="tensorrt")) is None


def test_loaded_library_comes_before_pip_s_and_pip_s_before_the_system_s(libraries, monkeypatch, tmp_path):
    for package, name in (("nvidia/cu13/lib", "libcudart.so.13"), ("tensorrt_libs", "libnvinfer.so.10")):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / name).touch()
    monkeypatch.setattr(nvidia, "package_places", lambda package: [tmp_path / package])
    for name in ("libcudart.so.13", "libnvinfer.so.10", "libcurand.so.10"):
        nvidia.load(name)
    libraries["loaded"] = ["libcudart.so.13"]
    nvidia.load("libcudart.so.13")
    pip = [str(tmp_path / "nvidia/cu13/lib/libcudart.so.13"), str(tmp_path / "tensorrt_libs/libnvinfer.so.10")]
    assert libraries["asked"] == [*pip, "libcurand.so.10", "libcudart.so.13"]


def test_package_is_found_without_being_imported(monkeypatch, tmp_path):
    package = tmp_path / "tensorrt_libs"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert nvidia.package_places("tensorrt_libs") == [package]
    assert "tensorrt_libs" not in sys.modules
    assert nvidia.package_places("no_such_package") == []


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


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [("0x10de", "0x030200", True), ("0x10de", "0x020000", False), ("0x1002", "0x030000", False), (None, None, False)],
    ids=["NVIDIA's GPU", "NVIDIA's network card", "another GPU", "nothing"],
)
def test_gpu_without_a_driver_is_seen_in_the_systems_list(no_gpu, tmp_path, monkeypatch, vendor, kind, expected):
    if vendor:
        (tmp_path / "0000:01:00.0").mkdir()
        (tmp_path / "0000:01:00.0" / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "0000:01:00.0" / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(nvidia, "PCI", tmp_path)
    assert nvidia.is_present.__wrapped__() is expected
    monkeypatch.setattr(nvidia, "PCI", tmp_path / "gone")
    assert nvidia.is_present.__wrapped__() is False
