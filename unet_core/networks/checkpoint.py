"""A checkpoint file with the network that its author's code makes: taken in place of a `Checkpoint`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from torch import nn

from runtime.card import (
    CHANNEL_COUNT,
    MAX_NAME,
    NEVER_PADDED,
    Channels,
    InputChannels,
    InputSpec,
    ModelCard,
    ModuleConfig,
    OutputSpec,
    default_classes,
)
from runtime.errors import ConfigError
from unet_core.checkpoint import Checkpoint, load_checkpoint, producer, weights_sha256
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.author_network import AuthorNetwork, Facts, examine, require_end
from unet_core.networks.factory import ANOTHER, make_network
from unet_core.networks.weights import load_weights_into
from unet_core.weight_files.pretrained_folder import CONFIG, open_folder
from unet_core.weight_files.reader import read_content

ASSUMED_SIZE = (256, 256)
"""Size (height, width) that is assumed in training, if nothing tells: rounded up to multiples of the stride."""


@dataclass(frozen=True, kw_only=True)
class AuthorCheckpoint(Checkpoint):
    """Weights in their author's network. The card is assumed, but the network is not."""

    author_network: AuthorNetwork
    from_file: bool = False

    def described(self, file: Path) -> str:
        """Say what the `file` is that the weights are from; a network in memory is from none."""
        if self.reference != "module":
            return super().described(file)
        return f"{file} holds weights of the network {self.family}" if self.from_file else f"the network {self.family}"

    def network(self) -> nn.Module:
        """Return the network with its weights, on the CPU in evaluation mode."""
        return self.author_network


def open_checkpoint(path: Path, options: NetworkOptions, changes: CardChanges) -> Checkpoint:
    """Load a checkpoint into the network that the options name, or by `load_checkpoint` if they name none.

    Raises:
        ConfigError, CheckpointError: as `load_with_network` and `load_checkpoint`.
    """
    if options.source:
        return load_with_network(path, options, changes)
    if replace(options, weights=None, only_size=None) != NetworkOptions():
        raise ConfigError("network: has options and no source, such as FILE.py:NAME, that makes it; give one")
    return load_checkpoint(path, weights=options.weights)


def open_checkpoint_of(card: ModelCard, file: Path, checkpoint: Path, options: NetworkOptions) -> Checkpoint:
    """Load the checkpoint from which the exported `file` with this card was made.

    Raises:
        ConfigError: the file holds an author's network, and the options name none.
        ConfigError, CheckpointError: as `open_checkpoint`.
    """
    if isinstance(card.architecture, ModuleConfig) and not options.source:
        raise ConfigError(
            f"{file}: its network is {card.architecture.summary}, which only its author's code can make; give --network"
        )
    if options.source:
        options = replace(options, stride=options.stride or card.input.stride, only_size=card.input.fixed_size)
    return open_checkpoint(checkpoint, options, CardChanges(size=card.input.size, channels=card.input.channels))


def load_with_network(path: Path, options: NetworkOptions, changes: CardChanges) -> AuthorCheckpoint:
    """Make the network that the options name, load a checkpoint's weights into it, and try what it takes and gives.

    The size and the probabilities in `changes` are used for the card. A folder that `save_pretrained` wrote brings
    arguments for the network; those in the options go before.

    Raises:
        ConfigError: the file has a card of this library; the code cannot be used; the network is not one that segments
            pictures; or the file does not hold the weights that the options choose.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    file, arguments = open_folder(path)
    content = read_content(file)  # first, since it is sooner told what is wrong with it
    network = make_network(options.source, arguments | dict(options.arguments)).cpu().eval()
    notes = load_weights_into(network, file, options.weights, content)
    if arguments:
        notes = (f"the arguments of the network are those in {path / CONFIG}", *notes)
    name = path.resolve().name if path.is_dir() else path.stem
    checkpoint = checkpoint_of(network, name, options, changes)
    return replace(checkpoint, from_file=True, notes=(*notes, *checkpoint.notes))


def checkpoint_of(
    network: nn.Module,
    name: str,
    options: NetworkOptions,
    changes: CardChanges,
    *,
    card: ModelCard | None = None,
) -> AuthorCheckpoint:
    """Wrap a network that has its weights already; errors as `load_with_network`.

    Without a `card`, one is assumed, with this `name`; in a given one, architecture, hash and what running the network
    shows of its input are filled in.
    """
    wrapped = AuthorNetwork(network, key=options.output_key, gives_probabilities=options.gives_probabilities).eval()
    stride, channels = options.stride, changes.channels or "raw"
    if card is not None:
        if options.gives_probabilities and card.output.activation != options.activation:
            raise ConfigError(
                f"card: has the activation {card.output.activation}, the network ends in its own {options.activation}"
            )
        stride, channels = stride or card.input.stride, card.input.channels
        changes = replace(changes, size=card.input.size, channels=channels)
    if options.only_size is not None:
        changes = replace(changes, size=options.only_size)
    facts = examine(wrapped, stride=stride, channels=channels, only=options.only_size)
    kind = type(network)
    architecture = f"{kind.__module__.removesuffix(ANOTHER)}.{kind.__qualname__}"
    assumed = assumed_card(architecture, name, facts, options, changes, network)
    require_end(facts, options.activation)
    if card is not None:
        filled = ("stride", "min_size", "padded", *(["size"] if options.only_size is not None else []))
        found = {name: getattr(assumed.input, name) for name in filled}
        card = replace(
            card,
            architecture=assumed.architecture,
            weights_sha256=assumed.weights_sha256,
            input=replace(card.input, **found),
        )
    return AuthorCheckpoint(
        state_dict=network.state_dict(),
        card=card or assumed,
        extra={},
        card_is_assumed=card is None,
        activation_is_assumed=card is None and facts.classes > 1 and not options.gives_probabilities,
        family=kind.__name__,
        author_network=wrapped,
        notes=(*notes_on_input(facts, (card or assumed).input), *notes_on_end(facts, options)),
    )


def notes_on_input(facts: Facts, spec: InputSpec) -> tuple[str, ...]:
    """List what a user has to know about the input of a network."""
    notes = []
    if spec.channels == "raw":
        notes.append(
            f"the file takes images of {facts.in_channels} channel{'s' * (facts.in_channels > 1)}: arrays [height, "
            f"width, {facts.in_channels}], and TIFF, .npy and .npz files of them"
        )
    if not facts.padded:
        changed = f"padding changes its answers everywhere, by {facts.change_by_padding:.1%} of their range"
        if facts.change_by_padding == float("inf"):
            changed = "as far as can be told: it takes no picture of twice the size"
        notes.append(
            f"the network looks at the whole picture at once ({changed}), so pictures are never padded: they are "
            f"resized to {spec.size[1]}x{spec.size[0]}"
            + f", and other sizes have to be multiples of {spec.stride}"
            * (spec.stride > 1)
        )
    return tuple(notes)


def notes_on_end(facts: Facts, options: NetworkOptions) -> tuple[str, ...]:
    """Say if classes that were told to be independent are those of a softmax."""
    if options.activation != "sigmoids" or facts.looks_like != "softmax":
        return ()
    return (
        "the network's classes sum to 1 at every pixel, as those of a softmax do; if a pixel has one class, give "
        "--activation softmax",
    )


def assumed_card(
    architecture: str, name: str, facts: Facts, options: NetworkOptions, changes: CardChanges, network: nn.Module
) -> ModelCard:
    """Make the card of a network, with defaults for all that running it does not show."""
    activation = options.activation_of(facts.classes, changes.probabilities)
    stride = facts.stride
    size = changes.size or tuple(stride * -(-side // stride) for side in ASSUMED_SIZE)
    # A picture that is padded to the smallest one that the network takes.
    least = tuple(side - stride + 1 if facts.padded else side for side in facts.min_size)
    if size[0] < least[0] or size[1] < least[1]:
        raise ConfigError(
            f"--size {size[1]}x{size[0]}: the network takes pictures of at least {least[1]}x{least[0]}; give that"
        )
    if not facts.padded and any(side % stride for side in size):
        near = "x".join(str(max(1, round(side / stride)) * stride) for side in reversed(size))
        raise ConfigError(
            f"--size {size[1]}x{size[0]}: expected multiples of {stride}, {NEVER_PADDED}; give one such as {near}"
        )
    count = facts.in_channels
    pictures: InputChannels = next((name for name in get_args(Channels) if CHANNEL_COUNT[name] == count), "raw")
    return ModelCard(
        name=name[:MAX_NAME],
        producer=producer(),
        architecture=ModuleConfig(name=architecture[:MAX_NAME], in_channels=facts.in_channels, classes=facts.classes),
        input=InputSpec(
            size=(size[0], size[1]),
            channels=changes.channels or pictures,
            mean=(0.0,) * count,
            std=(1.0,) * count,
            stride=stride,
            padded=facts.padded,
            min_size=(least[0], least[1]),
        ),
        output=OutputSpec(classes=default_classes(facts.classes, activation), activation=activation),
        weights_sha256=weights_sha256(network.state_dict()),
    )
