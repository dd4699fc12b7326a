"""The network: a U-Net by its dimensions, a network of a library by its names there, or any by its class."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from runtime.card_fields.checks import CHECK, MAX_CHANNELS, MAX_CLASSES, MAX_NAME

MAX_WIDTH = 65_536
MAX_DEPTH = 8

Up = Literal["transpose", "bilinear", "bilinear-wide"]

SmpName = Literal["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "DeepLabV3Plus", "Segformer"]
"""Networks of segmentation-models-pytorch, by the names of their classes."""

SMP_STRIDE = 32
"""Number of which the sides of these networks' inputs are multiples."""

MAX_OPTIONS, MAX_OPTION = 16, 2_048
"""Maximum number of options of such a network and of values in one, and the largest number in an option."""

RESERVED = frozenset(
    {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}
)
"""Options of such a network that the card has other fields for, or that would change what it answers."""

Option = None | bool | int | float | str | tuple[int | float, ...]


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
        CHECK.integer("architecture.in_channels", self.in_channels, 1, MAX_CHANNELS)
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


@dataclass(frozen=True, kw_only=True)
class SmpConfig:
    """A network of segmentation-models-pytorch, which that library alone makes: by its own names and options.

    `name` is that of the class, `encoder` that of the encoder, `options` are further keyword arguments of the class.
    None of them can name a file, an address, or code.
    """

    name: SmpName
    encoder: str = "resnet34"
    in_channels: int = 3
    classes: int = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    kind: Literal["smp"] = "smp"

    def __post_init__(self) -> None:
        CHECK.choice("architecture.kind", self.kind, ("smp",))
        CHECK.choice("architecture.name", self.name, get_args(SmpName))
        CHECK.text("architecture.encoder", self.encoder, 1, MAX_NAME)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.encoder, re.ASCII):
            raise CHECK.refusal("architecture.encoder", self.encoder, "the name of an encoder, such as resnet34")
        CHECK.integer("architecture.in_channels", self.in_channels, 1, MAX_CHANNELS)
        CHECK.integer("architecture.classes", self.classes, 1, MAX_CLASSES)
        if not isinstance(self.options, Mapping) or len(self.options) > MAX_OPTIONS:
            raise CHECK.refusal("architecture.options", self.options, f"at most {MAX_OPTIONS} names and values")
        for name, value in self.options.items():
            self._check_option(name, value)
        known = {name: tuple(one) if isinstance(one, list) else one for name, one in self.options.items()}
        object.__setattr__(self, "options", known)

    def _check_option(self, name: object, value: object) -> None:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED or len(name) > MAX_NAME:
            raise CHECK.refusal("architecture.options", name, "names of options of the class")
        where = f"architecture.options.{name}"
        if isinstance(value, str):
            CHECK.text(where, value, 1, MAX_NAME)
        elif isinstance(value, list | tuple):
            CHECK.length(where, tuple(value), 1, MAX_OPTIONS)
            for one in value:
                CHECK.number(where, one, 0, MAX_OPTION)
        elif value is not None and not isinstance(value, bool):
            CHECK.number(where, value, 0, MAX_OPTION)

    @property
    def stride(self) -> int:
        """Divisor of the network's input height and width."""
        return SMP_STRIDE

    @property
    def summary(self) -> str:
        """The network in a few words."""
        return f"smp.{self.name} with the encoder {self.encoder}"
