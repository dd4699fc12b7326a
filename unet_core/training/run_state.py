"""The state of a run, as a checkpoint holds it: all of it is checked before anything of it is restored."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError
from unet_core.config import TrainConfig, shown_value
from unet_core.evaluation.metrics import CLASS_PREFIX, METRICS
from unet_core.losses import loss_names
from unet_core.training.optim import ENCODER_SCALE, state_shapes

MOST = 10**12
"""Largest count and duration (in seconds) that a state can have."""

LARGEST_SCALE = 2.0**127
"""Largest scale of the loss: that of float32."""

LARGEST_TRACKER = 2**31 - 1
"""Largest number of steps that the scale's tracker counts: that of int32."""

MOST_EPOCHS, MOST_PROCESSES, LONGEST = 10**6, 2**20, 3000
"""Maximum number of epochs in a history, of processes, and of characters in a text."""

ROW = ("epoch", "train_loss", "pixel_dice", "lr", "train_seconds", "seconds")
"""Figures that every epoch of a history has."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The things that a state has to fit: settings, network and optimizer of the run, its number of training images."""

    config: TrainConfig
    network: nn.Module
    optimizer: torch.optim.Optimizer
    images: int


def check_data(state: Mapping[str, Any]) -> str:
    """Return the fingerprint of the data that a state is of.

    Raises:
        CheckpointError: there is none.
    """
    require("data" in state, "its content", "no data", "one")
    data = state["data"]
    fits = isinstance(data, str) and data.isprintable() and len(data) <= LONGEST
    require(fits, "data", found_text(data), "a fingerprint")
    return str(data)


def check_run_state(state: Mapping[str, Any], expected: Expected) -> None:
    """Check every entry that a run is restored from: types, shapes, ranges, finite numbers.

    Raises:
        CheckpointError: an entry is missing or wrong; the message names it, and not the file.
    """
    for entry, check in CHECKS.items():
        require(entry in state, "its content", f"no {entry}", "one")
        check(state[entry], expected)
    seen = sum(count for _, count in state["losses"])
    require(seen <= state["position"], "losses", f"{seen} images", f"at most the {state['position']} of its position")


def require(fits: bool, entry: str, found: object, expected: str) -> None:
    """Raise a CheckpointError about an entry if it does not fit."""
    if not fits:
        raise CheckpointError(f"{entry}: found {found}, expected {expected}")


def found_text(value: object) -> str:
    """Write a value of a file for a message, or what it is if it is no number or text."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return shown_value(value)
    return f"a {type(value).__name__}"


def check_number(value: object, entry: str, low: float, high: float, *, whole: bool = False) -> None:
    """Check that a value is a number within these bounds, or an integer if it has to be `whole`."""
    kind = "an integer" if whole else "a number"
    fits = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
    require(fits and low <= value <= high, entry, found_text(value), f"{kind} from {low:g} to {high:g}")  # type: ignore[operator]


def check_dict(value: object, entry: str, names: tuple[str, ...]) -> None:
    """Check that a value is a dictionary that has these names."""
    require(isinstance(value, dict), entry, found_text(value), "names and values")
    for name in names:
        require(name in value, entry, f"no {name}", "one")  # type: ignore[operator]


def check_tensor(value: object, entry: str, like: Tensor, *, positive: bool = False) -> None:
    """Check that a value is a finite tensor of the type and shape of another one."""
    fits = isinstance(value, Tensor) and value.layout == torch.strided and value.dtype == like.dtype
    require(fits and value.shape == like.shape, entry, found_text(value), found_text(like))  # type: ignore[attr-defined]
    assert isinstance(value, Tensor)
    low, high = (float(one) for one in value.aminmax())  # NaN if there is one
    require(math.isfinite(low) and math.isfinite(high), entry, "NaN or infinite values", "finite ones")
    require(not positive or low >= 0, entry, "negative values", "none below 0")


def check_network(value: object, expected: Expected) -> None:
    """Check the network's own weights, which are there beside those of a moving average."""
    if not expected.config.ema:
        require(value is None, "network", found_text(value), "none without --ema")
        return
    weights = expected.network.state_dict()
    check_dict(value, "network", tuple(weights))
    assert isinstance(value, dict)
    require(len(value) == len(weights), "network", f"{len(value)} weights", f"{len(weights)}")
    for name, like in weights.items():
        check_tensor(
            value[name], f"network.{name}", like, positive=name.endswith(("running_var", "num_batches_tracked"))
        )


def check_average_steps(value: object, expected: Expected) -> None:
    """Check the number of steps that a moving average has seen."""
    check_number(value, "average_steps", 0, MOST if expected.config.ema else 0, whole=True)


def check_optimizer(value: object, expected: Expected) -> None:
    """Check the optimizer's groups of weights, and what it keeps of each weight: of all of them, or before the first
    step of none.
    """
    check_dict(value, "optimizer", ("state", "param_groups"))
    assert isinstance(value, dict)
    groups, own = value["param_groups"], expected.optimizer.state_dict()["param_groups"]
    fits = isinstance(groups, list) and len(groups) == len(own)
    require(fits, "optimizer.param_groups", found_text(groups), f"a list of {len(own)}")
    for index, (group, like) in enumerate(zip(groups, own, strict=True)):
        entry = f"optimizer.param_groups.{index}"
        check_dict(group, entry, ("params", "lr"))
        numbers = group["params"]
        fits = (
            isinstance(numbers, list) and all(type(number) is int for number in numbers) and numbers == like["params"]
        )
        require(fits, f"{entry}.params", found_text(numbers), f"the numbers of {len(like['params'])} weights")
        check_number(group["lr"], f"{entry}.lr", 0, MOST)
    weights = [weight for group in expected.optimizer.param_groups for weight in group["params"]]
    state = value["state"]
    check_dict(state, "optimizer.state", ())
    if not state:
        return
    found = f"{len(state)} weights"
    # An encoder that was frozen so far has no state, and later fewer steps than the other weights.
    encoder = [number for group in own if ENCODER_SCALE in group for number in group["params"]]
    late = set(encoder) if expected.config.freeze_encoder else set()
    numbered = set(range(len(weights)))
    fits = all(type(number) is int for number in state) and state.keys() in (numbered, numbered - late)
    require(fits, "optimizer.state", found, f"the numbers of {len(weights)} weights, or none")
    needed, allowed = (state_shapes(expected.config, momentum) for momentum in (0.0, 0.5))
    for number, weight in enumerate(weights):
        if number not in state:
            continue
        entry = f"optimizer.state.{number}"
        check_dict(state[number], entry, tuple(needed))
        names = ", ".join(map(str, state[0]))
        require(state[number].keys() == state[0].keys(), entry, "other names", f"those of the first weight ({names})")
        for name, one in state[number].items():
            require(name in allowed, entry, found_text(name), f"one of {', '.join(allowed) or 'none'}")
            if not allowed[name]:
                check_steps(one, f"{entry}.{name}")
            elif (
                one is not None or name in needed
            ):  # older versions of PyTorch keep None before a momentum's first step
                check_tensor(one, f"{entry}.{name}", weight.detach(), positive="sq" in name)
    for numbers in (numbered - late, late):
        steps = {float(state[number]["step"]) for number in numbers & state.keys() if "step" in state[number]}
        found = f"{len(steps)} different numbers of steps"
        require(len(steps) <= 1, "optimizer.state", found, "the same for all weights")
    check_unshared(state)


def check_steps(value: object, entry: str) -> None:
    """Check a number of steps, a tensor of one value in newer versions of PyTorch."""
    fits = isinstance(value, Tensor) and value.layout == torch.strided and value.shape == () and not value.is_complex()
    count = value.item() if isinstance(value, Tensor) and fits else value
    check_number(count, entry, 1, MOST)
    require(float(count).is_integer(), entry, count, "a number of steps")  # type: ignore[arg-type]


def check_unshared(state: Mapping[int, Mapping[str, object]]) -> None:
    """Check that no two values of an optimizer lie in the same memory, where each step would change both."""
    places: set[int] = set()
    for number, values in state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or not value.numel():
                continue
            dense = value.is_contiguous() or (
                value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            )
            entry = f"optimizer.state.{number}.{name}"
            require(dense and value.data_ptr() not in places, entry, "memory that is shared", "values of its own")
            places.add(value.data_ptr())


def check_precision(value: object, _: Expected) -> None:
    """Check the scale of the loss: none without fp16."""
    check_dict(value, "precision", ("scaler", "skipped"))
    assert isinstance(value, dict)
    check_number(value["skipped"], "precision.skipped", 0, MOST, whole=True)
    scaler = value["scaler"]
    if scaler == {}:
        return
    bounds = {
        "scale": (2.0**-126, LARGEST_SCALE),
        "growth_factor": (1, 2.0**20),
        "backoff_factor": (2.0**-20, 1),
        "growth_interval": (1, LARGEST_TRACKER),
        "_growth_tracker": (0, LARGEST_TRACKER),
    }
    check_dict(scaler, "precision.scaler", tuple(bounds))
    for name, (low, high) in bounds.items():
        check_number(scaler[name], f"precision.scaler.{name}", low, high, whole=high == LARGEST_TRACKER)


def check_history(value: object, _: Expected) -> None:
    """Check the figures of the finished epochs."""
    fits = isinstance(value, list) and len(value) <= MOST_EPOCHS
    require(fits, "history", found_text(value), "a list of epochs")
    assert isinstance(value, list)
    for index, row in enumerate(value):
        entry = f"history.{index}"
        check_dict(row, entry, ROW)
        for name, figure in row.items():
            fits = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST
            require(fits, entry, found_text(name), "names of figures")
            place = f"{entry}.{name}"
            if name == "epoch":
                check_number(figure, place, index + 1, index + 1)
            elif name in METRICS or name.startswith(CLASS_PREFIX):
                if not (type(figure) is float and math.isnan(figure)):
                    check_number(figure, place, 0, 1)
            elif name in ("lr", "seconds", "train_seconds", "skipped_steps"):
                check_number(figure, place, 0, MOST)
            else:
                check_number(figure, place, -LARGEST_SCALE, LARGEST_SCALE)


def check_position(value: object, expected: Expected) -> None:
    """Check the number of images that the current epoch has trained on."""
    check_number(value, "position", 0, expected.images, whole=True)


def check_seconds(value: object, _: Expected) -> None:
    """Check the time that the current epoch has taken."""
    check_number(value, "seconds", 0, MOST)


def check_note(value: object, _: Expected) -> None:
    """Check the note on a network that predicts one class only."""
    fits = value is None or (isinstance(value, str) and value.isprintable() and len(value) <= LONGEST)
    require(fits, "one_sided", found_text(value), "a line of text, or none")


def check_loss(state: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the name of the loss that a run minimises; runs of older versions do not store it."""
    names, name = loss_names(len(config.classes)), state.get("loss", config.loss_name)
    require(name in names, "loss", found_text(name), f"one of {', '.join(names)}")
    return str(name)


def check_losses(value: object, expected: Expected) -> None:
    """Check the sum of losses and the number of images of each process."""
    fits = isinstance(value, list) and 1 <= len(value) <= MOST_PROCESSES
    require(fits, "losses", found_text(value), "a list of one pair or more")
    assert isinstance(value, list)
    for index, pair in enumerate(value):
        entry = f"losses.{index}"
        require(isinstance(pair, list | tuple) and len(pair) == 2, entry, found_text(pair), "a sum and a count")
        check_number(pair[0], f"{entry}.0", -LARGEST_SCALE, LARGEST_SCALE)
        check_number(pair[1], f"{entry}.1", 0, expected.images, whole=True)


def check_random(value: object, _: Expected) -> None:
    """Check the states of PyTorch's random generators, by setting those of others."""
    check_dict(value, "random", ("cpu", "cuda"))
    assert isinstance(value, dict)
    states = value["cuda"]
    require(isinstance(states, list), "random.cuda", found_text(states), "a list of states")
    set_state(value["cpu"], "random.cpu", "cpu")
    here = torch.cuda.is_available() and len(states) == torch.cuda.device_count()
    for index, state in enumerate(states):
        set_state(state, f"random.cuda.{index}", f"cuda:{index}" if here else None)


def set_state(value: object, entry: str, device: str | None) -> None:
    """Set the state of a new random generator, of the device it is for if that is here."""
    expected = "the state of a random generator"
    fits = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1
    require(fits, entry, found_text(value), expected)
    assert isinstance(value, Tensor)
    try:
        if device is not None:
            torch.Generator(device).set_state(value.clone())
    except RuntimeError:
        require(False, entry, "other bytes", expected)


CHECKS: Mapping[str, Callable[[object, Expected], None]] = {
    "network": check_network,
    "average_steps": check_average_steps,
    "optimizer": check_optimizer,
    "precision": check_precision,
    "history": check_history,
    "position": check_position,
    "seconds": check_seconds,
    "one_sided": check_note,
    "losses": check_losses,
    "random": check_random,
}
"""All entries that a run is restored from beside weights, card and settings, and what checks each."""
