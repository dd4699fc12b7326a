"""Readings: the networks that one file of weights may stand for, since keys and shapes do not show everything."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal, get_args

from torch import nn

from runtime.card import UNetConfig
from unet_core.foreign import Mapped
from unet_core.model import UNet

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU(0.01)": nn.LeakyReLU,
    "LeakyReLU(0.1)": lambda: nn.LeakyReLU(0.1),
    "LeakyReLU(0.2)": lambda: nn.LeakyReLU(0.2),
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
}
"""Functions after each convolution of a block; ours is first here, as in the tables below."""

UPSAMPLINGS: Mapping[str, Callable[[], nn.Module]] = {
    "align_corners=True": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "align_corners=False": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "nearest": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
}
"""Upsamplings of a network that has no transposed convolutions."""

Padding = Literal["zeros", "reflect", "replicate", "circular"]
"""Values outside a map, for its 3x3 convolutions."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Choices that keys and shapes do not show.

    `up_first` is True if the decoder concatenates [up, skip]. `upsampling` is empty if transposed convolutions do it.
    """

    up_first: bool
    activation: str
    upsampling: str
    padding: Padding

    def __str__(self) -> str:
        listed = [f"concatenation {'[up, skip]' if self.up_first else '[skip, up]'}", self.activation]
        return ", ".join([*listed, *([self.upsampling] if self.upsampling else []), f"padding {self.padding}"])

    def distance(self, other: "Reading") -> int:
        """Count the choices that differ."""
        theirs = asdict(other)
        return sum(theirs[name] != value for name, value in asdict(self).items())

    @property
    def is_ours(self) -> bool:
        """True if our own `UNet` computes it, once the weights' channels are in its order."""
        usual = (next(iter(ACTIVATIONS)), "zeros")
        return (self.activation, self.padding) == usual and self.upsampling in ("", next(iter(UPSAMPLINGS)))

    def network(self, mapped: Mapped) -> UNet:
        """Make the network in evaluation mode; `mapped` holds weights of this concatenation."""
        network = UNet(mapped.config)
        network.load_state_dict(dict(mapped.state_dict))
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.ReLU):
                    setattr(parent, name, ACTIVATIONS[self.activation]())
                elif isinstance(layer, nn.Upsample):
                    setattr(parent, name, UPSAMPLINGS[self.upsampling]())
                elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.padding_mode = self.padding  # it is read when the convolution runs
        return network.eval()


def usual_reading(mapped: Mapped) -> Reading:
    """Return the reading of a family's own code."""
    upsampling = "" if mapped.config.up == "transpose" else next(iter(UPSAMPLINGS))
    return Reading(up_first=mapped.up_first, activation=next(iter(ACTIVATIONS)), upsampling=upsampling, padding="zeros")


def all_readings(config: UNetConfig) -> Iterator[Reading]:
    """Give every reading that is tried for weights of these dimensions."""
    upsamplings = ("",) if config.up == "transpose" else tuple(UPSAMPLINGS)
    for up_first, activation, upsampling, padding in product(
        (False, True), ACTIVATIONS, upsamplings, get_args(Padding)
    ):
        yield Reading(up_first=up_first, activation=activation, upsampling=upsampling, padding=padding)
