"""Pairs: inputs of a network and its author's outputs, which tell how a file of weights has to be read."""

import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.proof import MAX_ERROR, parity, worst
from runtime.card import Activation, ModuleConfig, OutputSpec, Probabilities, ProofRow, default_classes
from runtime.errors import ConfigError, ProofError
from unet_core.checkpoint import OURS, Checkpoint, foreign_card, load_weights
from unet_core.foreign import Mapped
from unet_core.model import UNet
from unet_core.model_options import CardChanges, WeightsChoice
from unet_core.networks.author_network import AuthorNetwork, examine
from unet_core.networks.readings import Reading, all_readings, usual_reading
from unet_core.reporting.progress import Display

NAMES = ("input", "output")
"""Names of the arrays in a file of pairs."""

BEYOND = 0.1
"""Distance, as a share of the range of all images, by which inputs may leave it: statistics are rounded."""

MANY = 2**24
"""Number of input values from which on training mode is not tried, which takes all pairs in one batch."""

ROUNDING = 5e-7
"""Error of a float32, as a share of the largest value."""

ROUGH = 2e-2
"""Error of the closest reading below which lower precision is a likelier cause than another network."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Inputs float32 [n, channels, h, w] as a network got them, and its outputs float32 [n, classes, h, w]."""

    path: Path
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, kw_only=True)
class Match:
    """Outcome of a network's answers against an author's outputs.

    Attributes:
        error: largest difference of probabilities, and of the outputs themselves as a share of their range.
        activation: what turns the network's logits into the author's probabilities; None if the outputs are logits.
    """

    error: float
    activation: Activation | None

    @property
    def fits(self) -> bool:
        """True if the network is the author's, as far as these outputs show."""
        return self.error <= MAX_ERROR


@dataclass(frozen=True, kw_only=True)
class ReadCheckpoint(Checkpoint):
    """Weights in the network of a reading that is not `UNet`."""

    read_network: UNet

    def network(self) -> nn.Module:
        """Return the network with its weights, on the CPU in evaluation mode."""
        return self.read_network


def load_with_pairs(
    path: Path,
    source: str | os.PathLike[str],
    display: Display,
    changes: CardChanges,
    *,
    weights: WeightsChoice | None = None,
) -> Checkpoint:
    """Load a checkpoint without a card, read in the one way that gives an author's outputs for the author's inputs.

    Args:
        path: the checkpoint, of a family in `unet_core.foreign`.
        source: the .npz file of `read_pairs`.
        display: receives progress.
        changes: `probabilities` say what logits of several classes become; `mean` and `std` what inputs to expect.
        weights: those to take, as of `unet_core.checkpoint.load_checkpoint`.

    Raises:
        CheckpointError: as `unet_core.checkpoint.load_weights`.
        ConfigError: the pairs cannot be used or contradict the changes, the checkpoint has a card, or it does not hold
            such weights.
        ProofError: no reading gives the author's outputs, or several do.
    """
    usual = load_weights(path, weights=weights)
    if usual.family == OURS:
        raise ConfigError(f"--pairs: {path} has a card, which tells its network; leave it out")
    pairs = read_pairs(Path(source))
    check_fit(pairs, usual, path)
    check_range(pairs, changes)
    mapped = {up_first: load_weights(path, weights=weights, up_first=up_first) for up_first in (False, True)}
    first = replace(pairs, inputs=pairs.inputs[:1], outputs=pairs.outputs[:1])
    tried = sorted(all_readings(usual.config), key=usual_reading(usual).distance)
    found: dict[Reading, Match] = {}
    with display.bar("trying readings of the weights", len(tried)) as advance:
        for reading in tried:
            network = reading.network(mapped[reading.up_first])
            found[reading] = compare(network, first)
            if found[reading].fits:
                found[reading] = compare(network, pairs)
            advance(1)
    fitting = [reading for reading in tried if found[reading].fits]
    closest = min(tried, key=lambda reading: found[reading].error)
    error = found[closest].error
    if not fitting:
        cause = "give --network with its author's code"
        near = [one for one in tried if one.distance(usual_reading(usual)) <= 1] if pairs.inputs.numel() < MANY else []
        if any(compare(one.network(mapped[one.up_first]).train(), pairs).fits for one in near):
            cause = "its outputs are those of training mode; call network.eval() before it answers"
        elif error <= ROUGH:
            cause = (
                "if the program computes in lower precision (TF32, autocast), let it answer in fp32 on the CPU; if "
                "not, a detail differs, such as a slope or BatchNorm's eps: give --network"
            )
        raise ProofError(
            f"--pairs {pairs.path}: none of {len(tried)} readings of {path} as {usual.family}'s U-Net gives these "
            f"outputs; the closest ({closest}) is off by {error:.1e}, expected at most {MAX_ERROR:g}; {cause}"
        )
    if len(fitting) > 1:
        raise ProofError(
            f"--pairs {pairs.path}: {len(fitting)} readings of {path} give these outputs, such as {fitting[0]}, and "
            f"{fitting[1]}; give pairs with larger or livelier pictures, in which the network finds something"
        )
    ended = found[closest].activation
    if ended is not None and usual.config.classes > 1 and changes.probabilities not in (None, ended):
        raise ConfigError(
            f"--probabilities {changes.probabilities}: the outputs in {pairs.path} show {ended}; leave it out"
        )
    checkpoint = checkpoint_as_read(path, mapped[closest.up_first], closest, pairs, ended, changes.probabilities)
    note = (
        f"{path} was read as {usual.family}'s U-Net with {closest}, which gives the {len(pairs.inputs)} "
        f"output{'s' * (len(pairs.inputs) > 1)} in {pairs.path} within {error:.1e}, alone of {len(tried)} readings"
    )
    return replace(checkpoint, notes=(note, *checkpoint.notes))


def read_pairs(path: Path) -> Pairs:
    """Read an .npz file of the arrays `input` and `output`.

    `input` is floating point [n, channels, h, w], exactly as the author's program fed it to the network, after any
    scaling. `output` is floating point [n, classes, h, w], or [n, h, w] for one class: logits or probabilities.

    Raises:
        ConfigError: the file is missing or damaged, or its arrays are not of this form or not finite.
    """
    if not path.is_file():
        raise ConfigError(f"--pairs {path}: no such file; expected an .npz file with the arrays input and output")
    try:
        with path.open("rb") as stream:  # numpy would leave a damaged file open
            file = np.load(stream, allow_pickle=False)
            arrays = {name: file[name] for name in file.files} if isinstance(file, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--pairs {path}: is damaged or no .npz file of numbers ({error})") from error
    if set(arrays) != set(NAMES):
        raise ConfigError(
            f"--pairs {path}: found the arrays {', '.join(arrays) or 'none'}, expected input and output; write it by "
            "numpy.savez(FILE, input=..., output=...)"
        )
    inputs, outputs = (arrays[name] for name in NAMES)
    if outputs.ndim == 3:
        outputs = outputs[:, None]
    for name, array, form in (("input", inputs, "[n, channels, h, w]"), ("output", outputs, "[n, classes, h, w]")):
        if array.ndim != 4 or not array.size or not np.issubdtype(array.dtype, np.floating):
            raise ConfigError(
                f"--pairs {path}: {name} is {array.dtype} {list(array.shape)}, expected floating point {form}"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"--pairs {path}: {name} holds NaN or infinite values")
    if np.isin(outputs, (0, 1)).all():
        raise ConfigError(f"--pairs {path}: output holds 0 and 1 alone, so it is a mask; give logits or probabilities")
    if (len(inputs), *inputs.shape[2:]) != (len(outputs), *outputs.shape[2:]):
        raise ConfigError(
            f"--pairs {path}: input is {list(inputs.shape)} and output {list(outputs.shape)}, expected equal numbers, "
            "heights and widths"
        )
    tensors = (torch.from_numpy(np.ascontiguousarray(array, np.float32)) for array in (inputs, outputs))
    return Pairs(path=path, **dict(zip(("inputs", "outputs"), tensors, strict=True)))


def check_fit(pairs: Pairs, mapped: Mapped, path: Path) -> None:
    """Raise a ConfigError unless a checkpoint's network takes such inputs and gives such outputs."""
    config, (height, width) = mapped.config, pairs.inputs.shape[2:]
    found, expected = (pairs.inputs.shape[1], pairs.outputs.shape[1]), (config.in_channels, config.classes)
    if found != expected:
        raise ConfigError(
            f"--pairs {pairs.path}: input has {found[0]} channels and output {found[1]}, the weights in {path} have "
            f"{expected[0]} and {expected[1]}"
        )
    if height % config.stride or width % config.stride:
        raise ConfigError(
            f"--pairs {pairs.path}: inputs are {width}x{height}, expected multiples of {config.stride}: how a network "
            "pads or resizes other sizes does not show in its weights"
        )


def check_range(pairs: Pairs, changes: CardChanges) -> None:
    """Raise a ConfigError if inputs have values that no image has after its normalisation."""
    channels = pairs.inputs.shape[1]
    mean, std = (
        torch.tensor(changes.given.get(name, (value,) * channels)) for name, value in (("mean", 0), ("std", 1))
    )
    if not len(mean) == len(std) == channels:
        return  # refused later, with the card
    values = (pairs.inputs * std[:, None, None] + mean[:, None, None]).flatten()
    low, high = float(values.min()), float(values.max())
    if low < -BEYOND or high > 1 + BEYOND:
        raise ConfigError(
            f"--pairs {pairs.path}: inputs lie between {pairs.inputs.min():.3g} and {pairs.inputs.max():.3g}, which no "
            f"image reaches with --mean {listed(mean)} and --std {listed(std)}; give those of the author's program"
        )


def listed(values: Tensor) -> str:
    """Write numbers as an option takes them."""
    return ",".join(f"{value:g}" for value in values.tolist())


def compare(network: UNet, pairs: Pairs) -> Match:
    """Compare a network's answers with an author's outputs, which may be logits or probabilities."""
    outputs = pairs.outputs
    try:
        logits = logits_of(network, pairs)
    except RuntimeError as error:
        if "padding" not in str(error).lower():
            raise
        return Match(error=float("inf"), activation=None)  # a map is too small for this padding
    several = logits.shape[1] > 1
    ends: dict[Activation, Tensor] = {"sigmoid": logits.sigmoid()}
    theirs = [outputs.sigmoid()]
    if several:
        ends, theirs = (
            {"sigmoids": logits.sigmoid(), "softmax": logits.softmax(dim=1)},
            [*theirs, outputs.softmax(dim=1)],
        )
    apart = [float((ours - one).abs().max()) for ours, one in zip(ends.values(), theirs, strict=True)]
    found = [Match(error=max(difference(logits, outputs), *apart), activation=None)]
    if several and outputs.max() <= 0:
        ends = {"softmax": logits.log_softmax(dim=1)}
    elif outputs.min() < 0 or outputs.max() > 1:
        ends = {}
    found += [Match(error=difference(answers, outputs), activation=name) for name, answers in ends.items()]
    return min(found, key=lambda one: one.error)


def difference(answers: Tensor, outputs: Tensor) -> float:
    """Return the largest difference as a share of the outputs' range, beyond what rounding to float32 may be.

    The range counts as at least a tenth of the largest value. So pictures in which a network finds nothing, with
    outputs all near 0, are compared as closely as others.
    """
    span = max(float(outputs.max() - outputs.min()), 0.1 * float(outputs.abs().max()), 1e-30)
    rounding = ROUNDING * float(outputs.abs().max())
    return max(0.0, float((answers - outputs).abs().max()) - rounding) / span


def logits_of(network: UNet, pairs: Pairs) -> Tensor:
    """Run a network on the inputs; in training mode all at once, since there they share their statistics."""
    with torch.inference_mode():
        batches = [pairs.inputs] if network.training else [one[None] for one in pairs.inputs]
        return torch.cat([network(batch) for batch in batches])


def checkpoint_as_read(
    path: Path,
    mapped: Mapped,
    reading: Reading,
    pairs: Pairs,
    ended: Activation | None,
    probabilities: Probabilities | None,
) -> Checkpoint:
    """Make the checkpoint of a reading that fits, with the row of its proof.

    `ended` is the activation that the outputs show. If they are logits it is None, and that of several classes is
    `probabilities`, or the family's own.
    """
    network, card, count = reading.network(mapped), foreign_card(mapped, path), mapped.config.classes
    told = ended or (probabilities if count > 1 else None)
    if told is not None and told != card.output.activation:
        card = replace(card, output=OutputSpec(classes=default_classes(count, told), activation=told))
    checkpoint = Checkpoint(state_dict=mapped.state_dict, card=card, extra={}, card_is_assumed=True)
    if not reading.is_ours:
        config = mapped.config
        name = f"{mapped.family}'s U-Net, {reading}"
        architecture = ModuleConfig(name=name, in_channels=config.in_channels, classes=config.classes)
        facts = examine(AuthorNetwork(network), stride=config.stride, channels=card.input.channels)
        height, width = (side - config.stride + 1 for side in facts.min_size)  # padded to what the network takes
        card = replace(card, architecture=architecture, input=replace(card.input, min_size=(height, width)))
        checkpoint = ReadCheckpoint(
            state_dict=mapped.state_dict, card=card, extra={}, card_is_assumed=True, read_network=network
        )
    logits = logits_of(network, pairs)
    activation, outputs = card.output.activation, pairs.outputs
    probability = logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()
    if ended is None:
        outputs = outputs.softmax(dim=1) if activation == "softmax" else outputs.sigmoid()
    elif outputs.max() <= 0:  # logarithms of probabilities
        outputs = outputs.exp()
    figures = [parity(*both, card.output) for both in zip(probability.numpy(), outputs.numpy(), strict=True)]
    batch, _, height, width = pairs.inputs.shape
    row = ProofRow(shape=(batch, height, width), images="pairs", parity=worst(figures))
    is_assumed = ended is None and count > 1
    return replace(
        checkpoint,
        activation_is_assumed=is_assumed,
        is_ambiguous=is_assumed and mapped.is_ambiguous,
        family=mapped.family,
        odd_sizes=mapped.odd_sizes,
        advice=mapped.advice,
        reference="pairs",
        rows=(row,),
        notes=mapped.notes,
    )
