"""Finding the weights in the content of a file, by the entries and prefixes under which programs keep them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from runtime.errors import CheckpointError, ConfigError
from unet_core.model_options import WeightsChoice

StateDict = Mapping[str, Tensor]

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
    "current_model_state",
)
"""Entries under which programs keep the weights, in the order in which they are looked for."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that DataParallel, torch.compile, Lightning modules and other wrappers put before every name."""

AVERAGED = {"ema", "swa", "averaged"}
"""Words in the names of entries and prefixes that hold a moving average, such as state_dict_ema and ema_model."""

N_AVERAGED = "n_averaged"
"""Counter of updates that PyTorch's `AveragedModel` keeps beside its weights."""

UNNAMED = "shadow_params"
"""Entry in which torch_ema and others keep a moving average: a list of tensors, which has no names."""

COUNTER = "num_batches_tracked"
"""Entry of a BatchNorm that counts batches; older checkpoints have none."""

MASK_VALUES = "mask_values"
"""The one entry among milesial's weights that is not a tensor: the values in the mask files, class by class."""

BESIDE = re.compile(r"\w*(loss|criterion|metric)\w*\.", re.IGNORECASE)
"""Start of the names of losses and metrics, which Lightning modules keep beside their network."""

DEEPEST = 4
"""Number of entries within one another that are searched."""

MOST_PREFIXES = 16
"""Maximum number of prefixes before one another that are removed."""

MOST_PARTS = 100
"""Maximum number of networks in one state dict that are tried, those with the shortest prefixes."""

LISTED = 10
"""Maximum number of names in a message, for each way in which they do not fit."""


@dataclass(frozen=True, kw_only=True)
class FoundWeights:
    """A state dict that was found in a file.

    Attributes:
        weights: names without `prefix`, and their tensors.
        entries: the entries that lead to it, from the outside; none if the file is a state dict itself.
        prefix: the start that was removed from every name.
        is_averaged: True for a moving average of the weights.
        left: names of the state dict that do not start with the prefix.
    """

    weights: StateDict
    entries: tuple[str, ...] = ()
    prefix: str = ""
    is_averaged: bool = False
    left: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The place in the file, as messages name it."""
        entries = f"under {'.'.join(self.entries)!r}" if self.entries else "at the top of the file"
        return f"{entries} with the prefix {self.prefix!r}" if self.prefix else entries

    @property
    def is_usual(self) -> bool:
        """True if programs keep a whole network's weights in such a place."""
        prefixes = (f"{word}." for word in self.prefix.split(".")[:-1])
        return all(map(is_entry, self.entries)) and all(one in PREFIXES or is_averaged(one) for one in prefixes)

    def part(self, prefix: str, names: Sequence[str]) -> "FoundWeights":
        """Return these `names`, which start with a prefix, without it."""
        # PyTorch's AveragedModel has the network as `module`, and its counter beside that.
        own = set(names)
        of_average = prefix.endswith("module.") and prefix.removesuffix("module.") + N_AVERAGED in self.weights
        return replace(
            self,
            weights={name.removeprefix(prefix): self.weights[name] for name in names},
            prefix=self.prefix + prefix,
            is_averaged=self.is_averaged or of_average or is_averaged(prefix),
            left=(*self.left, *(self.prefix + name for name in self.weights if name not in own)),
        )


def is_state_dict(value: object) -> TypeGuard[dict[str, Any]]:
    """Return True for names with tensors, at least one."""
    return (
        isinstance(value, dict)
        and any(isinstance(one, Tensor) for one in value.values())
        and all(
            isinstance(name, str) and (name == MASK_VALUES or (isinstance(one, Tensor) and one.layout == torch.strided))
            for name, one in value.items()
        )
    )


def is_averaged(name: str) -> bool:
    """Return True if an entry or a prefix of this name holds a moving average."""
    return not AVERAGED.isdisjoint(re.split(r"[._]", name.lower()))


def is_entry(name: object) -> bool:
    """Return True if programs keep a whole network, or its weights, under this name."""
    return isinstance(name, str) and (name in ENTRIES or is_averaged(name))


def state_dicts(content: Mapping[str, Any], entries: tuple[str, ...] = ()) -> Iterator[FoundWeights]:
    """Find all state dicts in a file: first those in the usual entries, then in others, then moving averages."""
    if is_state_dict(content):
        yield FoundWeights(weights=content, entries=entries, is_averaged=any(map(is_averaged, entries)))
        return
    inner = [name for name, value in content.items() if isinstance(name, str) and isinstance(value, Mapping)]
    order = {name: place for place, name in enumerate(ENTRIES)}
    inner.sort(key=lambda name: (is_averaged(name), order.get(name, len(order))))
    # Lightning's WeightAveraging swaps them: the average is the state dict, and what was trained is beside it.
    swapped = {"current_model_state", "averaging_state"} <= content.keys()
    for name in inner if len(entries) < DEEPEST else ():
        for found in state_dicts(content[name], (*entries, name)):
            yield replace(found, is_averaged=True) if swapped and name == "state_dict" else found


def unnamed_average(content: Mapping[str, Any], depth: int = DEEPEST) -> str:
    """Return the entries that lead to a moving average without names, such as "ema.shadow_params"; "" if none do."""
    if isinstance(content.get(UNNAMED), list | tuple):
        return UNNAMED
    for name, value in content.items() if depth else ():
        if isinstance(name, str) and isinstance(value, Mapping) and (inner := unnamed_average(value, depth - 1)):
            return f"{name}.{inner}"
    return ""


def without_prefixes(found: FoundWeights) -> Iterator[FoundWeights]:
    """Give a state dict without the prefixes that all its names have; where they have several, each part by itself.

    Losses and metrics are left out, and so are counters of averages.
    """
    names = [name for name in found.weights if name != N_AVERAGED and not BESIDE.match(name)]
    prefixes = dict.fromkeys(name[: name.find(".") + 1] for name in names if name != MASK_VALUES)
    too_many = found.prefix.count(".") >= MOST_PREFIXES or len(prefixes) > MOST_PARTS
    if not prefixes or too_many or not all(prefix in PREFIXES or is_averaged(prefix) for prefix in prefixes):
        yield found.part("", names)
        return
    for prefix in prefixes:
        yield from without_prefixes(found.part(prefix, [one for one in names if one.startswith((prefix, MASK_VALUES))]))


def parts_that_fit(found: FoundWeights, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[FoundWeights]:
    """Give the parts of a state dict, without the prefix, that have exactly these names and shapes, usual ones first.

    Counters of BatchNorm may be missing. Losses and metrics that are not the network's own are left out.
    """
    first = next((name for name in shapes if not name.endswith(COUNTER)), "")
    prefixes = {name.removesuffix(first) for name in found.weights if f".{name}".endswith(f".{first}")}
    names = [name for name in found.weights if name in shapes or name not in (N_AVERAGED, MASK_VALUES)]
    parts = []
    for prefix in sorted(sorted(prefixes, key=len)[:MOST_PARTS]):
        own = (
            name
            for name in names
            if name.startswith(prefix)
            and (name.removeprefix(prefix) in shapes or not BESIDE.match(name.removeprefix(prefix)))
        )
        parts.append(found.part(prefix, list(own)))
    for part in sorted(parts, key=lambda part: (part.is_averaged, not part.is_usual)):
        missing = shapes.keys() - part.weights.keys()
        fits = all(tuple(value.shape) == shapes.get(name) for name, value in part.weights.items())
        if fits and all(name.endswith(COUNTER) for name in missing):
            yield part


def choose(
    found: Sequence[FoundWeights], choice: WeightsChoice | None, path: Path, unnamed: str = ""
) -> tuple[FoundWeights, tuple[str, ...]]:
    """Choose among state dicts of one network, by default the first one, and return it with notes for the user.

    `unnamed` is the place of a moving average without names, as of `unnamed_average`.

    Raises:
        ConfigError: none of them is of the kind that was asked for.
        CheckpointError: several are, in places that say nothing about their meaning.
    """
    naming = f"under {unnamed!r}, is a list without names; to have it, call ema.copy_to(model.parameters()) in its own "
    naming += "program, and save model.state_dict()"
    wanted = [one for one in found if choice is None or one.is_averaged == (choice == "ema")]
    if not wanted and unnamed and choice == "ema":
        raise ConfigError(f"--weights ema: {path}: the moving average of the weights, {naming}")
    if not wanted:
        other = "no moving average of its weights" if choice == "ema" else "nothing but a moving average of its weights"
        raise ConfigError(f"--weights {choice}: {path} has {other}, found some {found[0].place}; leave the option out")
    taken = wanted[0]
    alike = [one for one in wanted[1:] if one.is_averaged == taken.is_averaged]
    rivals = [one for one in alike if not equal(one.weights, taken.weights)]
    rivals.sort(key=lambda one: one.is_usual, reverse=True)
    rival = rivals[0] if rivals else None
    if rival and rival.is_usual >= taken.is_usual and (not taken.is_usual or rival.entries == taken.entries):
        raise CheckpointError(
            f"{path}: holds different weights of this network {taken.place} and {rival.place}; save those that you "
            "want in a file of their own"
        )
    notes = []
    kinds = {False: "the weights as trained", True: "the moving average of the weights"}
    other_kind = next((one for one in found if one.is_averaged != taken.is_averaged), None)
    if other_kind is not None:
        notes.append(
            f"{kinds[taken.is_averaged]}, {taken.place}, {'is' if taken.is_averaged else 'are'} taken; "
            f"--weights {'raw' if taken.is_averaged else 'ema'} takes {kinds[other_kind.is_averaged]}, "
            f"{other_kind.place}"
        )
    elif taken.is_averaged:
        notes.append(f"the weights, {taken.place}, are a moving average; there are no others")
    if other_kind is None and unnamed:
        notes.append(f"the weights {taken.place} are taken; the moving average of the weights, {naming}")
    if rival is not None:
        notes.append(f"the weights {taken.place} are taken; different ones are {rival.place}")
    known = {one.prefix + name for one in found if one.entries == taken.entries for name in one.weights}
    left = [name for name in taken.left if name not in known and not name.endswith((N_AVERAGED, MASK_VALUES))]
    if left:
        notes.append(f"left out beside the network's weights: {listed(left)}")
    return taken, tuple(notes)


def equal(one: StateDict, other: StateDict) -> bool:
    """Return True for equal tensors under equal names."""
    return one.keys() == other.keys() and all(
        value is other[name] or (value.shape == other[name].shape and bool((value == other[name]).all()))
        for name, value in one.items()
        if isinstance(value, Tensor)
    )


def listed(names: Sequence[str]) -> str:
    """List the first names."""
    return f"{', '.join(names[:LISTED])}{', ...' * (len(names) > LISTED)}"
