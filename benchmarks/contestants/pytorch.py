"""PyTorch as a contestant: eager, in both memory layouts, and compiled."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.backends import cuda, cudnn

from benchmarks.contestants.base import (
    Arithmetic,
    BenchmarkModel,
    Contestant,
    LoadedContestant,
    Precisions,
    Shape,
    require,
)
from runtime.devices.device import Device
from unet_core.model import Segmenter

EAGER = "PyTorch eager"
CHANNELS_LAST = "PyTorch eager, channels_last"
COMPILED = "torch.compile"

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Type of weights and activations; float32 where it is not listed. `torch.autocast` would cast them at every call."""


@dataclass(frozen=True, kw_only=True)
class PyTorchContestant(Contestant):
    """The checkpoint's network in PyTorch."""

    precisions: ClassVar[Precisions] = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "fp16", "bf16")}
    memory = 1.75
    keeps_memory = False

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: no checkpoint, or no GPU that this PyTorch can use."""
        if model.checkpoint is None:
            return "runs the checkpoint that the model was exported from, and none was given; give --checkpoint"
        if self.device.kind == "cpu" or pytorch_has(self.device):
            return None
        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no GPU that it can use; see nvidia-smi"
        return f"GPU {self.device.index} does not exist, PyTorch sees {torch.cuda.device_count()}"

    def network(self, model: BenchmarkModel) -> Segmenter:
        """Put the network on the device, weights and activations in its precision; around it all stays float32."""
        module = model.segmenter().to(str(self.device))
        if self.precision in DTYPE:
            dtype = DTYPE[self.precision]
            module.network.to(dtype)
            module.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
        return module


@dataclass(frozen=True, kw_only=True)
class EagerContestant(PyTorchContestant):
    """The network as PyTorch runs it, in the usual memory layout of planes.

    Images come as [batch, h, w, channels], which PyTorch would keep as channels_last throughout, so a layout always has
    to be asked for.
    """

    name = EAGER
    layout: ClassVar[torch.memory_format] = torch.contiguous_format
    """Layout of weights and activations."""

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Put the network on the device, in its layout."""
        module = self.network(model).to(memory_format=self.layout)
        module.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=self.layout),))
        return load_module(module, self.device, self.precision)


@dataclass(frozen=True, kw_only=True)
class ChannelsLastContestant(EagerContestant):
    """The network as PyTorch runs it, with the channels of a pixel side by side in memory."""

    name = CHANNELS_LAST
    layout = torch.channels_last


@dataclass(frozen=True, kw_only=True)
class CompiledContestant(PyTorchContestant):
    """The network through `torch.compile`, for exactly one shape and as one graph: eager code is refused.

    It is compiled anew each time, without the caches on disk, and the seconds are a fact of its measurements. The
    compiled code stays until `torch.compiler.reset`, which takes it from all contestants that are loaded.
    """

    name = COMPILED

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Compile for the shape."""
        compiled = torch.compile(with_own_code(self.network(model)), fullgraph=True, dynamic=False)
        found = load_module(compiled, self.device, self.precision)
        images = np.zeros((*shape, model.card.architecture.in_channels), np.uint8)
        started = time.perf_counter()
        with attribute_set(torch.compiler.config, "force_disable_caches", True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about caches that are off, and options that it would choose otherwise
            found(images)
        return LoadedContestant(
            run=found.run,
            provider=found.provider,
            facts={"compile_s": time.perf_counter() - started},
            close=found.close,
        )


def pytorch_has(gpu: Device) -> bool:
    """Return True if this PyTorch can use the GPU."""
    return torch.cuda.is_available() and gpu.index < torch.cuda.device_count()


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
