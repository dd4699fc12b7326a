"""Facts that a TensorRT engine depends on, asked of the driver and the libraries, and the key made from them."""

import ctypes
import hashlib
import json
import platform
from collections.abc import Mapping

import onnxruntime

from runtime.devices.nvidia import library_problem
from runtime.errors import DeviceError


def engine_key(graph_digest: str, name: str, facts: Mapping[str, str], options: Mapping[str, str]) -> str:
    """Return a sha256 over a model's hash and name, the machine's facts (GPU, driver, versions), and the options.

    `graph_digest` is that of `runtime.model_file.digest`, so another card or golden sample makes no other engine.
    `name` is the name of the model's file without its folder: ONNX Runtime names engines after it, and finds none under
    another name. The number of the GPU among equal ones (`device_id`) does not count.
    """
    chosen = {name: value for name, value in options.items() if name != "device_id"}
    known = json.dumps([3, graph_digest, name, dict(facts), chosen], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()


def timing_key(facts: Mapping[str, str]) -> str:
    """Return the key that measured kernels are kept under: those of another GPU, driver or version are of no use."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:32]


COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76
"""Values of CUdevice_attribute in cuda.h."""


def gpu_facts(index: int) -> dict[str, str]:
    """Return what an engine depends on beside its model: GPU, compute capability, versions of driver and libraries.

    Raises:
        DeviceError: the driver or TensorRT does not tell.
    """
    library_problem("tensorrt")  # which loads TensorRT
    windows = platform.system() == "Windows"
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if windows else "libcuda.so.1")
        tensorrt = ctypes.CDLL("nvinfer_10.dll" if windows else "libnvinfer.so.10")
        device, version = ctypes.c_int(), ctypes.c_int()
        major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index)
        status = status or cuda.cuDeviceGetName(name, len(name), device)
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_MAJOR, device)
        status = status or cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_MINOR, device)
        status = status or cuda.cuDriverGetVersion(ctypes.byref(version))
        if status:
            raise DeviceError(
                f"device cuda:{index}: the NVIDIA driver does not describe it (CUDA driver error {status})"
            )
        return {
            "gpu": name.value.decode(errors="replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "driver": _driver_version(windows),
            "driver_cuda": str(version.value),
            "cuda": str(getattr(onnxruntime, "cuda_version", "")),
            "tensorrt": str(tensorrt.getInferLibVersion()),
            "onnxruntime": onnxruntime.__version__,
        }
    except (OSError, AttributeError) as error:
        raise DeviceError(f"device cuda:{index}: its versions cannot be told ({error}); see nvidia-smi") from error


def _driver_version(windows: bool) -> str:
    """Return the driver's own version ("580.65.06"), by NVML; "" where that does not tell, as in some containers."""
    text = ctypes.create_string_buffer(96)
    try:
        management = ctypes.CDLL("nvml.dll" if windows else "libnvidia-ml.so.1")
        status = management.nvmlInit_v2() or management.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError):
        return ""
    return "" if status else text.value.decode(errors="replace")
