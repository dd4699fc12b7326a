"""Devices, batches, and a GPU's session on the memory of the CPU."""

import numpy as np

from runtime.devices.cpu import CPU_CHAIN
from runtime.devices.cuda import CudaSession, cuda_chain
from runtime.devices.device import CPU_DEVICE, Device
from runtime.devices.profiles import profile_of
from runtime.devices.tensorrt import tensorrt_chain
from runtime.options import ProviderOptions

CPU, GPU, TRT = CPU_DEVICE, Device(kind="cuda"), Device(kind="tensorrt")
OUT_OF_MEMORY = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 99"


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def on_cpu_memory(inference, card, **options):
    """Make the session of a GPU, with its buffers in the CPU's memory."""
    return CudaSession(inference, GPU, card, ProviderOptions(**options), memory="cpu")


def provider_chain(device, card, options, cache=None):
    """The execution providers that a session on a device is asked for, with their options."""
    if device.kind == "tensorrt":
        return tensorrt_chain(device, card, options, profile_of(card, options), cache or {})
    return cuda_chain(device, card, options) if device.kind == "cuda" else CPU_CHAIN
