"""Optimizers, and learning rates by hand numbers."""

import math
from typing import get_args

import pytest
import torch
from networks import make_network
from torch import nn

from unet_core.config import OptimizerName, ScheduleName, TrainConfig
from unet_core.training import optim
from unet_core.training.optim import lr_factor, make_optimizer


def config(**settings):
    return TrainConfig(data="data", out="run", **settings)


def history(*scores):
    return [{"epoch": float(epoch), "pixel_dice": value} for epoch, value in enumerate(scores, 1)]


OPTIMIZERS = [
    ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "decoupled_weight_decay": False}),
    ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "decoupled_weight_decay": True}),
    ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.99}),
]


@pytest.mark.parametrize(("name", "kind", "options"), OPTIMIZERS)
def test_each_optimizer_decays_convolutions_alone(name, kind, options):
    network = make_network()
    optimizer = make_optimizer(network, config(optimizer=name, lr=0.02, momentum=0.8, weight_decay=0.3))
    assert type(optimizer) is kind
    for group, decay in zip(optimizer.param_groups, (0.3, 0.0), strict=True):
        assert {key: group[key] for key in options} == options
        assert (group["lr"], group["weight_decay"]) == (0.02, decay)
    names = {id(weight): name for name, weight in network.named_parameters()}
    decayed, spared = ({names[id(weight)] for weight in group["params"]} for group in optimizer.param_groups)
    assert decayed | spared == set(names.values())
    convolutions = {name for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)}
    assert decayed == {f"{name}.weight" for name in convolutions}


def test_every_name_in_the_settings_has_its_function():
    assert (set(optim.OPTIMIZERS), set(optim.SCHEDULES)) == (set(get_args(OptimizerName)), set(get_args(ScheduleName)))


def test_sgd_without_momentum_is_not_nesterovs():
    (group, _) = make_optimizer(make_network(), config(optimizer="sgd", momentum=0.0)).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def test_weights_that_do_not_learn_are_left_out():
    network = make_network().requires_grad_(False)
    network.final_conv.requires_grad_(True)
    groups = make_optimizer(network, config()).param_groups
    assert [[weight.shape for weight in group["params"]] for group in groups] == [[(1, 4, 1, 1)], [(1,)]]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, {0.01: 1, 5: 1, 10: 1}),
        ({"warmup_epochs": 2.0}, {0.0: 0, 0.5: 0.25, 1.5: 0.75, 2: 1, 9: 1}),
        ({"warmup_epochs": 20.0}, {1: 0.05, 10: 0.5}),
        ({"schedule": "cosine"}, {0.0: 1, 2.5: 0.5 + math.sqrt(0.125), 5: 0.5, 10: 0, 10.5: 0}),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, {1: 0.5, 2: 1, 6: 0.5, 8: 0.5 - math.sqrt(0.125), 10: 0}),
        ({"schedule": "cosine", "warmup_epochs": 10.0}, {1: 0.1, 9.5: 0.95}),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, {1: 0.05, 9.5: 0.475}),
    ],
)
def test_the_learning_rates_factor_by_hand(settings, factors):
    of_ten = config(epochs=10, **settings)
    assert {epochs: lr_factor(of_ten, epochs, []) for epochs in factors} == pytest.approx(factors, abs=1e-12)


def test_on_a_plateau_the_factor_is_halved_and_only_with_that_schedule():
    stuck = history(0.5, 0.5, 0.4, 0.5, 0.5)
    assert lr_factor(config(schedule="plateau", plateau_epochs=2), 5.5, stuck) == 0.25
    assert lr_factor(config(schedule="plateau", plateau_epochs=2, warmup_epochs=11.0), 5.5, stuck) == 0.125
    assert lr_factor(config(plateau_epochs=2), 5.5, stuck) == 1
