"""A checkpoint file with the network that its author's code makes: taken in place of a `Checkpoint`."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from runtime.card import MAX_NAME, InputSpec, ModelCard, ModuleConfig, OutputSpec, default_classes
from runtime.errors import ConfigError
from unet_core.checkpoint import Checkpoint, producer, weights_sha256
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.author_network import AuthorNetwork, Facts, examine
from unet_core.networks.factory import make_network
from unet_core.networks.weights import load_weights_into

ASSUMED_SIZE = (256, 256)
"""Size (height, width) that is assumed in training, if nothing tells: rounded up to multiples of the stride."""


@dataclass(frozen=True, kw_only=True)
class AuthorCheckpoint(Checkpoint):
    """Weights in their author's network. The card is assumed, but the network is not."""

    author_network: AuthorNetwork

    def network(self) -> nn.Module:
        """Return the network with its weights, on the CPU in evaluation mode."""
        return self.author_network


def load_with_network(path: Path, options: NetworkOptions, changes: CardChanges) -> AuthorCheckpoint:
    """Make the network that the options name, load a checkpoint's weights into it, and try what it takes and gives.

    Size and probabilities in `changes` are used for the card.

    Raises:
        ConfigError: the code cannot be used, or the network is not one that segments pictures.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    network = make_network(options.source, options.arguments).cpu().eval()
    load_weights_into(network, path)
    return checkpoint_of(network, path.stem, options, changes)


def checkpoint_of(
    network: nn.Module,
    name: str,
    options: NetworkOptions,
    changes: CardChanges,
    *,
    card: ModelCard | None = None,
) -> AuthorCheckpoint:
    """Wrap a network that has its weights already; errors as `load_with_network`.

    Without a `card`, one is assumed, with this `name`; in a given one, architecture and hash are filled in.
    """
    wrapped = AuthorNetwork(network, key=options.output_key, gives_probabilities=options.gives_probabilities).eval()
    facts = examine(wrapped, stride=options.stride)
    kind = type(network)
    assumed = assumed_card(f"{kind.__module__}.{kind.__qualname__}", name, facts, options, changes, network)
    if card is not None:
        if options.gives_probabilities and card.output.activation != options.activation:
            raise ConfigError(
                f"card: has the activation {card.output.activation}, the network ends in its own {options.activation}"
            )
        card = replace(card, architecture=assumed.architecture, weights_sha256=assumed.weights_sha256)
    return AuthorCheckpoint(
        state_dict=network.state_dict(),
        card=card or assumed,
        extra={},
        card_is_assumed=card is None,
        activation_is_assumed=card is None and facts.classes > 1 and not options.gives_probabilities,
        family=kind.__name__,
        author_network=wrapped,
    )


def assumed_card(
    architecture: str, name: str, facts: Facts, options: NetworkOptions, changes: CardChanges, network: nn.Module
) -> ModelCard:
    """Make the card of a network, with defaults for all that running it does not show."""
    activation = options.activation_of(facts.classes, changes.probabilities)
    stride = facts.stride
    size = changes.size or tuple(stride * -(-side // stride) for side in ASSUMED_SIZE)
    # A picture that is padded to the smallest one that the network takes.
    least = tuple(side - stride + 1 for side in facts.min_size)
    if size[0] < least[0] or size[1] < least[1]:
        raise ConfigError(
            f"--size {size[1]}x{size[0]}: the network takes pictures of at least {least[1]}x{least[0]}; give that"
        )
    grey = facts.in_channels == 1
    return ModelCard(
        name=name[:MAX_NAME],
        producer=producer(),
        architecture=ModuleConfig(name=architecture[:MAX_NAME], in_channels=facts.in_channels, classes=facts.classes),
        input=InputSpec(
            size=(size[0], size[1]),
            channels="L" if grey else "RGB",
            mean=(0.0,) if grey else InputSpec.mean,
            std=(1.0,) if grey else InputSpec.std,
            stride=stride,
            min_size=(least[0], least[1]),
        ),
        output=OutputSpec(classes=default_classes(facts.classes, activation), activation=activation),
        weights_sha256=weights_sha256(network.state_dict()),
    )
