"""Facts about a machine: installed packages, NVIDIA GPUs, CPU cores.

It needs the standard library only, so that it works where nothing else does, and writes nothing.
"""

import ctypes
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.support.cpu_count import affinity, allowed_cores, available_threads, own_quota, text_of

PACKAGES = (
    "unet-deploy",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "zlib-ng",
    "blake3",
    "click",
    "openvino",
    "torch",
    "nvidia-cuda-runtime",
    "nvidia-cublas",
    "nvidia-curand",
    "nvidia-cudnn-cu13",
    "tensorrt-cu13-libs",
)
"""Distributions to report, beside those that contain ONNX Runtime."""

SHARED = ("onnxruntime", "cv2", "PIL")
"""Folders that several distributions install; two of these overwrite each other's files."""

VARIABLES = {
    "OMP_NUM_THREADS": "threads of PyTorch and of other OpenMP programs; ONNX Runtime takes threads= and --threads",
    "OMP_WAIT_POLICY": "what waiting threads of OpenMP do; active ones take a core; ONNX Runtime's sleep",
    "OMP_": "a setting of OpenMP, for PyTorch; ONNX Runtime does not use it",
    "MKL_NUM_THREADS": "threads of MKL, PyTorch's arithmetic on CPUs; ONNX Runtime does not use it",
    "MKL_": "a setting of MKL, PyTorch's arithmetic on CPUs; ONNX Runtime does not use it",
    "OPENBLAS_NUM_THREADS": "threads of OpenBLAS, NumPy's linear algebra; ONNX Runtime does not use it",
    "OPENBLAS_": "a setting of OpenBLAS, NumPy's linear algebra; ONNX Runtime does not use it",
    "ORT_DISABLE_TELEMETRY": "any value: ONNX Runtime sends no telemetry; this library sets it to 1 if nobody does",
    "ORT_": "a setting of ONNX Runtime",
    "CUDA_VISIBLE_DEVICES": "the GPUs that CUDA shows to this process, renumbered from 0; empty or -1: none",
    "CUDA_DEVICE_ORDER": "how CUDA numbers GPUs; PCI_BUS_ID numbers them as nvidia-smi does",
    "NVIDIA_VISIBLE_DEVICES": "the GPUs that this container was given; void or none: none",
    "NVIDIA_DRIVER_CAPABILITIES": "parts of the driver in this container; compute runs models, utility names GPUs",
}
"""The environment variables for threads and devices, by name or prefix, and what each does."""

NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor and class of PCI devices."""

PROBE_SECONDS = 120
"""Time limit of a probe, in seconds; slow disks need tens of seconds to load a library."""


class NvmlMemory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def packages() -> dict[str, str]:
    """Return {distribution: version} of the installed distributions that matter here."""
    found = {}
    for name in (*PACKAGES, *clashes_of("onnxruntime")):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def clashes_of(folder: str) -> list[str]:
    """Return the distributions that install a folder of this name; several of them break each other."""
    return sorted({name.lower().replace("_", "-") for name in metadata.packages_distributions().get(folder, [])})


def python() -> str:
    """Versions of Python and of the operating system."""
    return f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}"


def death_by(program: str) -> str | None:
    """Run a Python program in a new process; describe its crash or timeout, or return None if there is none.

    Libraries that do not fit the machine or each other crash a process where no exception can be caught.
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
    """Return the environment variables for threads and devices."""
    return {name: value for name, value in sorted(os.environ.items()) if meaning_of(name)}


def meaning_of(variable: str) -> str:
    """Return what an environment variable does; "" for those that do not concern threads and devices."""
    prefixes = (name for name in VARIABLES if name.endswith("_") and variable.startswith(name))
    return VARIABLES.get(variable) or VARIABLES.get(next(prefixes, ""), "")


class OtherPrograms:
    """The CPU cores, of those that this process may use, that other programs use from now on; Linux tells them."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float | None:
        """Return their number since the start, a mean over time; None if the system does not say."""
        seconds, busy, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, (busy - own) / seconds) if seconds > 0 and not math.isnan(busy) else None

    def _now(self) -> tuple[float, float, float]:
        """Return the time, and how long the cores and this process have been busy, in seconds."""
        return time.monotonic(), busy_seconds(text_of(Path("/proc/stat")), allowed_cores()), time.process_time()


def busy_seconds(stat: str, cores: Sequence[int]) -> float:
    """Return how long `cores` have worked since the machine started, by /proc/stat; NaN if it does not say.

    Time that a virtual machine's host has taken for others counts as well.
    """
    ticks = 0
    lines = {line.partition(" ")[0]: line.split()[1:] for line in stat.splitlines()}
    for core in cores:
        fields = lines.get(f"cpu{core}", [])
        if len(fields) < 8:
            return math.nan
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields[:8])
        ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK") if cores else math.nan


def nvidia_cards() -> int:
    """Return the number of installed NVIDIA GPUs, with or without a driver; 0 where the system does not say."""
    return sum(
        text_of(device / "vendor") == NVIDIA and text_of(device / "class").startswith(DISPLAY)
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def cuda_gpus() -> int | None:
    """Return the number of GPUs that CUDA's driver sees, None if it does not load; containers may lack NVML alone."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if status else count.value


def gpus() -> dict[str, Any]:
    """Return {"driver": version, "gpus": [{"name", "memory_bytes", "free_bytes"}]} by NVML; {} if it does not load."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1")
    except OSError:
        return {}
    text, count = ctypes.create_string_buffer(96), ctypes.c_uint()
    check_status(nvml.nvmlInit_v2())
    check_status(nvml.nvmlSystemGetDriverVersion(text, len(text)))
    driver = text.value.decode(errors="replace")
    check_status(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    found = []
    for index in range(count.value):
        handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), NvmlMemory()
        check_status(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)))
        check_status(nvml.nvmlDeviceGetName(handle, name, len(name)))
        has_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0  # fails for unified memory
        found.append(
            {
                "name": name.value.decode(errors="replace"),
                "memory_bytes": memory.total if has_memory else None,
                "free_bytes": memory.free if has_memory else None,
            }
        )
    return {"driver": driver, "gpus": found}


def check_status(status: int) -> None:
    """Raise an OSError for a status of NVML other than 0."""
    if status:
        raise OSError(f"the NVIDIA driver answers NVML error {status}; see nvidia-smi")


def cores() -> dict[str, Any]:
    """Return the numbers of CPU cores.

    Keys: "machine", "allowed" by this process's affinity, "quota" of its cgroup or None, "threads" of one prediction.
    """
    return {
        "machine": os.cpu_count() or 1,
        "allowed": affinity(),
        "quota": own_quota(),
        "threads": available_threads(),
    }
