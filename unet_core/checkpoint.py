"""Checkpoints: weights and their card, read without executing anything that is in the file.

`model.pth` holds {"state_dict", "card"}; `my_checkpoint.pth.tar` adds what a run needs to resume. Checkpoints of the
projects in `unet_core.foreign` load too, however they are wrapped (`unet_core.weight_files`), or as a .safetensors
file: their dimensions follow from the shapes.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.serialization import config as save_options

from runtime.card import (
    CHANNEL_COUNT,
    Channels,
    InputChannels,
    InputSpec,
    ModelCard,
    OutputSpec,
    ProofRow,
    Reference,
    SmpConfig,
    UNetConfig,
)
from runtime.errors import CheckpointError, ConfigError, ModelError
from runtime.support.files import replacing
from unet_core.foreign import Mapped, is_known, recognise
from unet_core.model import UNet
from unet_core.model_options import CardChanges, WeightsChoice, channels_setting
from unet_core.smp_networks import make_network, shapes_of
from unet_core.weight_files.finder import (
    MASK_VALUES,
    StateDict,
    choose,
    is_state_dict,
    state_dicts,
    unnamed_average,
    without_prefixes,
)
from unet_core.weight_files.pretrained_folder import refuse_folder
from unet_core.weight_files.reader import read_content

OURS = "unet-deploy"

READING = (
    "it holds weights and no network: their names cannot show activation, concatenation order, padding or "
    "interpolation, so all that comes of it is this library's reading of them; unet-export proves it with --network, "
    "or with --pairs"
)
"""Note on a checkpoint that was recognised by the names of its weights."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file: weights on the CPU, the card, and all other entries.

    `card_is_assumed` is True if the file had no card: the card has defaults for all that shapes do not show (size,
    normalisation, names). With `activation_is_assumed` its activation of several classes is that of their project or a
    default; with `is_ambiguous` it is a guess. `family` is the project that the network is from, "unet-deploy" for a
    file with a card. `odd_sizes` is what that project does to sizes that are no multiples of the stride, `advice` says
    how to come nearer to its programs. `reference` is what a proof compares with: the trained network, or this
    library's reading of a file of weights; a reading proved by pairs has `rows` of that proof. `notes` are lines that a
    user has to know.
    """

    state_dict: StateDict
    card: ModelCard
    extra: Mapping[str, Any]
    card_is_assumed: bool = False
    activation_is_assumed: bool = False
    is_ambiguous: bool = False
    family: str = OURS
    odd_sizes: str = ""
    advice: str = ""
    reference: Reference = "module"
    rows: tuple[ProofRow, ...] = ()
    notes: tuple[str, ...] = ()

    def described(self, file: Path) -> str:
        """Say what the `file` is that these weights are from."""
        return f"{file} is a checkpoint of {self.family}'s U-Net"

    def notes_on(self, spec: InputSpec) -> tuple[str, ...]:
        """Return all notes on the use with such images: at some sizes the project's own code does something else.

        The advice is left out if another fit than the default was chosen.
        """
        notes = (*self.notes, *([self.advice] if self.advice and spec.fit == InputSpec.fit else []))
        if self.reference == "reading":
            notes = (*notes, READING)
        multiples = spec.fit != "native" and not any(side % spec.stride for side in spec.size)
        if multiples or not self.odd_sizes:
            return notes
        return (
            *notes,
            f"{self.family}'s own code {self.odd_sizes} where a side is no multiple of {spec.stride}, and here "
            "pictures are padded by repeating their edge, so answers differ; they do not at a --size of such multiples",
        )

    def card_with(self, changes: CardChanges, file: Path) -> ModelCard:
        """Return the card with a user's changes; `file` is named in errors.

        Raises:
            ConfigError: they do not fit the card, or only the user can tell whether the classes exclude one another.
        """
        if self.is_ambiguous and changes.probabilities is None:
            raise ConfigError(
                f"{file}: has {len(self.card.output.classes)} classes, and neither its keys nor {self.family}'s code "
                "tell whether a pixel has exactly one; give --probabilities softmax (one), or sigmoids (each by itself)"
            )
        return changes.applied(self.card, assumed=self.card_is_assumed)

    def network(self) -> nn.Module:
        """Make the network with these weights, on the CPU in evaluation mode."""
        architecture = self.card.architecture
        network: nn.Module
        if isinstance(architecture, SmpConfig):
            network = make_network(architecture)
        else:
            assert isinstance(architecture, UNetConfig)  # `find_weights` compared it with the weights
            network = UNet(architecture)
        network.load_state_dict(dict(self.state_dict))
        return network.eval()


def save_checkpoint(path: str | os.PathLike[str], state_dict: StateDict, card: ModelCard, **extra: Any) -> None:
    """Write weights and card, and anything else that a run needs to resume, atomically.

    Raises:
        OutputError: the file cannot be written; an older one stays as it was.
    """
    content = {"state_dict": dict(state_dict), "card": card.to_json(), **extra}
    with replacing(path) as temporary:
        try:
            with save_options.patch("save.compute_crc32", True):  # type: ignore[attr-defined]
                torch.save(content, temporary)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(None, "PyTorch could not write all of it; the disk may be full") from error


def load_checkpoint(path: str | os.PathLike[str], *, weights: WeightsChoice | None = None) -> Checkpoint:
    """Read a checkpoint of this library, or of a project in `unet_core.foreign`, to use it.

    Of a file that holds weights and their moving average, `weights` chooses one; by default it is the state dict that
    the file's own program would load, and `notes` say so.

    Raises:
        CheckpointError: the file is missing, damaged, not a U-Net that is known, or holds more than plain weights
            (which is not executed).
        ConfigError: the file does not hold such `weights`, or has a card, which belongs to the ones it holds.
    """
    refuse_folder(Path(path))
    content = read_content(Path(path))
    if (own := smp_card(content)) is not None:
        refuse_choice(weights, path)
        return Checkpoint(
            state_dict=smp_weights(content, own, path),
            card=own,
            extra={key: value for key, value in content.items() if key not in ("state_dict", "card")},
        )
    mapped, card, entry = find_weights(content, path, weights)
    return Checkpoint(
        state_dict=mapped.state_dict,
        card=card or foreign_card(mapped, Path(path)),
        extra={key: value for key, value in content.items() if key not in (entry, "card")} if entry else {},
        card_is_assumed=card is None,
        activation_is_assumed=card is None and mapped.config.classes > 1,
        is_ambiguous=mapped.is_ambiguous,
        family=mapped.family,
        odd_sizes=mapped.odd_sizes,
        advice=mapped.advice,
        reference="reading" if card is None else "module",
        notes=mapped.notes,
    )


def load_weights(
    path: str | os.PathLike[str], *, weights: WeightsChoice | None = None, up_first: bool | None = None
) -> Mapped:
    """Read the weights of a checkpoint to train them further.

    `up_first` tells the order of concatenation of a checkpoint without a card, where it is not that of its family.

    Raises:
        CheckpointError, ConfigError: as `load_checkpoint`.
    """
    return find_weights(read_content(Path(path)), path, weights, up_first)[0]


def architecture_of(path: str | os.PathLike[str]) -> UNetConfig | SmpConfig:
    """Return the dimensions of a checkpoint's network, or its names where another library makes it.

    Raises:
        CheckpointError: as `load_weights`.
    """
    content = read_content(Path(path))
    own = smp_card(content)
    if own is not None and isinstance(own.architecture, SmpConfig):
        return own.architecture
    return find_weights(content, path)[0].config


def initialise(network: UNet, path: str | os.PathLike[str], classes: tuple[str, ...] | None = None) -> str | None:
    """Copy a checkpoint's weights into a network, without `final_conv` if the classes differ.

    They differ in number, or several `classes` have other names or another order. Returns a note for the user or None.

    Raises:
        CheckpointError: as `load_weights`.
        ConfigError: the network has other channels, widths or `up`; the message names the flags that fit.
    """
    mapped = load_weights(path)
    found, wanted = mapped.config, network.config
    if replace(found, classes=wanted.classes) != wanted:
        widths = ",".join(map(str, found.widths))
        raise ConfigError(
            f"--init-from {path}: is a U-Net of widths {widths} with up {found.up} and {found.in_channels} "
            f"channel{'s' * (found.in_channels > 1)}; give --widths {widths} --up {found.up} --channels "
            f"{channels_setting(found.in_channels)}"
        )
    weights, notes = dict(mapped.state_dict), list(mapped.notes)
    several_differ = wanted.classes > 1 and mapped.family == OURS and classes not in (None, mapped.classes)
    if found.classes != wanted.classes or several_differ:
        weights |= {key: value for key, value in network.state_dict().items() if key.startswith("final_conv.")}
        there = f"{found.classes} class{'es' * (found.classes > 1)} there"
        if found.classes == wanted.classes:
            there = f"the classes {', '.join(mapped.classes)} there"
        notes.insert(0, f"all but final_conv was copied, which has {there}, {wanted.classes} here")
    network.load_state_dict(weights)
    return f"--init-from {path}: {'; '.join(notes)}" if notes else None


def find_weights(
    content: Mapping[str, Any],
    path: str | os.PathLike[str],
    choice: WeightsChoice | None = None,
    up_first: bool | None = None,
) -> tuple[Mapped, ModelCard | None, str]:
    """Return the weights under our keys, the card if there is one, and the entry that holds the weights, if any.

    Weights are checked against the card; `path` is named in errors.

    Raises:
        CheckpointError: there is no state dict, it is not a U-Net that is known, or the card is of other weights.
        ConfigError: as `load_checkpoint`.
    """
    if has_card(content):
        refuse_choice(choice, path)
        if (other := smp_card(content)) is not None:
            raise CheckpointError(
                f"{path}: holds {other.architecture.summary}, expected a U-Net of this library; to train that network "
                "leave out --widths, --up and --channels"
            )
        mapped, card = weights_with_card(content["state_dict"], content["card"], path)
        return mapped, card, "state_dict"
    found = [part for one in state_dicts(content) for part in without_prefixes(one)]
    if not found:
        raise CheckpointError(f"{path}: holds no state dict (names and tensors); expected a U-Net's checkpoint")
    known = [part for part in found if is_known({key: one for key, one in part.weights.items() if key != MASK_VALUES})]
    taken, notes = choose(known or found[:1], choice if known else None, Path(path), unnamed_average(content))
    try:
        mapped = recognise(taken.weights, up_first)
    except CheckpointError as error:
        program = program_of(content)
        raise CheckpointError(f"{path}: {f'is a checkpoint of {program}; it ' * bool(program)}{error}") from error
    return replace(mapped, notes=(*notes, *mapped.notes)), None, taken.entries[0] if taken.entries else ""


def has_card(content: Mapping[str, Any]) -> bool:
    """Return True if the content of a file is that of a checkpoint of this library."""
    return "state_dict" in content and "card" in content


def refuse_choice(choice: WeightsChoice | None, path: str | os.PathLike[str]) -> None:
    """Raise a ConfigError if weights were chosen of a checkpoint that has a card."""
    if choice is not None:
        raise ConfigError(f"--weights {choice}: {path} has a card, which belongs to its weights; leave it out")


def smp_card(content: Mapping[str, Any]) -> ModelCard | None:
    """Return the card of a checkpoint whose network segmentation-models-pytorch makes; None for all other contents."""
    text = content.get("card") if has_card(content) else None
    try:
        card = ModelCard.from_json(text if isinstance(text, str) else "")
    except ModelError:
        return None
    return card if isinstance(card.architecture, SmpConfig) else None


def smp_weights(content: Mapping[str, Any], card: ModelCard, path: str | os.PathLike[str]) -> StateDict:
    """Return the weights of a checkpoint with such a card, which have to be those of its network.

    Raises:
        CheckpointError: they are not, or the network cannot be made here.
    """
    weights, architecture = content["state_dict"], card.architecture
    assert isinstance(architecture, SmpConfig)
    if not is_state_dict(weights):
        raise CheckpointError(f"{path}: holds no state dict (names and tensors); expected a network's checkpoint")
    if card.weights_sha256 != weights_sha256(weights):
        raise CheckpointError(f"{path}: its weights are not those that its card names; it is damaged")
    try:
        expected = shapes_of(architecture)
    except ConfigError as error:
        raise CheckpointError(f"{path}: holds {architecture.summary}; {error}") from error
    if expected != {name: value.shape for name, value in weights.items()}:
        raise CheckpointError(
            f"{path}: its card says {architecture.summary}, whose weights have other names or shapes; it is damaged, "
            "or of another version of segmentation-models-pytorch"
        )
    return weights


def weights_with_card(state_dict: object, text: object, path: str | os.PathLike[str]) -> tuple[Mapped, ModelCard]:
    """Return the weights and the card of a checkpoint of this library, which have to belong together.

    Raises:
        CheckpointError: they do not, or one of them is damaged.
    """
    if not is_state_dict(state_dict):
        raise CheckpointError(f"{path}: holds no state dict (names and tensors); expected a U-Net's checkpoint")
    try:
        mapped = recognise(state_dict)
        card = ModelCard.from_json(text if isinstance(text, str) else "")
    except (CheckpointError, ModelError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if card.architecture != mapped.config:
        raise CheckpointError(
            f"{path}: its card says {card.architecture}, its weights are {mapped.config}; it is damaged"
        )
    if card.weights_sha256 != weights_sha256({key: state_dict[key] for key in state_dict.keys() - {MASK_VALUES}}):
        raise CheckpointError(f"{path}: its weights are not those that its card names; it is damaged")
    output = card.output
    ours = replace(mapped, family=OURS, activation=output.activation, classes=output.classes)
    return replace(ours, is_ambiguous=False, odd_sizes="", advice=""), card


def program_of(content: Mapping[str, Any]) -> str:
    """Name the program that wrote a checkpoint, if its entries tell; else return ""."""
    return "nnU-Net" if {"network_weights", "trainer_name"} <= content.keys() else ""


def foreign_card(mapped: Mapped, path: Path) -> ModelCard:
    """Make the card of weights that came without one, with defaults for all that shapes do not show."""
    return ModelCard(
        name=path.stem[:200],
        producer=producer(),
        architecture=mapped.config,
        input=input_spec(mapped.config),
        output=OutputSpec(classes=mapped.classes, activation=mapped.activation),
        weights_sha256=weights_sha256(mapped.state_dict),
    )


def input_spec(config: UNetConfig, size: tuple[int, int] = InputSpec.size) -> InputSpec:
    """Return the default input of a network: colour, grey or as many channels as it takes, values divided by 255.

    `size` is (height, width).
    """
    count = config.in_channels
    channels: InputChannels = next((name for name in get_args(Channels) if CHANNEL_COUNT[name] == count), "raw")
    return InputSpec(size=size, channels=channels, mean=(0.0,) * count, std=(1.0,) * count, stride=config.stride)


def producer(*distributions: str) -> dict[str, str]:
    """Return the versions that make a card, those of these `distributions` among them."""
    versions = {"unet-deploy": version("unet-deploy"), "torch": torch.__version__}
    return versions | {name: version(name) for name in distributions}


def version(distribution: str) -> str:
    """Return the version of an installed distribution, or "unknown" in a bare checkout."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def weights_sha256(state_dict: StateDict) -> str:
    """Hash names, types, shapes and values: equal weights give equal hashes, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
