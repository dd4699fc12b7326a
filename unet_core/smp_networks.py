"""Networks of segmentation-models-pytorch: made by that library alone, from the names and options in a card.

The library is an extra (`encoders`) and is imported only where such a network is made. Nothing else is
imported by a name in a file, and without `encoder_weights` nothing is downloaded.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from runtime.card import RESERVED, SmpConfig
from runtime.commands.suggestions import nearest
from runtime.errors import ConfigError, one_line

LIBRARY = "segmentation-models-pytorch"

SHOWN = 300
"""Maximum length of an error of the library in a message, in characters."""


def library() -> Any:
    """Import segmentation-models-pytorch.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    try:
        with quiet():
            import segmentation_models_pytorch
    except ImportError as error:
        raise ConfigError(
            f"--network smp: needs {LIBRARY}, which cannot be imported ({one_line(str(error))[:SHOWN]}); "
            "install unet-deploy with its extra [encoders]"
        ) from error
    return segmentation_models_pytorch


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings of the library about itself and its dependencies, and those about each try to download."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(level)


def make_network(config: SmpConfig, encoder_weights: str | None = None) -> nn.Module:
    """Make the network with random weights, or with the encoder's weights that the library downloads by this name.

    Raises:
        ConfigError: the library is missing, or has no such encoder or option, or refuses one.
        Exception: of any type, where a download fails.
    """
    smp = library()
    kind = getattr(smp, config.name)
    require_encoder(config.encoder, smp)
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self" and name not in RESERVED]
    for name in config.options:
        if name not in known:
            raise ConfigError(f"--network-arg {name}: is no option of smp.{config.name}; found {', '.join(known)}")
    try:
        with quiet():
            network: nn.Module = kind(
                encoder_name=config.encoder,
                encoder_weights=encoder_weights,
                in_channels=config.in_channels,
                classes=config.classes,
                **config.options,
            )
    except Exception as error:  # of any type: it is the library's code
        if encoder_weights is not None:
            raise
        raise ConfigError(
            f"--network smp.{config.name}: {LIBRARY} refuses the encoder {config.encoder}"
            f"{' or an option' * bool(config.options)} ({type(error).__name__}: {one_line(str(error))[:SHOWN]}); give "
            "another --encoder or --network-arg"
        ) from error
    pad_alike(network)
    return network


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does images whose sides are multiples of the stride.

    That does not depend on the image's size, which `torch.export` would otherwise follow for minutes.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        sides = []
        for kernel, stride, dilation in zip(
            self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            both = max((kernel - 1) * dilation + 1 - stride, 0)
            sides += [both // 2, both - both // 2]
        answers: torch.Tensor = self._conv_forward(nn.functional.pad(values, sides), self.weight, self.bias)
        return answers


def pad_alike(network: nn.Module) -> None:
    """Let timm's convolutions that compute their padding (in encoders named tf_...) pad all images alike.

    Images of these networks have sides that are multiples of 32, and so are those of each level of its stride.
    """
    for module in network.modules():
        if type(module).__name__ == "Conv2dSame":
            module.__class__ = SameConv2d  # keeps the weights, their names and all references


def require_encoder(name: str, smp: Any) -> None:
    """Refuse a name that is none of the library's encoders and does not ask for one of timm's.

    Raises:
        ConfigError: the message has the nearest names.
    """
    known = list(smp.encoders.encoders)
    if name in known or name.startswith(("tu-", "timm-")):
        return
    near = nearest(name, known) or ("resnet34", "mit_b0", "efficientnet-b0")
    raise ConfigError(
        f"--encoder {name}: is no encoder of {LIBRARY}; the nearest are {', '.join(near)}; tu-NAME is timm's NAME"
    )


def shapes_of(config: SmpConfig) -> Mapping[str, torch.Size]:
    """Return the names and shapes of a network's weights, if it can be without memory for them.

    Raises:
        ConfigError: as `make_network`.
    """
    try:
        with torch.device("meta"):
            network = make_network(config)
    except ConfigError:  # some encoders compute with values while they are made
        network = make_network(config)
    return {name: value.shape for name, value in network.state_dict().items()}
