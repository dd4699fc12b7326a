"""Mixed precision: the type that `--amp` stands for on a device, and the scale of the loss."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ConfigError, NotFiniteError
from unet_core.config import Amp

LEAST_SCALE = 2.0**-14
"""Smallest scale of the loss with fp16; gradients that overflow even so are NaN or infinite at any scale."""

FP16_CAPABILITY, BF16_CAPABILITY = (7, 0), (8, 0)
"""CUDA compute capabilities from which GPUs have tensor cores for fp16 and for bf16."""


class MixedPrecision:
    """Mixed precision: layers in fp16 or bf16 where that is exact enough, losses and weights in fp32.

    Micikevicius et al., "Mixed Precision Training", 2018. With fp16 the loss is scaled; steps whose gradients overflow
    are skipped and counted.
    """

    def __init__(self, name: Amp, device: torch.device) -> None:
        """Choose the type for "auto".

        Raises:
            ConfigError: the GPU does not support bf16.
        """
        self.device = device
        self.dtype: torch.dtype | None = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name)
        if device.type == "cuda" and name in ("auto", "bf16"):
            capability = torch.cuda.get_device_capability(device)
            if name == "bf16" and capability < BF16_CAPABILITY:  # PyTorch would emulate it, slower than fp32
                raise ConfigError("--amp bf16: this GPU does not support it; expected fp16 or off")
            if name == "auto" and capability >= FP16_CAPABILITY:
                self.dtype = torch.bfloat16 if capability >= BF16_CAPABILITY else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.skipped = 0

    def __str__(self) -> str:
        return {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, network: nn.Module, clip_norm: float) -> bool:
        """Take a step of the optimizer, with gradients scaled down to a norm of `clip_norm` (0: no limit).

        Returns False if the gradients overflowed and the step was skipped.

        Raises:
            NotFiniteError: gradients overflow in fp16 at any scale.
        """
        if clip_norm:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        self.scaler.step(optimizer)
        if not self.scaler.is_enabled():
            return True
        before = self.scaler.get_scale()
        self.scaler.update()
        after = self.scaler.get_scale()
        self.skipped += after < before
        if after < LEAST_SCALE:
            raise NotFiniteError(
                f"gradients overflow in fp16 at any scale of the loss ({self.skipped} steps skipped)",
                "--amp bf16 or a lower --lr",
            )
        return after >= before

    def state(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state; a run that changes its precision starts with a new scale."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
