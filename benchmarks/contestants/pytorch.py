"""PyTorch as a contestant: eager, in both memory layouts, and compiled. PyTorch is imported when one is loaded."""

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from benchmarks.contestants.base import BenchmarkModel, Contestant, LoadedContestant, Precisions, Shape, torch_missing
from runtime.devices.device import Device

EAGER = "PyTorch eager"
CHANNELS_LAST = "PyTorch eager, channels_last"
COMPILED = "torch.compile"


@dataclass(frozen=True, kw_only=True)
class PyTorchContestant(Contestant):
    """The checkpoint's network in PyTorch."""

    precisions: ClassVar[Precisions] = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "fp16", "bf16")}
    memory = 1.75
    keeps_memory = False

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: no PyTorch, no checkpoint, or no GPU that this PyTorch can use."""
        missing = torch_missing()
        if missing is not None:
            return missing
        if model.checkpoint is None:
            return "runs the checkpoint that the model was exported from, and none was given; give --checkpoint"
        if self.device.kind == "cpu" or pytorch_has(self.device):
            return None
        import torch

        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no GPU that it can use; see nvidia-smi"
        return f"GPU {self.device.index} does not exist, PyTorch sees {torch.cuda.device_count()}"


@dataclass(frozen=True, kw_only=True)
class EagerContestant(PyTorchContestant):
    """The network as PyTorch runs it, in the usual memory layout of planes.

    Images come as [batch, h, w, channels], which PyTorch would keep as channels_last throughout, so a layout always has
    to be asked for.
    """

    name = EAGER
    layout: ClassVar[Literal["contiguous_format", "channels_last"]] = "contiguous_format"
    """Layout of weights and activations, by its name in PyTorch."""

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Put the network on the device, in its layout."""
        from benchmarks.contestants import pytorch_calls

        return pytorch_calls.load_eager(model, self.layout, self.device, self.precision)


@dataclass(frozen=True, kw_only=True)
class ChannelsLastContestant(EagerContestant):
    """The network as PyTorch runs it, with the channels of a pixel side by side in memory."""

    name = CHANNELS_LAST
    layout = "channels_last"


@dataclass(frozen=True, kw_only=True)
class CompiledContestant(PyTorchContestant):
    """The network through `torch.compile`, for exactly one shape and as one graph: eager code is refused.

    It is compiled anew each time, without the caches on disk, and the seconds are a fact of its measurements. The
    compiled code stays until `forget_compiled`, which takes it from all contestants that are loaded.
    """

    name = COMPILED

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - `pinned` sets PyTorch's
        """Compile for the shape."""
        from benchmarks.contestants import pytorch_calls

        return pytorch_calls.load_compiled(model, shape, self.device, self.precision)


def pytorch_has(gpu: Device) -> bool:
    """Return True if PyTorch is installed and can use the GPU."""
    if torch_missing() is not None:
        return False
    import torch

    return torch.cuda.is_available() and gpu.index < torch.cuda.device_count()


def forget_compiled() -> None:
    """Free all code that `torch.compile` made, if PyTorch is loaded."""
    if sys.modules.get("torch") is not None:
        sys.modules["torch"].compiler.reset()
