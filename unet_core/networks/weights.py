"""Weights from a checkpoint file into a network that its author's code made: strictly, whatever they are wrapped in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError
from unet_core.checkpoint import read_content

ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "network_weights",
    "weights",
    "params",
)
"""Entries under which programs keep the weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that wrappers put before every key."""

LISTED = 10
"""Maximum number of keys in a message, for each way in which they do not fit."""


def load_weights_into(network: nn.Module, path: Path) -> None:
    """Load a checkpoint's weights into a network, all of them and nothing else.

    Nothing in the file is executed. Weights may be under one of `ENTRIES`, with some of `PREFIXES`, in any nesting.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, or they do not fit the network.
    """
    candidates = list(state_dicts(read_content(path)))
    if not candidates:
        raise CheckpointError(f"{path}: holds no weights; expected names and tensors, or these under {ENTRIES[0]!r}")
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for weights in candidates:
        if {name: tuple(value.shape) for name, value in weights.items()} == expected:
            network.load_state_dict(weights)
            break
    else:
        nearest = max(candidates, key=lambda weights: len(weights.keys() & expected.keys()))
        raise CheckpointError(f"{path}: does not fit the network; {misfits(nearest, expected)}")
    bad = next((name for name, value in network.state_dict().items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {bad} holds NaN or infinite weights; use an earlier checkpoint")


def state_dicts(content: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Find all state dicts in a checkpoint: itself or under `ENTRIES`, as they are and without prefixes."""
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        weights = dict(content)
        yield weights
        while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in weights)), None):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            yield weights
        return
    for entry in ENTRIES:
        inner = content.get(entry)
        if isinstance(inner, Mapping):
            yield from state_dicts(inner)


def misfits(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """List the keys that are missing, not known, or of another shape."""
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    shapes = [
        f"{name} {list(value.shape)} instead of {list(expected[name])}"
        for name, value in weights.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    parts = [
        f"{len(names)} {words}: {', '.join(names[:LISTED])}{', ...' * (len(names) > LISTED)}"
        for names, words in ((missing, "missing"), (unknown, "not in the network"), (shapes, "of another shape"))
        if names
    ]
    return "; ".join(parts)
