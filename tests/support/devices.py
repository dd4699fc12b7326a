"""Devices, batches, and a GPU's session on the memory of the CPU."""

import numpy as np

from runtime.devices.cuda import CudaSession
from runtime.devices.device import Device
from runtime.options import ProviderOptions

CPU, GPU, TRT = Device(kind="cpu"), Device(kind="cuda"), Device(kind="tensorrt")
OUT_OF_MEMORY = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 99"


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def on_cpu_memory(inference, card, **options):
    """What serves a GPU, with its buffers in the CPU's memory."""
    return CudaSession(inference, GPU, card, ProviderOptions(**options), memory="cpu")
