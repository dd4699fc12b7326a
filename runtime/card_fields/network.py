"""The network: a U-Net by its dimensions, or another architecture by its name."""

from dataclasses import dataclass
from typing import Literal, get_args

from runtime.card_fields.checks import CHANNEL_COUNT, CHECK, MAX_CHANNELS, MAX_CLASSES, MAX_NAME

MAX_WIDTH = 65_536
MAX_DEPTH = 8

Up = Literal["transpose", "bilinear", "bilinear-wide"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The dimensions of a U-Net.

    `widths` are the channels of each level from the top. The bottleneck below has twice the last width. With `up`
    "bilinear" it has the last width instead, and each decoder level narrows to the width of the level above it.
    `classes` is the number of output channels.
    """

    in_channels: int = 3
    classes: int = 1
    widths: tuple[int, ...] = (64, 128, 256, 512)
    up: Up = "transpose"
    kind: Literal["unet"] = "unet"

    def __post_init__(self) -> None:
        CHECK.choice("architecture.kind", self.kind, ("unet",))
        CHECK.choice("architecture.in_channels", self.in_channels, tuple(CHANNEL_COUNT.values()))
        CHECK.integer("architecture.classes", self.classes, 1, MAX_CLASSES)
        CHECK.length("architecture.widths", self.widths, 1, MAX_DEPTH)
        for width in self.widths:
            CHECK.integer("architecture.widths", width, 1, MAX_WIDTH)
        CHECK.choice("architecture.up", self.up, get_args(Up))

    @property
    def stride(self) -> int:
        """Divisor of the network's input height and width: 2 ** number of poolings."""
        return int(2 ** len(self.widths))

    @property
    def summary(self) -> str:
        """The network in a few words."""
        return f"U-Net of widths {','.join(map(str, self.widths))}"

    @property
    def convolutions(self) -> int:
        """Number of convolutions: two in a block, one for each transposed upsampling, and the last one."""
        levels = len(self.widths)
        return 2 * (2 * levels + 1) + (levels if self.up == "transpose" else 0) + 1


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """A network of another architecture, by the qualified name of its class. Nothing is ever imported by that name."""

    name: str
    in_channels: int = 3
    classes: int = 1
    kind: Literal["module"] = "module"

    def __post_init__(self) -> None:
        CHECK.choice("architecture.kind", self.kind, ("module",))
        CHECK.text("architecture.name", self.name, 1, MAX_NAME)
        CHECK.integer("architecture.in_channels", self.in_channels, 1, MAX_CHANNELS)
        CHECK.integer("architecture.classes", self.classes, 1, MAX_CLASSES)

    @property
    def summary(self) -> str:
        """The network in a few words."""
        return self.name
