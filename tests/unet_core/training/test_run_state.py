"""States of runs that somebody changed: each entry is checked before anything is restored, and named if it is wrong."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.errors import CheckpointError
from unet_core.config import TrainConfig
from unet_core.model import UNet
from unet_core.training.optim import make_optimizer, restore_optimizer
from unet_core.training.run_state import CHECKS, Expected, check_data, check_run_state

CONFIG = TrainConfig(data="data", out="run", widths=(2,), height=16, width=16, ema=0.9)
IMAGES = 6
ROW = {"epoch": 1, "train_loss": 0.5, "pixel_dice": 0.9, "lr": 1e-4, "train_seconds": 2.0, "seconds": 3.0}
SCALER = {"scale": 2.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


def expected_by(config):
    """A network and its optimizer, after a step."""
    torch.manual_seed(0)
    network = UNet(config.architecture)
    optimizer = make_optimizer(network, config)
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    return Expected(config=config, network=network, optimizer=optimizer, images=IMAGES)


def state_of(expected):
    """A state of it that is right."""
    return copy.deepcopy(
        {
            "data": "6 training pairs",
            "network": dict(expected.network.state_dict()) if expected.config.ema else None,
            "average_steps": 1 if expected.config.ema else 0,
            "optimizer": expected.optimizer.state_dict(),
            "precision": {"scaler": dict(SCALER), "skipped": 0},
            "history": [dict(ROW), {**ROW, "epoch": 2, "pixel_dice": math.nan, "skipped_steps": 1}],
            "position": 4,
            "seconds": 1.5,
            "one_sided": None,
            "losses": [(0.5, 2), (0.25, 2)],
            "random": {"cpu": torch.get_rng_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)]},
        }
    )


@pytest.fixture(scope="module")
def expected():
    return expected_by(CONFIG)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_what_a_run_saves_fits(optimizer, momentum):
    expected = expected_by(replace(CONFIG, optimizer=optimizer, momentum=momentum, ema=0.0))
    check_run_state(state_of(expected), expected)
    check_run_state(state_of(expected) | {"optimizer": make_optimizer(expected.network, CONFIG).state_dict()}, expected)


def test_every_entry_that_is_saved_is_checked(expected):
    state = state_of(expected)
    assert CHECKS.keys() | {"data"} == state.keys()
    check_run_state(state, expected)
    assert check_data(state) == "6 training pairs"


WEIGHT = "optimizer.state.0.exp_avg"
A_TENSOR = "a tensor of float32 [2, 3, 3, 3]"

WRONG = {
    "network": (None, "network: found None, expected names and values"),
    "network.final_conv.bias": (torch.zeros(2), "found a tensor of float32 [2], expected a tensor of float32 [1]"),
    "network.downs.0.conv.1.running_var": (torch.tensor([-1.0, 1]), "found negative values, expected none below 0"),
    "network.bottleneck.conv.0.weight": (torch.zeros(1).expand(4, 2, 3, 3).double(), "found a tensor of float64"),
    "average_steps": (-1, "average_steps: found -1, expected an integer from 0 to 1e+12"),
    "optimizer": ([], "optimizer: found a list, expected names and values"),
    "optimizer.state": ({0: {}}, "optimizer.state: found 1 weights, expected the numbers of 22 weights, or none"),
    "optimizer.state.0": (None, "optimizer.state.0: found None, expected names and values"),
    WEIGHT: (torch.full((2, 3, 3, 3), math.nan), f"{WEIGHT}: found NaN or infinite values, expected finite ones"),
    "optimizer.state.0.exp_avg_sq": (torch.full((2, 3, 3, 3), -1.0), "found negative values, expected none below 0"),
    "optimizer.state.1.exp_avg": ("x", "optimizer.state.1.exp_avg: found 'x', expected a tensor of float32"),
    "optimizer.state.2.step": (
        torch.tensor(math.inf),
        "state.2.step: found inf, expected a number from 1 to",
    ),
    "optimizer.state.3.step": (
        torch.tensor(7.0),
        "found 2 different numbers of steps, expected the same",
    ),
    "optimizer.state.4.extra": (
        1,
        "found other names, expected those of the first weight (step,",
    ),
    "optimizer.param_groups": ([{}], "optimizer.param_groups: found a list, expected a list of 2"),
    "optimizer.param_groups.0.params": ([0, 1], "found a list, expected the numbers of"),
    "optimizer.param_groups.1.lr": (
        math.nan,
        "param_groups.1.lr: found nan, expected a number from 0 to",
    ),
    "precision.skipped": (True, "precision.skipped: found True, expected an integer from 0 to 1e+12"),
    "precision.scaler.scale": (0.0, "precision.scaler.scale: found 0.0, expected a number from"),
    "precision.scaler.growth_interval": (0, "found 0, expected an integer from 1 to 2.14748e+09"),
    "precision.scaler._growth_tracker": (2**31, "found 2147483648, expected an integer from 0 to 2.14748e+09"),
    "history": ({}, "history: found a dict, expected a list of epochs"),
    "history.0": (3, "history.0: found 3, expected names and values"),
    "history.1.epoch": (5, "history.1.epoch: found 5, expected a number from 2 to 2"),
    "history.0.pixel_dice": (1.5, "history.0.pixel_dice: found 1.5, expected a number from 0 to 1"),
    "history.0.train_loss": (math.inf, "history.0.train_loss: found inf, expected a number"),
    "history.0.\n": (1, "history.0: found '\\n', expected names of figures"),
    "position": (7, "position: found 7, expected an integer from 0 to 6"),
    "seconds": ("1", "seconds: found '1', expected a number from 0 to 1e+12"),
    "one_sided": ("\x1b[31m", "one_sided: found '\\x1b[31m', expected a line of text, or none"),
    "losses": ([], "losses: found a list, expected a list of one pair or more"),
    "losses.0": ((1,), "losses.0: found a tuple, expected a sum and a count"),
    "losses.1": ((0.0, 5), "losses: found 7 images, expected at most the 4 of its position"),
    "random.cpu": (
        torch.zeros(5056, dtype=torch.uint8),
        "random.cpu: found other bytes, expected the state",
    ),
    "random.cuda": (None, "random.cuda: found None, expected a list of states"),
    "random.cuda.0": (torch.zeros(16), "random.cuda.0: found a tensor of float32 [16], expected the state of a random"),
}


def change(state, place, value):
    *path, last = (int(part) if part.isdigit() else part for part in place.split(".", 3))
    if place.startswith("network."):
        path, last = ["network"], place.partition(".")[2]
    for step in path:
        state = state[step]
    state[last] = value


@pytest.mark.parametrize("place", WRONG)
def test_what_is_wrong_is_named(expected, place):
    value, message = WRONG[place]
    state = state_of(expected)
    change(state, place, value)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        check_run_state(state, expected)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(place.split(".")[0])


@pytest.mark.parametrize("entry", CHECKS)
def test_what_is_missing_is_named(expected, entry):
    state = state_of(expected)
    del state[entry]
    with pytest.raises(CheckpointError, match=f"^its content: found no {entry}, expected one$"):
        check_run_state(state, expected)


def test_two_weights_never_share_what_is_kept_of_them(expected):
    state = state_of(expected)
    values = state["optimizer"]["state"]
    values[0]["exp_avg_sq"] = values[0]["exp_avg"].abs_()
    values[0]["exp_avg"] = values[0]["exp_avg_sq"]
    with pytest.raises(CheckpointError, match=r"state\.0\.exp_avg_sq: found memory that is shared, expected values of"):
        check_run_state(state, expected)
    values[0]["exp_avg"] = torch.zeros(1).expand(2, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"state\.0\.exp_avg: found memory that is shared, expected values of"):
        check_run_state(state, expected)


def test_checking_changes_no_random_state(expected):
    before = torch.get_rng_state()
    check_run_state(state_of(expected), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_run_that_resumes_with_momentum_has_some(optimizer):
    before = expected_by(replace(CONFIG, optimizer=optimizer, momentum=0.0))
    config = replace(CONFIG, optimizer=optimizer, momentum=0.9)
    after = make_optimizer(before.network, config)
    restore_optimizer(after, before.optimizer.state_dict(), config)
    before.network(torch.rand(2, 3, 16, 16)).sum().backward()
    after.step()
    assert {group["momentum"] for group in after.param_groups} == {0.9}
    assert all(bool(values["momentum_buffer"].any()) for values in after.state.values())


def test_settings_of_an_optimizer_are_those_of_the_run(expected):
    state = copy.deepcopy(expected.optimizer.state_dict())
    for group in state["param_groups"]:
        group |= {"betas": "x", "eps": math.nan, "unknown": 1, "lr": 0.5}
    optimizer = make_optimizer(expected.network, CONFIG)
    restore_optimizer(optimizer, state, CONFIG)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.999), 1e-8, 0.5)
        assert "unknown" not in group


def test_all_that_a_trainer_saves_is_checked():
    source = (Path(__file__).parents[3] / "unet_core" / "training" / "trainer.py").read_text()
    saved = re.findall(r"^            (\w+)=", source.partition("def save_last")[2], re.MULTILINE)
    assert set(saved) == CHECKS.keys() | {"data", "config", "loss"}
