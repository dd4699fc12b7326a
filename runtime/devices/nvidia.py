"""NVIDIA's driver and libraries: loading those that pip installed, and what is missing for ONNX Runtime's providers.

ONNX Runtime claims a provider whose libraries are not there, opens the model on the CPU instead, and misses cuDNN only
when the first convolution runs. So every library is looked for by its name before a device is said to work. The names
are those that the libraries of ONNX Runtime 1.31.1 are linked against or open.
"""

import contextlib
import ctypes
import importlib.util
import io
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import onnxruntime

from runtime.devices.device import Device

CUDA_OF_PYPI = "13.0"
"""Version of CUDA that PyPI's onnxruntime-gpu is built for; another build may not tell its own."""

OPTIONAL = {"cuda": ("libnvrtc.so.{}",), "tensorrt": ("libnvrtc.so.{}", "libnvinfer_plugin.so.10")}
"""Libraries that are opened where they are found: the compiler for cuDNN's kernels, of CUDA's version; plugins."""

TENSORRT_ON_WINDOWS = ("nvinfer_10.dll", "nvinfer_plugin_10.dll", "nvonnxparser_10.dll")
"""Libraries of TensorRT, in the order of loading."""


class Library(NamedTuple):
    """A shared library, and the package on PyPI that holds it."""

    name: str
    package: str


PCI, VENDOR, DISPLAYS = Path("/sys/bus/pci/devices"), "0x10de", "0x03"
"""Linux's list of devices; in it NVIDIA's number, and the beginning of the class of graphics cards and accelerators."""


@cache
def is_present() -> bool:
    """Return True if this machine has an NVIDIA GPU, whether it can be used or not.

    Linux lists GPUs without a driver, and in containers those that were not handed in, too. Elsewhere the driver tells.
    """
    if _driver_problem(0) is None or Path("/dev/nvidiactl").exists():
        return True
    with contextlib.suppress(OSError):
        for device in PCI.iterdir():
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == VENDOR and kind.startswith(DISPLAYS):
                return True
    return False


def nvidia_problem(device: Device) -> str | None:
    """Return what keeps ONNX Runtime's CUDA or TensorRT provider from running on a GPU, with the way to mend it."""
    return _driver_problem(device.index) or library_problem(device.kind)


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
    version, cuda = ctypes.c_int(0), cuda_of_onnxruntime()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value // 1000 < major_of(cuda):
        own = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver is for CUDA {own}, ONNX Runtime needs CUDA {major_of(cuda)}; install a newer driver"
    if index >= count.value:
        return f"GPU {index} does not exist, the driver sees {count.value}; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def cuda_of_onnxruntime() -> str:
    """Return the version of CUDA that the installed ONNX Runtime is built for, such as "13.0"."""
    return getattr(onnxruntime, "cuda_version", "") or CUDA_OF_PYPI


def major_of(cuda: str) -> int:
    """Return the major version of CUDA: a driver serves all that are not above its own."""
    return int(cuda.partition(".")[0])


@cache
def library_problem(kind: str) -> str | None:
    """Load what ONNX Runtime's provider for this kind of device needs, then the provider's own library.

    Returns:
        What is missing, with the extra and the package that bring it; None if everything was loaded.
    """
    windows = platform.system() == "Windows"
    extra, said = "gpu" if kind == "cuda" else "tensorrt", ""
    if windows:
        said = load_on_windows()
    else:
        cuda = cuda_of_onnxruntime()
        for name, package in needed_libraries(kind, cuda):
            look = find_cudnn_part if name.startswith("libcudnn_") else load
            try:
                look(name)
            except OSError as error:
                return f"{error}; install unet-deploy with its extra [{extra}], which brings PyPI's {package}"
        for name in OPTIONAL[kind]:
            with contextlib.suppress(OSError):
                load(name.format(major_of(cuda)))
    folder = Path(onnxruntime.__file__).parent / "capi"
    file = "onnxruntime_providers_{}.dll" if windows else "libonnxruntime_providers_{}.so"
    try:
        ctypes.CDLL(str(folder / file.format("shared")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / file.format(kind)))
    except OSError as error:
        return f"{error}; install unet-deploy with its extra [{extra}]" + (f" ({said})" if said else "")
    return None


def needed_libraries(kind: str, cuda: str) -> list[Library]:
    """Return the libraries that a provider needs on Linux, in the order of loading; `cuda` is CUDA's version, "13.0".

    The provider is linked against them, except cuDNN, which it opens. cuDNN opens its own parts when they are first
    used, and ends the process if there is no libcudnn_graph (9.26).
    """
    major = major_of(cuda)
    suffix = "" if major >= 13 else f"-cu{major}"  # since CUDA 13 the names of most packages do without
    cudnn, tensorrt = f"nvidia-cudnn-cu{major}", f"tensorrt-cu{major}-libs"
    needed = [
        Library(f"libcudart.so.{major}", f"nvidia-cuda-runtime{suffix}"),
        Library(f"libcublasLt.so.{major}", f"nvidia-cublas{suffix}"),
        Library(f"libcublas.so.{major}", f"nvidia-cublas{suffix}"),
        Library("libcurand.so.10", f"nvidia-curand{suffix}"),
        Library("libcudnn.so.9", cudnn),
        Library("libcudnn_graph.so.9", cudnn),
        Library("libcudnn_ops.so.9", cudnn),
    ]
    if kind == "tensorrt":
        needed += [Library("libnvinfer.so.10", tensorrt), Library("libnvonnxparser.so.10", tensorrt)]
    return needed


def load(name: str) -> None:
    """Load a library: the one of this name that the process has already, or pip's, or the system's.

    The packages may be installed in another folder than ONNX Runtime (pip install --target), and none is imported.

    Raises:
        OSError: there is none, or it cannot be loaded; the text names the file.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        return
    folders = [folder for place in package_places("nvidia") for folder in sorted(place.glob("*/lib"))]
    files = [folder / name for folder in (*folders, *package_places("tensorrt_libs")) if (folder / name).is_file()]
    ctypes.CDLL(str(files[0]) if files else name)


def find_cudnn_part(name: str) -> None:
    """Look for a part of the cuDNN that is loaded: beside it, wherever it was found, or where the system looks.

    cuDNN takes no part of another version, so this one is left to be loaded by it.

    Raises:
        OSError: there is none; the text names the file.
    """
    if not any((folder / name).exists() for folder in loaded_cudnn_folders()):
        ctypes.CDLL(name)


def loaded_cudnn_folders() -> list[Path]:
    """Return the folders of the cuDNN that this process has loaded; [] where the system does not tell."""
    maps = Path("/proc/self/maps")
    return [Path(folder) for folder in re.findall(r"(/.*)/libcudnn\.so\.9", maps.read_text())] if maps.exists() else []


def package_places(package: str) -> list[Path]:
    """Return the folders of a package without importing it; [] if it is not installed."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module that nobody imported from a file
        return []
    return [Path(place) for place in (found.submodule_search_locations or ())] if found else []


def load_on_windows() -> str:
    """Load the libraries of CUDA, cuDNN and TensorRT that pip installed; return what ONNX Runtime printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    for place in package_places("tensorrt_libs"):
        for name in TENSORRT_ON_WINDOWS:
            with contextlib.suppress(OSError):  # the provider's own library will not load then, which is told
                ctypes.CDLL(str(place / name))
    return " ".join(printed.getvalue().split())
