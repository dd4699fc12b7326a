"""Optimizers, schedules of the learning rate, mixed precision, and the moving average of the weights.

To add an optimizer or a schedule, add its name in `unet_core.config` and its function to `OPTIMIZERS` or `SCHEDULES`.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from runtime.errors import ConfigError, NotFiniteError
from unet_core.config import Amp, OptimizerName, ScheduleName, TrainConfig
from unet_core.evaluation.metrics import score
from unet_core.model import UNet

History = Sequence[Mapping[str, float]]
"""The figures of each epoch, as in `metrics.csv`."""

PLATEAU_FACTOR = 0.5
"""Factor of the learning rate after each plateau."""

LEAST_SCALE = 2.0**-14
"""Smallest scale of the loss with fp16; gradients that overflow even so are NaN or infinite at any scale."""

FP16_CAPABILITY, BF16_CAPABILITY = (7, 0), (8, 0)
"""CUDA compute capabilities from which GPUs have tensor cores for fp16 and for bf16."""

OPTIMIZERS: Mapping[OptimizerName, Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]] = {
    "adam": lambda groups, config: torch.optim.Adam(groups, lr=config.lr),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr),
    "sgd": lambda groups, config: torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0
    ),
    "rmsprop": lambda groups, config: torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum),
}
"""Functions of groups of weights and the settings."""


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a run; weights of two dimensions or more decay, biases and norms do not."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.optimizer](groups, config)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state but keep the current settings: a resumed run may have another momentum or weight decay."""
    groups = [
        {**old, **{key: value for key, value in new.items() if key not in ("params", "lr")}}
        for old, new in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def cosine_factor(config: TrainConfig, epochs: float, _: History) -> float:
    """Fall from 1 after the warm-up to 0 at the last epoch, along half a cosine."""
    done = (epochs - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2


SCHEDULES: Mapping[ScheduleName, Callable[[TrainConfig, float, History], float]] = {
    "constant": lambda *_: 1.0,
    "cosine": cosine_factor,
    "plateau": lambda config, _, history: PLATEAU_FACTOR ** reductions(history, config.plateau_epochs),
}
"""Functions of the settings, the epochs trained so far (with fraction), and the history, that return 0..1."""


def lr_factor(config: TrainConfig, epochs: float, history: History) -> float:
    """Return the factor of the learning rate, 0..1, after `epochs` (with fraction) of training.

    It depends only on the progress of the run and the results of its epochs, so a resumed run continues exactly.
    """
    factor = SCHEDULES[config.schedule](config, epochs, history)
    if epochs < config.warmup_epochs:
        factor *= epochs / config.warmup_epochs
    return factor


def is_best(history: History) -> bool:
    """Return True if the last epoch is better than all before it."""
    *past, last = map(score, history)
    return last > max(past, default=-1.0)


def epochs_without_progress(history: History) -> int:
    """Count the epochs since the best one."""
    if not history:
        return 0
    scores = [score(row) for row in history]
    return len(scores) - 1 - scores.index(max(scores))


def reductions(history: History, patience: int) -> int:
    """Count the plateaus: `patience` epochs in a row without a better one, after which counting starts again."""
    best, waited, count = -1.0, 0, 0
    for row in history:
        if score(row) > best:
            best, waited = score(row), 0
        else:
            waited += 1
            if waited == patience:
                waited, count = 0, count + 1
    return count


class ModelEMA:
    """Exponential moving average of weights and of BatchNorm's statistics: steadier than any step's own weights.

    The decay grows from 2/11 at the first step to its full value, as (1 + steps) / (10 + steps), so that the random
    initial weights are forgotten soon. BatchNorm's running mean and variance are averaged with the same decay as the
    weights that they belong to.
    """

    def __init__(self, network: UNet, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averaged, self._current = (list(side) for side in zip(*floats, strict=True))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # BatchNorm's batches seen

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's weights after a step to the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self._averaged, self._current, self.steps)  # type: ignore[no-untyped-call]
        for count, new in self._counts:
            count.copy_(new)


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
