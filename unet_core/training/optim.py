"""How weights move: optimizer, learning rate, precision, moving average."""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from runtime.errors import ConfigError, NotFiniteError
from unet_core.config import TrainConfig
from unet_core.evaluation.metrics import score
from unet_core.model import UNet

History = Sequence[Mapping[str, float]]

PLATEAU_FACTOR = 0.5

LEAST_SCALE = 2.0**-14
"""Of a loss in fp16; if gradients overflow even so, they are NaN or infinite at any scale."""
FP16_CAPABILITY, BF16_CAPABILITY = (7, 0), (8, 0)
"""CUDA compute capabilities from which there are tensor cores of either type."""


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a run; weight decay goes to weights of two dimensions or more, not to biases and norms."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.Adam(groups, lr=config.lr)


def lr_factor(config: TrainConfig, epochs: float, history: History) -> float:
    """What the learning rate is multiplied with after `epochs` (with fraction) of training, 0..1.

    Nothing but a function of how far the run is and of what its epochs gave, so a resumed run goes on exactly.
    """
    factor = 1.0
    if config.schedule == "cosine":
        done = (epochs - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        factor = (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
    elif config.schedule == "plateau":
        factor = PLATEAU_FACTOR ** reductions(history, config.plateau_epochs)
    if epochs < config.warmup_epochs:
        factor *= epochs / config.warmup_epochs
    return factor


def is_best(history: History) -> bool:
    """Whether the last epoch is better than all before it."""
    *past, last = map(score, history)
    return last > max(past, default=-1.0)


def epochs_without_progress(history: History) -> int:
    """Epochs since the best one."""
    if not history:
        return 0
    scores = [score(row) for row in history]
    return len(scores) - 1 - scores.index(max(scores))


def reductions(history: History, patience: int) -> int:
    """How often `patience` epochs in a row brought nothing better; counting starts again after each."""
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

    The decay grows from 2/11 at the first step to its full value, (1 + steps) / (10 + steps) in between, so that the
    random weights of the beginning are forgotten soon. BatchNorm's running mean and variance are averaged with the same
    decay as the weights that they belong to.
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
        """Take in the network's weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self._averaged, self._current, self.steps)  # type: ignore[no-untyped-call]
        for count, new in self._counts:
            count.copy_(new)


class Precision:
    """Mixed precision: the network in fp16 or bf16 where that is exact enough, losses and weights in fp32.

    Micikevicius et al., "Mixed Precision Training", 2018. With fp16 the loss is scaled; steps whose gradients overflow
    are skipped and counted.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Decide "auto"; raises `ConfigError` where the device cannot do what was asked for."""
        self.device = device
        self.dtype = _dtype_of(name, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.skipped = 0

    def __str__(self) -> str:
        return {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

    def context(self) -> AbstractContextManager[Any]:
        """Where the forward pass runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the scaled loss."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, network: nn.Module, clip_norm: float) -> bool:
        """One step of the optimizer, on gradients of at most `clip_norm` (0: any); False where it was skipped.

        Raises:
            NotFiniteError: gradients overflow in fp16 at any scale.
        """
        if clip_norm:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        self.scaler.step(optimizer)
        return not self.scaler.is_enabled() or self._update_scale()

    def _update_scale(self) -> bool:
        before = self.scaler.get_scale()
        self.scaler.update()
        after = self.scaler.get_scale()
        self.skipped += after < before
        if after < LEAST_SCALE:
            raise NotFiniteError(
                f"gradients overflow in fp16 whatever the loss is multiplied with ({self.skipped} steps skipped)",
                "--amp bf16 or a lower --lr",
            )
        return after >= before

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved; a run that changes its precision starts with a new scale."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def _dtype_of(name: str, device: torch.device) -> torch.dtype | None:
    if name == "off" or (name == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        return torch.bfloat16 if name == "bf16" else torch.float16
    capability = torch.cuda.get_device_capability(device)
    if name == "bf16" and capability < BF16_CAPABILITY:  # PyTorch would emulate it, slower than fp32
        raise ConfigError("--amp bf16: this GPU has none; expected fp16 or off")
    if name == "bf16" or (name == "auto" and capability >= BF16_CAPABILITY):
        return torch.bfloat16
    return torch.float16 if name == "fp16" or capability >= FP16_CAPABILITY else None
