"""PyTorch as a peer: eager, in both layouts of memory, and compiled."""

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

from benchmarks.contestants.base import Arithmetic, BenchmarkModel, Contestant, LoadedContestant, Shape, require
from runtime.devices.device import Device
from unet_core.model import Segmenter

EAGER = "PyTorch eager"
CHANNELS_LAST = "PyTorch eager, channels_last"
COMPILED = "torch.compile"

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Of weights and activations, float32 where it is not here. `torch.autocast` would cast all weights at every call."""


@dataclass(frozen=True, kw_only=True)
class EagerContestant(Contestant):
    """The checkpoint's network as PyTorch runs it; `layout` is that of its activations and weights.

    Images come as [batch, h, w, channels], which PyTorch would keep as channels_last throughout, so that the usual
    layout, of planes, has to be asked for as well.
    """

    memory: ClassVar[float] = 1.75
    keeps_memory: ClassVar[bool] = False

    layout: torch.memory_format

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """No checkpoint, or no GPU that this PyTorch can use."""
        return why_not_torch(subject, self.device)

    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Put the network onto the device, in its layout."""
        module = on_device(subject, self.device, self.precision).to(memory_format=self.layout)
        module.network.register_forward_pre_hook(self._laid_out)
        return opened(module, self.device, self.precision)

    def _laid_out(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:  # noqa: ARG002
        return (inputs[0].contiguous(memory_format=self.layout),)


@dataclass(frozen=True, kw_only=True)
class CompiledContestant(Contestant):
    """The checkpoint's network through `torch.compile`, for exactly one shape and as one graph: eager code is refused.

    It is compiled anew each time, without the caches on disk, and the seconds are a fact of its measurements. What was
    compiled stays until `torch.compiler.reset`, which takes it from all peers that are open.
    """

    memory: ClassVar[float] = 1.75
    keeps_memory: ClassVar[bool] = False

    name: str = COMPILED

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """As of `EagerContestant`."""
        return why_not_torch(subject, self.device)

    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Compile for the shape."""
        module = on_device(subject, self.device, self.precision)
        found = opened(torch.compile(own_code(module), fullgraph=True, dynamic=False), self.device, self.precision)
        images = np.zeros((*shape, subject.card.architecture.in_channels), np.uint8)
        started = time.perf_counter()
        with _set(torch.compiler.config, "force_disable_caches", True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about caches that are off, and options that it would choose otherwise
            found(images)
        return LoadedContestant(
            run=found.run,
            provider=found.provider,
            facts={"compile_s": time.perf_counter() - started},
            close=found.close,
        )


def why_not_torch(subject: BenchmarkModel, device: Device) -> str | None:
    """Why PyTorch cannot run the subject on a device."""
    if subject.checkpoint is None:
        return "runs the checkpoint that the model was exported from, and none was given; give --checkpoint"
    if device.kind == "cpu" or usable(device):
        return None
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU that it can use; see nvidia-smi"
    return f"GPU {device.index} does not exist, PyTorch sees {torch.cuda.device_count()}"


def usable(device: Device) -> bool:
    """Whether this PyTorch can use a GPU."""
    return torch.cuda.is_available() and device.index < torch.cuda.device_count()


def own_code(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A call of the module with a code object of its own: by it, `torch.compile` finds what it compiled before."""

    def call(image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = module(image)
        return answer

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)


def on_device(subject: BenchmarkModel, device: Device, precision: Arithmetic) -> Segmenter:
    """The network on a device, its weights and activations in a precision; what is before and after it in float32."""
    module = subject.segmenter().to(place(device))
    if precision in DTYPE:
        module.network.to(DTYPE[precision])
        module.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(DTYPE[precision]),))
    return module


def place(device: Device) -> torch.device:
    """Where PyTorch puts tensors."""
    return torch.device("cpu") if device.kind == "cpu" else torch.device("cuda", device.index)


def opened(module: Callable[[torch.Tensor], torch.Tensor], device: Device, precision: Arithmetic) -> LoadedContestant:
    """A module on a device as a function of arrays; copying the answer to host memory waits for the GPU."""
    target, held = place(device), [module]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), arithmetic(precision):
            answer = held[0](torch.from_numpy(images).to(target))
            require(answer.device, target, "PyTorch's answer")
            result: NDArray[np.float32] = answer.cpu().numpy()
        return result

    def let_go() -> None:
        held.clear()
        if target.type == "cuda":
            torch.cuda.empty_cache()

    return LoadedContestant(run=run, provider=f"PyTorch, {target}", close=let_go)


@contextmanager
def arithmetic(precision: Arithmetic) -> Iterator[None]:
    """Multiply in a precision: PyTorch's convolutions on a GPU are in TF32 unless told otherwise.

    cuDNN measures its kernels for the shape (`cudnn.benchmark`), as ONNX Runtime lets it.
    """
    multiplied = "tf32" if precision == "tf32" else "ieee"
    convolutions: Any = cudnn  # its module is replaced by an object that has more
    with (
        _set(convolutions.conv, "fp32_precision", multiplied),
        _set(cuda.matmul, "fp32_precision", multiplied),
        _set(cudnn, "benchmark", True),
    ):
        yield


@contextmanager
def _set(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute within the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def torch_contestants(device: Device) -> tuple[Contestant, ...]:
    """All of PyTorch's on a device."""
    found: list[Contestant] = []
    kinds: tuple[Arithmetic, ...] = ("fp32",) if device.kind == "cpu" else ("fp32", "tf32", "fp16", "bf16")
    for precision in kinds:
        found += [
            EagerContestant(name=EAGER, precision=precision, device=device, layout=torch.contiguous_format),
            EagerContestant(name=CHANNELS_LAST, precision=precision, device=device, layout=torch.channels_last),
            CompiledContestant(precision=precision, device=device),
        ]
    return tuple(found)
