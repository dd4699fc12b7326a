"""Pairs: inputs of a network and its author's outputs, which tell how a file of weights has to be read."""

import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.proof import MAX_ERROR, parity, worst
from runtime.card import Activation, ModuleConfig, OutputSpec, Probabilities, ProofRow, default_classes
from runtime.errors import ConfigError, ProofError
from unet_core.checkpoint import OURS, Checkpoint, foreign_card, load_weights
from unet_core.foreign import Mapped
from unet_core.model import UNet
from unet_core.model_options import CardChanges, NetworkOptions, WeightsChoice
from unet_core.networks.checkpoint import checkpoint_of
from unet_core.networks.readings import Reading, all_readings, usual_reading
from unet_core.reporting.progress import Display

NAMES = ("input", "output")
"""Names of the arrays in a file of pairs."""

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
        error: largest difference of probabilities; if the outputs are logits, also of these, as a share of their range.
        activation: what turns the network's logits into the author's probabilities; None if the outputs are logits.
    """

    error: float
    activation: Activation | None

    @property
    def fits(self) -> bool:
        """True if the network is the author's."""
        return self.error <= MAX_ERROR


def load_with_pairs(
    path: Path,
    source: str | os.PathLike[str],
    display: Display,
    probabilities: Probabilities | None = None,
    *,
    weights: WeightsChoice | None = None,
) -> Checkpoint:
    """Load a checkpoint without a card, read in the way that gives an author's outputs for the author's inputs.

    Args:
        path: the checkpoint, of a family in `unet_core.foreign`.
        source: the .npz file of `read_pairs`.
        display: receives progress.
        probabilities: what logits of several classes become, as in `CardChanges`.
        weights: those to take, as of `unet_core.checkpoint.load_checkpoint`.

    Raises:
        CheckpointError: as `unet_core.checkpoint.load_weights`.
        ConfigError: the pairs cannot be used or contradict `probabilities`, the checkpoint has a card, or it does not
            hold such weights.
        ProofError: no reading gives the author's outputs.
    """
    usual = load_weights(path, weights=weights)
    if usual.family == OURS:
        raise ConfigError(f"--pairs: {path} has a card, which tells its network; leave it out")
    pairs = read_pairs(Path(source))
    check_fit(pairs, usual, path)
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
            if found[reading].fits:
                break
    closest = min(found, key=lambda reading: found[reading].error)
    error = found[closest].error
    if not found[closest].fits:
        cause = "give --network with its author's code"
        near = [one for one in tried if one.distance(usual_reading(usual)) <= 1]
        if any(compare(one.network(mapped[one.up_first]).train(), pairs).fits for one in near):
            cause = "its outputs are those of training mode; call network.eval() before it answers"
        elif error <= ROUGH:
            cause = "if the program computes in lower precision (TF32, autocast), let it answer in fp32 on the CPU"
        raise ProofError(
            f"--pairs {pairs.path}: none of {len(found)} readings of {path} as {usual.family}'s U-Net gives these "
            f"outputs; the closest ({closest}) is off by {error:.1e}, expected at most {MAX_ERROR:g}; {cause}"
        )
    others = [one for one in tried if one.distance(closest) == 1]
    alike = [one for one in others if compare(one.network(mapped[one.up_first]), pairs).fits]
    note = (
        f"{path} was read as {usual.family}'s U-Net with {closest}, which gives the {len(pairs.inputs)} "
        f"output{'s' * (len(pairs.inputs) > 1)} in {pairs.path} within {error:.1e}"
    )
    if alike:
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        note += f"; so does {alike[0]}{more}, and pairs with larger or livelier inputs would tell them apart"
    ended = found[closest].activation
    if ended is not None and usual.config.classes > 1 and probabilities not in (None, ended):
        raise ConfigError(f"--probabilities {probabilities}: the outputs in {pairs.path} show {ended}; leave it out")
    checkpoint = checkpoint_as_read(path, mapped[closest.up_first], closest, pairs, ended, probabilities)
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


def compare(network: UNet, pairs: Pairs) -> Match:
    """Compare a network's answers with an author's outputs, which may be logits or probabilities."""
    outputs = pairs.outputs
    try:
        logits = logits_of(network, pairs)
    except RuntimeError:  # a map is too small for this padding
        return Match(error=float("inf"), activation=None)
    span = max(float(outputs.max() - outputs.min()), 0.1 * float(outputs.abs().max()), 1e-6)
    differences = [(logits - outputs) / span, logits.sigmoid() - outputs.sigmoid()]
    if logits.shape[1] > 1:
        differences.append(logits.softmax(dim=1) - outputs.softmax(dim=1))
    found = [Match(error=max(float(one.abs().max()) for one in differences), activation=None)]
    if outputs.min() >= 0 and outputs.max() <= 1:
        ends: dict[Activation, Tensor] = {"sigmoid": logits.sigmoid()}
        if logits.shape[1] > 1:
            ends = {"softmax": logits.softmax(dim=1), "sigmoids": logits.sigmoid()}
        for activation, probability in ends.items():
            found.append(Match(error=float((probability - outputs).abs().max()), activation=activation))
    return min(found, key=lambda one: one.error)


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
        author = checkpoint_of(network, path.stem, NetworkOptions(stride=config.stride), CardChanges())
        architecture = ModuleConfig(
            name=f"{mapped.family}'s U-Net, {reading}", in_channels=config.in_channels, classes=config.classes
        )
        spec = replace(card.input, min_size=author.card.input.min_size)
        card = replace(card, architecture=architecture, input=spec, weights_sha256=author.card.weights_sha256)
        checkpoint = replace(author, card=card)
    logits = logits_of(network, pairs)
    activation, outputs = card.output.activation, pairs.outputs
    probability = logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()
    if ended is None:
        outputs = outputs.softmax(dim=1) if activation == "softmax" else outputs.sigmoid()
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
