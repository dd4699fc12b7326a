"""Optimizers, and schedules of the learning rate.

To add an optimizer or a schedule, add its name in `unet_core.config` and its function to `OPTIMIZERS` or `SCHEDULES`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unet_core.config import OptimizerName, ScheduleName, TrainConfig
from unet_core.evaluation.best_epoch import History, reductions

ENCODER, ENCODER_SCALE = "encoder.", "encoder_lr_scale"
"""Start of the names of an encoder's weights, and key of its factor of the learning rate in groups of weights."""

PLATEAU_FACTOR = 0.5
"""Factor of the learning rate after each plateau."""

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
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    encoder = [weight for name, weight in trained.items() if config.network != "unet" and name.startswith(ENCODER)]
    own = {id(weight) for weight in encoder}
    groups = decayed([weight for weight in trained.values() if id(weight) not in own], config)
    if encoder:
        groups += [group | {ENCODER_SCALE: config.encoder_lr_scale} for group in decayed(encoder, config)]
    return OPTIMIZERS[config.optimizer](groups, config)


def decayed(weights: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Return two groups of these weights: those that decay, and the others."""
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights; an encoder's is multiplied by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(ENCODER_SCALE, 1.0)


def encoder_weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the weights of the encoder; a U-Net of this library has none."""
    return [weight for group in optimizer.param_groups if ENCODER_SCALE in group for weight in group["params"]]


def state_shapes(config: TrainConfig, momentum: float) -> dict[str, bool]:
    """Return the names of what an optimizer keeps of each weight; True for tensors of the weight's shape."""
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.zeros(2, 3)
    optimizer = OPTIMIZERS[config.optimizer]([{"params": [weight]}], replace(config, momentum=momentum))
    optimizer.step()
    values = optimizer.state[weight].items()
    return {name: isinstance(value, Tensor) and value.shape == weight.shape for name, value in values}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], config: TrainConfig) -> None:
    """Load a saved state but keep the current settings: a resumed run may have another momentum or weight decay."""
    groups = [
        {**new, "params": old["params"], "lr": old["lr"]}
        for old, new in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    shapes = state_shapes(config, config.momentum)
    for weight, values in optimizer.state.items():
        for name, like_weight in shapes.items():
            if like_weight and values.get(name) is None:  # there was no momentum before
                values[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)


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
