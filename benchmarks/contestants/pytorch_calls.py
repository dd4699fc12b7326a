"""Calls of a network in PyTorch: on a device, in a precision, compiled for one shape."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.backends import cuda, cudnn

from benchmarks.contestants.base import Arithmetic, BenchmarkModel, LoadedContestant, Shape, require
from runtime.devices.device import Device
from unet_core.model import Segmenter

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Type of weights and activations; float32 where it is not listed. `torch.autocast` would cast them at every call."""

Layout = Literal["contiguous_format", "channels_last"]
"""Memory layout of weights and activations, by its name in PyTorch."""


def network_on(device: Device, precision: Arithmetic, model: BenchmarkModel) -> Segmenter:
    """Put the network on the device, weights and activations in its precision; around it all stays float32."""
    module = model.segmenter().to(str(device))
    if precision in DTYPE:
        dtype = DTYPE[precision]
        module.network.to(dtype)
        module.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    return module


def load_eager(model: BenchmarkModel, layout: Layout, device: Device, precision: Arithmetic) -> LoadedContestant:
    """Make the network a function of arrays, which computes in one memory layout throughout."""
    kept: torch.memory_format = getattr(torch, layout)
    module = network_on(device, precision, model)
    module = module.to(memory_format=kept)
    module.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=kept),))
    return load_module(module, device, precision)


def load_compiled(model: BenchmarkModel, shape: Shape, device: Device, precision: Arithmetic) -> LoadedContestant:
    """Compile the network for batches of one shape, without caches on disk."""
    module = network_on(device, precision, model)
    found = load_module(torch.compile(with_own_code(module), fullgraph=True, dynamic=False), device, precision)
    images = np.zeros((*shape, model.card.architecture.in_channels), np.uint8)
    started = time.perf_counter()
    with attribute_set(torch.compiler.config, "force_disable_caches", True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about caches that are off, and options that it would choose otherwise
        found(images)
    facts = {"compile_s": time.perf_counter() - started}
    return LoadedContestant(run=found.run, provider=found.provider, facts=facts, close=found.close)


def with_own_code(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Wrap the module in a function with its own code object, by which `torch.compile` finds what it has compiled."""

    def call(image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = module(image)
        return answer

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)


def load_module(
    module: Callable[[torch.Tensor], torch.Tensor], device: Device, precision: Arithmetic
) -> LoadedContestant:
    """Make a module on a device a function of arrays; copying the answer to host memory waits for the GPU."""
    target, held = torch.device(str(device)), [module]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), multiply_in(precision):
            answer = held[0](torch.from_numpy(images).to(target))
            require(answer.device, target, "PyTorch's answer")
            result: NDArray[np.float32] = answer.cpu().numpy()
        return result

    def close() -> None:
        held.clear()
        if target.type == "cuda":
            torch.cuda.empty_cache()

    return LoadedContestant(run=run, provider=f"PyTorch, {target}", close=close)


@contextmanager
def multiply_in(precision: Arithmetic) -> Iterator[None]:
    """Multiply in a precision within the block: by default PyTorch's convolutions on a GPU are in TF32.

    cuDNN measures its kernels for the shape (`cudnn.benchmark`), as ONNX Runtime lets it.
    """
    multiplied = "tf32" if precision == "tf32" else "ieee"
    convolutions: Any = cudnn  # at run time its module is an object with more attributes than mypy knows
    with (
        attribute_set(convolutions.conv, "fp32_precision", multiplied),
        attribute_set(cuda.matmul, "fp32_precision", multiplied),
        attribute_set(cudnn, "benchmark", True),
    ):
        yield


@contextmanager
def attribute_set(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute within the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
