"""What a machine offers: installed packages, NVIDIA GPUs, CPU cores. Standard library only, so that it works where
nothing else does; nothing is written."""

import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.support.cpu_count import affinity, available_threads, own_quota, text_of

PACKAGES = ("unet-deploy", "numpy", "pillow", "opencv-python-headless", "click", "torch", "tensorrt-cu13")
"""What is told of if it is installed, beside what has ONNX Runtime in it."""

SHARED = ("onnxruntime", "cv2", "PIL")
"""Folders that several distributions bring; of two, one overwrites files of the other."""

VARIABLES = ("OMP_", "MKL_", "OPENBLAS_", "ORT_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
"""How the environment variables begin that concern threads and devices."""

NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor and class of PCI devices."""


PROBE_SECONDS = 120
"""How long a process may take to load what is probed; slow disks take tens of seconds."""


class NvmlMemory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def packages() -> dict[str, str]:
    """{distribution: version} of what matters here."""
    found = {}
    for name in (*PACKAGES, *clashes_of("onnxruntime")):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def clashes_of(folder: str) -> list[str]:
    """The distributions that bring a folder of this name; of more than one, each spoils the others."""
    return sorted({name.lower().replace("_", "-") for name in metadata.packages_distributions().get(folder, [])})


def python() -> str:
    """Python and the system it runs on."""
    return f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}"


def death_by(program: str) -> str | None:
    """How a Python program dies in a process of its own, by a signal or by never ending; None if it does neither.

    Libraries that do not fit the machine or each other end a process where no exception can be caught.
    """
    path = os.pathsep.join(filter(None, sys.path))
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {PROBE_SECONDS} s"
    crashed = done.returncode < 0 or done.returncode > 255  # Windows has its exceptions' codes
    return f"crashes Python (exit code {done.returncode})" if crashed else None


def variables() -> dict[str, str]:
    """Environment variables that concern threads and devices."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}


def nvidia_cards() -> int:
    """NVIDIA GPUs that are plugged in, whether there is a driver or not; 0 where the system does not tell."""
    return sum(
        text_of(device / "vendor") == NVIDIA and text_of(device / "class").startswith(DISPLAY)
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def gpus() -> dict[str, Any]:
    """{"driver": version, "gpus": [{"name", "memory_bytes", "free_bytes"}]} by NVML; {} where it does not load."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1")
    except OSError:
        return {}
    text, count = ctypes.create_string_buffer(96), ctypes.c_uint()
    _check(nvml.nvmlInit_v2())
    _check(nvml.nvmlSystemGetDriverVersion(text, len(text)))
    driver = text.value.decode(errors="replace")
    _check(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    return {"driver": driver, "gpus": [_gpu(nvml, index) for index in range(count.value)]}


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), NvmlMemory()
    _check(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)))
    _check(nvml.nvmlDeviceGetName(handle, name, len(name)))
    has_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0  # not with a CPU's unified memory
    return {
        "name": name.value.decode(errors="replace"),
        "memory_bytes": memory.total if has_memory else None,
        "free_bytes": memory.free if has_memory else None,
    }


def _check(status: int) -> None:
    if status:
        raise OSError(f"the NVIDIA driver answers NVML error {status}; see nvidia-smi")


def cores() -> dict[str, Any]:
    """CPU cores: {"machine", "allowed" by this process's affinity, "quota" of its cgroup or None, "threads" that are
    started for one prediction}."""
    return {
        "machine": os.cpu_count() or 1,
        "allowed": affinity(),
        "quota": own_quota(),
        "threads": available_threads(),
    }
