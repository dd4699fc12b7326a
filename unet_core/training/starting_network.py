"""The network that a run starts from: a U-Net of this library, or one with a pretrained encoder."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from runtime.card import NEVER_PADDED, InputSpec, SmpConfig
from runtime.errors import ConfigError, ModelError
from unet_core.checkpoint import Checkpoint
from unet_core.config import TrainConfig
from unet_core.model import UNet
from unet_core.networks.author_network import AuthorNetwork, examine
from unet_core.networks.encoder_weights import Started, initialised, started
from unet_core.smp_networks import LIBRARY, make_network


@dataclass(frozen=True, kw_only=True)
class StartingNetwork:
    """A network to train, and what its card says of its input and of the libraries that made it.

    `make` returns the network on the CPU; `note` is a line for the user, or empty.
    """

    make: Callable[[], nn.Module]
    input: InputSpec
    made_by: tuple[str, ...] = ()
    note: str = ""

    def described(self, spec: InputSpec) -> InputSpec:
        """Return the input `spec` with all that the network decides."""
        own = self.input
        return replace(spec, mean=own.mean, std=own.std, padded=own.padded, min_size=own.min_size)


def starting_network(config: TrainConfig, resumed: Checkpoint | None = None) -> StartingNetwork:
    """Make the network of the settings; a run that is `resumed` has its weights already, so none are looked for.

    Raises:
        ConfigError: the settings do not make a network that can be trained, or its weights cannot be downloaded.
        CheckpointError: a file of weights cannot be read or does not fit.
    """
    architecture = config.architecture
    if not isinstance(architecture, SmpConfig):
        return StartingNetwork(make=lambda: UNet(architecture), input=config.input)
    torch.manual_seed(config.seed)
    if resumed is not None:
        spec = resumed.card.input
        found = Started(network=make_network(architecture), mean=spec.mean, std=spec.std)
    elif config.init_from:
        found = initialised(architecture, Path(config.init_from), config.classes)
    else:
        found = started(architecture, config.encoder_weights)
    network = found.network.eval()
    try:
        facts = examine(AuthorNetwork(network), stride=architecture.stride, channels=config.input_channels)
    except ConfigError as error:
        raise ConfigError(
            f"--network {config.network}: with the encoder {config.encoder} and these options, the network"
            f"{str(error).removeprefix('--network:').partition('; if ')[0]}; give another --encoder or --network-arg"
        ) from error
    # Weights that are random today hide what trained ones show, so any operator over the whole picture counts.
    padded = facts.change_by_padding == 0
    if not padded and config.fit == "native":
        raise ConfigError(
            f"--fit native: smp.{architecture.name} with the encoder {architecture.encoder} takes pictures of one "
            f"size, {NEVER_PADDED}; give --fit stretch or letterbox, or a network without such parts, such as "
            "--network smp.Unet --encoder resnet34"
        )
    least = facts.min_size if not padded else tuple(side - architecture.stride + 1 for side in facts.min_size)
    try:
        spec = replace(
            config.input, mean=found.mean, std=found.std, padded=padded, min_size=(int(least[0]), int(least[1]))
        )
    except ModelError as error:
        raise ConfigError(f"--network {config.network}: {error}") from error
    leave_out_unused(network, facts.in_channels)
    return StartingNetwork(make=lambda: network, input=spec, made_by=(LIBRARY, "timm"), note=found.note)


def leave_out_unused(network: nn.Module, channels: int) -> None:
    """Switch off training for weights that the answer does not depend on, as of layers that only classify.

    Optimizers would keep no state of them, and several processes would wait for their gradients.
    """
    network(torch.rand(1, channels, 128, 128, generator=torch.Generator().manual_seed(0))).sum().backward()
    for weight in network.parameters():
        weight.requires_grad_(weight.grad is not None)
        weight.grad = None


def require_batches(network: nn.Module, config: TrainConfig, images: int, processes: int) -> None:
    """Refuse a batch of one image, of so many `images` in an epoch, if the network cannot be trained on it.

    BatchNorm has no statistics of a single value, which is what a network pools a picture to that looks at the whole.

    Raises:
        ConfigError: the message has a batch size that leaves no such batch.
    """

    def smallest(size: int) -> int:
        left = images % size
        return min(one // processes for one in (min(size, images), left) if one)

    if config.network == "unet" or images <= 0 or smallest(config.batch_size) > 1:
        return
    device = next(network.parameters()).device
    picture = torch.zeros(1, config.architecture.in_channels, config.height, config.width, device=device)
    try:
        with torch.no_grad():
            copy.deepcopy(network).train()(picture)
    except ValueError as error:
        sizes = [size for size in range(2 * processes, images + 1) if smallest(size) > 1]
        near = min(sizes, key=lambda size: abs(size - config.batch_size), default=0)
        advice = f"give --batch-size {near}" if near else "train on more images"
        raise ConfigError(
            f"--batch-size {config.batch_size}: leaves a batch of 1 image, of {images}, and --network {config.network} "
            f"cannot be trained on one alone, since it pools a picture to one value, of which BatchNorm has no "
            f"statistics; {advice}"
        ) from error
