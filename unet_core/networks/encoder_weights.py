"""Weights that an encoder starts from: downloaded by its library, or from a file; and the mean and std they expect."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.card import ModelCard, SmpConfig
from runtime.errors import CheckpointError, ConfigError, ModelError, one_line
from unet_core.checkpoint import has_card, smp_card
from unet_core.networks.weights import load_weights_into, misfits
from unet_core.smp_networks import LIBRARY, SHOWN, library, make_network, quiet
from unet_core.weight_files.finder import COUNTER, MOST_PARTS, StateDict, listed, state_dicts
from unet_core.weight_files.pretrained_folder import CONFIG
from unet_core.weight_files.reader import read_content

NONE = "none"

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of each colour that torchvision, timm and most encoders use, for values in 0..1."""

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".tar", ".ckpt")

HUB = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib", "timm")
"""Packages whose errors mean that a download failed."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of each channel, for values in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A network to train from: its weights, the `mean` and `std` that they expect, and a line for the user, or ""."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""


def started(config: SmpConfig, weights: str) -> Started:
    """Make a network whose encoder has these weights: a name that its library downloads, a file, or "none".

    Raises:
        ConfigError: the library is missing, has no such encoder or weights, or they cannot be downloaded.
        CheckpointError: the file cannot be read, or does not fit the encoder.
    """
    if weights == NONE:
        count = config.in_channels
        return Started(network=make_network(config), mean=(0.0,) * count, std=(1.0,) * count)
    path = Path(weights)
    if path.is_file():
        return from_file(config, path)
    if path.parent != Path() or path.suffix in FILE_SUFFIXES:
        raise ConfigError(f"--encoder-weights {weights}: no such file")
    return downloaded(config, weights)


def downloaded(config: SmpConfig, weights: str) -> Started:
    """Make a network whose encoder's weights the library downloads; raises a ConfigError as `started`."""
    make_network(config)  # what is wrong with the network is told without a download
    smp = library()
    settings: Mapping[str, Any] = {}
    if not config.encoder.startswith(("tu-", "timm-")):
        settings = smp.encoders.encoders[config.encoder]["pretrained_settings"]
        if weights not in settings:
            raise ConfigError(
                f"--encoder-weights {weights}: {config.encoder} has {', '.join(settings) or 'no weights'}; give one of "
                "these, a file, or none"
            )
    try:
        with quiet():
            network = make_network(config, weights)
            found = smp.encoders.get_preprocessing_params(config.encoder, weights)
    except Exception as error:  # of any type: many libraries have a part in a download
        place = f"{settings[weights]['repo_id']} at Hugging Face's hub" if settings else "Hugging Face's hub"
        kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        reason = f"{type(error).__name__}: {one_line(str(error)).partition('. ')[0][:SHOWN]}"
        if kinds.isdisjoint(HUB) and not isinstance(error, OSError):
            raise ConfigError(
                f"--encoder-weights {weights}: {LIBRARY} cannot load them for {config.encoder} ({reason}); give a "
                "file, or none"
            ) from error
        raise ConfigError(
            f"--encoder-weights {weights}: cannot be downloaded from {place} ({reason}); where it is not reachable, "
            "give model.safetensors from there as --encoder-weights FILE, or none"
        ) from error
    mean, std = normalisation_of(found)
    mean, std = for_channels(config, (mean, std))
    return Started(network=network, mean=mean, std=std, note=note_on(config, weights, mean, std))


def from_file(config: SmpConfig, path: Path) -> Started:
    """Make a network whose encoder's weights are in a file: of the encoder alone, or of a whole network with it.

    Weights for colours are added up for grey images, as the library does it. Nothing in the file is executed.
    """
    network = make_network(config)
    universal = config.encoder.startswith("tu-")
    if universal and config.in_channels != 3:
        raise ConfigError(f"--encoder-weights {path}: goes with --channels RGB for timm's encoders; give that, or none")
    encoder: Any = make_network(SmpConfig(name=config.name, encoder=config.encoder, options=config.options))
    encoder = encoder.encoder
    content = read_content(path)
    taken, left = encoder_part(encoder, content, path, config)
    encoder.load_state_dict(dict(taken))
    if bad := next((name for name, value in taken.items() if not torch.isfinite(value).all()), None):
        raise CheckpointError(f"--encoder-weights {path}: {bad} holds NaN or infinite weights; use another file")
    if config.in_channels != 3:
        encoder.set_in_channels(config.in_channels, pretrained=True)
    network.get_submodule("encoder").load_state_dict(encoder.state_dict())
    (mean, std), whose = normalisation_in(content, path)
    mean, std = for_channels(config, (mean, std))
    note = note_on(config, str(path), mean, std) + whose
    if left:
        note += f"; left out of the file: {listed(left)}"
    return Started(network=network, mean=mean, std=std, note=note)


def encoder_part(
    encoder: nn.Module, content: Mapping[str, Any], path: Path, config: SmpConfig
) -> tuple[StateDict, list[str]]:
    """Return the encoder's weights in a file, by the encoder's names, and the names beside them with the same prefix.

    Raises:
        CheckpointError: the file does not hold all of them in their shapes.
    """
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = [one.weights for one in state_dicts(content)]
    if not found:
        raise CheckpointError(f"--encoder-weights {path}: holds no weights; expected names and tensors")
    nearest: StateDict = {}
    for weights in found:
        for inner in ("", "model."):  # timm's encoders are called so within the library
            names = {name.removeprefix(inner): name for name in shapes}
            first = next(one for one in names if not one.endswith(COUNTER))
            prefixes = sorted({one.removesuffix(first) for one in weights if f".{one}".endswith(f".{first}")}, key=len)
            for prefix in prefixes[:MOST_PARTS]:
                part = {ours: weights[prefix + one] for one, ours in names.items() if prefix + one in weights}
                missing = shapes.keys() - part.keys()
                if all(tuple(value.shape) == shapes[name] for name, value in part.items()) and all(
                    name.endswith(COUNTER) for name in missing
                ):
                    counters = {name: value for name, value in encoder.state_dict().items() if name in missing}
                    taken = {prefix + one for one in names}
                    return part | counters, [name for name in weights if name.startswith(prefix) and name not in taken]
                if len(part) > len(nearest):
                    nearest = part
    raise CheckpointError(
        f"--encoder-weights {path}: does not fit the encoder {config.encoder}; "
        f"{misfits(nearest, shapes) or 'none of its names are there'}"
    )


def normalisation_in(content: Mapping[str, Any], path: Path) -> tuple[Normalisation, str]:
    """Return mean and std for a file's weights, and where these are from: its card, config.json beside it, ImageNet."""
    if has_card(content):
        try:
            card = ModelCard.from_json(str(content["card"]))
            return (card.input.mean, card.input.std), " (from its card)"
        except ModelError as error:
            raise CheckpointError(f"--encoder-weights {path}: {error}") from error
    beside = path.with_name(CONFIG)
    if beside.is_file():
        try:
            return normalisation_of(json.loads(beside.read_bytes())), f" (from {beside})"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # of another program, or without mean and std
    return IMAGENET, " (ImageNet's, as torchvision and timm use them; the file does not tell)"


def normalisation_of(settings: Mapping[str, Any]) -> Normalisation:
    """Return mean and std for values in 0..1, of an encoder's settings, whose own range may be 0..255.

    timm's settings lie within those of the file.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the settings hold none.
    """
    settings = settings.get("pretrained_cfg", settings)
    largest = float(settings.get("input_range", (0, 1))[-1])
    mean, std = (tuple(float(value) / largest for value in settings[name]) for name in ("mean", "std"))
    if settings.get("input_space", "RGB") != "RGB":
        raise ValueError(f"input_space: found {settings['input_space']}, expected RGB")
    return mean, std


def for_channels(config: SmpConfig, known: Normalisation) -> Normalisation:
    """Return mean and std for the network's channels: those of the colours whose filters they have.

    Both libraries give several channels the filters of red, green and blue in turn, and a single one their sum.
    """

    def of_channels(values: tuple[float, ...]) -> tuple[float, ...]:
        if config.in_channels == 1:
            return (sum(values) / len(values),)
        return tuple(values[index % len(values)] for index in range(config.in_channels))

    mean, std = map(of_channels, known)
    return mean, std


def note_on(config: SmpConfig, weights: str, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Say where the encoder's weights are from, and the mean and std that go into the card."""
    numbers = [",".join(f"{value:.4g}" for value in values) for values in (mean, std)]
    return f"encoder {config.encoder}: weights {weights}, mean {numbers[0]}, std {numbers[1]}"


def initialised(config: SmpConfig, path: Path, classes: tuple[str, ...]) -> Started:
    """Make a network with a checkpoint's weights, of this library or saved elsewhere; `classes` are the run's names.

    Its last layer starts anew if the classes differ.

    Raises:
        ConfigError: the checkpoint's network is another one.
        CheckpointError: the file cannot be read or does not fit.
    """
    network, content = make_network(config), read_content(path)
    if not has_card(content):
        notes = load_weights_into(network, path, None, content)
        mean, std = for_channels(config, IMAGENET)
        note = f"--init-from {path}: has no card; mean and std are ImageNet's"
        return Started(network=network, mean=mean, std=std, note="; ".join((note, *notes)))
    card = smp_card(content)
    known = card.architecture if card else None
    if not isinstance(known, SmpConfig) or card is None:
        raise ConfigError(f"--init-from {path}: is a U-Net of this library; leave out --network smp.{config.name}")
    if (known.name, known.encoder, known.options) != (config.name, config.encoder, config.options):
        raise ConfigError(f"--init-from {path}: is {known.summary}; leave out --network, --encoder and --network-arg")
    if known.in_channels != config.in_channels:
        raise ConfigError(f"--init-from {path}: takes {known.in_channels} channels; give the same --channels")
    weights, note = dict(content["state_dict"]), ""
    if known.classes != config.classes or (config.classes > 1 and card.output.classes != classes):
        own = {name: value for name, value in network.state_dict().items() if name.startswith("segmentation_head.")}
        weights |= own
        there = ", ".join(card.output.classes)
        note = f"--init-from {path}: all but the last layer was copied, which has the classes {there} there"
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: its weights are not those that its card names; it is damaged") from error
    return Started(network=network, mean=card.input.mean, std=card.input.std, note=note)
