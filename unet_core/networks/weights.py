"""Weights from a checkpoint file into a network that its author's code made: strictly, whatever they are wrapped in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.errors import CheckpointError, ConfigError, one_line
from unet_core.checkpoint import has_card
from unet_core.model_options import WeightsChoice
from unet_core.networks.factory import SHOWN
from unet_core.weight_files.finder import (
    ENTRIES,
    MASK_VALUES,
    StateDict,
    choose,
    listed,
    parts_that_fit,
    state_dicts,
    unnamed_average,
    without_prefixes,
)
from unet_core.weight_files.reader import read_content


def load_weights_into(
    network: nn.Module, path: Path, choice: WeightsChoice | None = None, content: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Load a checkpoint's weights into a network, all of its weights and nothing else, and return notes for the user.

    Nothing in the file is executed. The weights may be in any entry, with any prefix. `content` is that of the file, if
    it was read already.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, or they do not fit the network.
        ConfigError: the file has a card of this library, or the weights of `choice` are not in it.
    """
    content = read_content(path) if content is None else content
    if has_card(content):
        raise ConfigError(f"--network: {path} has a card, which tells its network; leave --network out")
    found = list(state_dicts(content))
    if not found:
        raise CheckpointError(f"{path}: holds no weights; expected names and tensors, or these under {ENTRIES[0]!r}")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    fitting = [part for one in found for part in parts_that_fit(one, shapes)]
    if not fitting:
        parts = [part for one in found for part in without_prefixes(one)]
        nearest = max((part.weights for part in parts), key=lambda weights: len(weights.keys() & shapes.keys()))
        tensors = {name: value for name, value in nearest.items() if name != MASK_VALUES}
        raise CheckpointError(
            f"{path}: does not fit the network; {misfits(tensors, shapes)}; are its arguments those of the training?"
        )
    taken, notes = choose(fitting, choice, path, unnamed_average(content))
    try:
        network.load_state_dict(dict(taken.weights))
    except Exception as error:  # of any type: its author's code may have a part in it
        raise CheckpointError(
            f"{path}: does not fit the network, whose load_state_dict raises {type(error).__name__}: "
            f"{one_line(str(error))[:SHOWN]}"
        ) from error
    types = {value.dtype for value in taken.weights.values() if value.is_floating_point()} - {torch.float32}
    if types:
        found_types = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        notes = (*notes, f"weights stored as {found_types} are float32 here")
    bad = next((name for name, value in network.state_dict().items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {bad} holds NaN or infinite weights; use an earlier checkpoint")
    return notes


def misfits(weights: StateDict, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """List the names that are missing, not known, or of another shape."""
    missing = [name for name in shapes if name not in weights]
    unknown = [name for name in weights if name not in shapes]
    wrong = [
        f"{name} {list(value.shape)} instead of {list(shapes[name])}"
        for name, value in weights.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    parts = ((missing, "missing"), (unknown, "not in the network"), (wrong, "of another shape"))
    return "; ".join(f"{len(names)} {words}: {listed(names)}" for names, words in parts if names)
