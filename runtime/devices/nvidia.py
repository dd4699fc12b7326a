"""NVIDIA's driver and libraries: what is missing for ONNX Runtime's providers."""

import contextlib
import ctypes
import io
import platform
from functools import cache
from pathlib import Path

import onnxruntime

from runtime.devices.device import Device

TENSORRT_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
"""Libraries that ONNX Runtime's TensorRT provider is linked against, in the order of loading."""


def nvidia_problem(device: Device) -> str | None:
    """Return what keeps ONNX Runtime's CUDA or TensorRT provider from running on a GPU, with the way to mend it."""
    return _driver_problem(device.index) or _library_problem(device.kind)


def _driver_problem(index: int) -> str | None:
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        return f"no NVIDIA driver ({error}); install it, or start the container with --gpus all"
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver finds no usable GPU (CUDA driver error {status}); see nvidia-smi"
    if index >= count.value:
        return f"GPU {index} does not exist, the driver sees {count.value}; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


@cache
def _library_problem(kind: str) -> str | None:
    """Load the provider's own library as ONNX Runtime would, to learn the name of what is missing."""
    said = preload()
    windows = platform.system() == "Windows"
    pattern = "onnxruntime_providers_{}.dll" if windows else "libonnxruntime_providers_{}.so"
    folder = Path(onnxruntime.__file__).parent / "capi"
    extra = "gpu" if kind == "cuda" else "tensorrt"
    try:
        ctypes.CDLL(str(folder / pattern.format("shared")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / pattern.format(kind)))
    except OSError as error:
        return f"{error}; install unet-deploy with its extra [{extra}]" + (f" ({said})" if windows and said else "")
    return None


@cache
def preload() -> str:
    """Load the CUDA and cuDNN libraries that pip installed; return what ONNX Runtime printed about it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    with contextlib.suppress(ImportError):
        import tensorrt_libs  # type: ignore[import-not-found,unused-ignore]  # pip's package, where no loader looks

        windows = platform.system() == "Windows"
        for name in TENSORRT_LIBRARIES:
            with contextlib.suppress(OSError):  # what is still missing then, `_library_problem` names
                file = f"{name}_10.dll" if windows else f"lib{name}.so.10"
                ctypes.CDLL(str(Path(tensorrt_libs.__path__[0]) / file), mode=ctypes.RTLD_GLOBAL)
    return " ".join(printed.getvalue().split())
