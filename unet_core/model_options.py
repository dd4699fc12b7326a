"""Options that say of a model what its file does not: how its network is made, and fields of its card.

Commands that take a checkpoint have them all by the same names. Needs neither PyTorch nor onnx.
"""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import click

from runtime.card import (
    CHANNEL_COUNT,
    MAX_STRIDE,
    Activation,
    Fit,
    InputChannels,
    InputSpec,
    Levels,
    ModelCard,
    OutputSpec,
    Probabilities,
    default_classes,
)
from runtime.commands.console import Listed, Size
from runtime.errors import ConfigError, ModelError
from runtime.support.sizes import parse_size

OUTPUT_FIELDS = {"classes": "classes", "threshold": "threshold", "probabilities": "activation"}
"""Fields of `CardChanges` that belong to the card's output, and their names there. The others belong to its input."""

NETWORK_OPTIONS = ("network", "network_arg", "output_key", "activation", "stride", "weights")
CARD_OPTIONS = ("size", "channels", "levels", "mean", "std", "fit", "scale", "classes", "probabilities", "threshold")
"""Options of the command line for a network and for its card, under the names of their Python arguments."""

Inside = Literal["logits", "none", "sigmoid", "softmax", "sigmoids"]
"""End of a network: logits, which "none" means too; or probabilities by a sigmoid, a softmax or several sigmoids of its
own."""

WeightsChoice = Literal["raw", "ema"]
"""Weights of a file that holds both: as they were trained ("raw"), or their moving average ("ema")."""

F = TypeVar("F", bound=Callable[..., Any])


def channels_setting(count: int) -> str:
    """Return the value of `--channels` by which training makes a network of so many channels."""
    return next((name for name, channels in CHANNEL_COUNT.items() if channels == count), str(count))


@dataclass(frozen=True, kw_only=True)
class CardChanges:
    """Fields of a card that a user gives by hand; None leaves a field as it is. `size` is (height, width); a text
    "WIDTHxHEIGHT" is taken, too.

    `probabilities` is what the logits of several classes become: by a softmax a pixel has one class, by sigmoids each
    class is by itself, and a pixel may have several or none. `scale` goes with fit "native". `levels` are the stored
    values that become 0 and 255, for networks that were trained on images of 10, 12 or 14 bits, say.

    Raises:
        ConfigError: a value is out of its bounds.
    """

    size: tuple[int, int] | None = None
    channels: InputChannels | None = None
    levels: Levels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: Fit | None = None
    scale: float | None = None
    classes: tuple[str, ...] | None = None
    probabilities: Probabilities | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", parse_size(self.size))
        given = self.given
        if self.probabilities not in (None, *get_args(Probabilities)):
            raise ConfigError(f"--probabilities {self.probabilities}: expected {' or '.join(get_args(Probabilities))}")
        if self.channels is not None and self.channels not in (*CHANNEL_COUNT, "raw"):
            raise ConfigError(f"--channels {self.channels}: expected RGB, L or raw")
        try:
            InputSpec(**{name: given[name] for name in ("size", "levels", "fit", "scale") if name in given})
            OutputSpec(**{name: given[name] for name in ("threshold",) if name in given})
        except ModelError as error:
            raise _named_by_option(error) from error

    @property
    def given(self) -> dict[str, Any]:
        """Fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def applied(self, card: ModelCard, *, assumed: bool) -> ModelCard:
        """Return the card with these changes. In a card that training wrote only the threshold can be changed.

        Raises:
            ConfigError: the card is not `assumed` and has other values, or a value does not fit the network.
        """
        given = self.given
        for name, value in given.items():
            known = getattr(card.output if name in OUTPUT_FIELDS else card.input, OUTPUT_FIELDS.get(name, name))
            if not assumed and name != "threshold" and value != known:
                raise ConfigError(
                    f"--{name}: found {_as_option(name, value)}, the checkpoint's card says {_as_option(name, known)}; "
                    "leave it out"
                )
        count = card.architecture.classes
        if self.classes is not None and len(self.classes) != count:
            raise ConfigError(f"--classes: found {len(self.classes)}, the weights have {count}; give a name for each")
        if self.probabilities is not None and count == 1:
            raise ConfigError(f"--probabilities {self.probabilities}: is for several classes; leave it out")
        channels = card.architecture.in_channels
        if self.channels is not None and CHANNEL_COUNT.get(self.channels, channels) != channels:
            raise ConfigError(f"--channels {self.channels}: the weights take {channels}; leave it out")
        for name in ("mean", "std"):
            if name in given and len(given[name]) != channels:
                raise ConfigError(f"--{name}: found {given[name]!r}, expected {channels} values")
        output = {field: given.pop(name) for name, field in OUTPUT_FIELDS.items() if name in given}
        if output.get("activation", card.output.activation) != card.output.activation:
            output.setdefault("classes", default_classes(count, output["activation"]))
        try:
            changed = replace(card, input=replace(card.input, **given), output=replace(card.output, **output))
        except ModelError as error:
            raise _named_by_option(error) from error
        if self.threshold is not None and not changed.output.thresholded:
            raise ConfigError(
                f"--threshold: is for sigmoids, and of the {count} classes a pixel has the most probable; leave it out"
            )
        return changed

    def assumptions(self, card: ModelCard, *, activation: bool) -> str:
        """List the fields of a card that were assumed, with the options that would change them; "" if none was.

        `activation` is True if that of several classes was assumed.
        """
        (height, width), given = card.input.size, self.given
        mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in (card.input.mean, card.input.std))
        assumed = {
            "size": f"trained at {width}x{height}",
            "mean": f"mean {mean} of values in 0..1",
            "std": f"std {std}",
            "fit": f"fit {card.input.fit}" + (f" at {card.input.scale:g} of its size" if card.input.scale != 1 else ""),
            "classes": f"classes {', '.join(card.output.classes)}",
        }
        if activation:
            overlapping = card.output.overlapping
            assumed["probabilities"] = "a sigmoid for each class" if overlapping else "a softmax over the classes"
        left = [name for name in assumed if name not in given]
        return f"{', '.join(assumed[name] for name in left)} (--{', --'.join(left)})" if left else ""


def _named_by_option(error: ModelError) -> ConfigError:
    """Turn a refusal of the card's field input.NAME or output.NAME into one of the option --NAME."""
    return ConfigError(f"--{str(error).partition('.')[2]}")


def _as_option(name: str, value: object) -> str:
    """Write a value as the command line takes it."""
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(map(str, reversed(value))) if name == "size" else ",".join(map(str, value))


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """A network that its author's code makes, its ends and its weights; see `unet_core.networks`.

    Attributes:
        source: "FILE.py:NAME" or "package.module:NAME" of a class or function that returns a `torch.nn.Module`; empty
            for a network that is there already, and for checkpoints that are recognised.
        arguments: its keyword arguments.
        output_key: key, attribute or index of the output, where there are several.
        activation: what the output is already: logits, or probabilities by a sigmoid, a softmax or several sigmoids.
            None stands for logits, unless running the network shows probabilities, which are asked about then.
        stride: number of which height and width have to be multiples; None finds it out.
        weights: those to take of a file that holds weights and their moving average; None takes the ones that the
            file's own program would load.
        only_size: (height, width) of the only pictures that it need take; None: it is tried with several sizes.

    Raises:
        ConfigError: a value is unknown or out of bounds.
    """

    source: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    activation: Inside | None = None
    stride: int | None = None
    weights: WeightsChoice | None = None
    only_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "only_size", parse_size(self.only_size))
        if self.activation not in (None, *get_args(Inside)):
            raise ConfigError(f"--activation {self.activation}: expected {', '.join(get_args(Inside))}")
        if self.stride is not None and not 1 <= self.stride <= MAX_STRIDE:
            raise ConfigError(f"--stride {self.stride}: expected 1 to {MAX_STRIDE}")
        if self.weights is not None and self.weights not in get_args(WeightsChoice):
            raise ConfigError(f"--weights {self.weights}: expected {' or '.join(get_args(WeightsChoice))}")

    @property
    def gives_probabilities(self) -> bool:
        """True if the network ends in an activation of its own."""
        return self.activation not in (None, "logits", "none")

    def activation_of(self, count: int, probabilities: Probabilities | None) -> Activation:
        """Return the activation of a network of so many output channels; `probabilities` is that of `CardChanges`.

        Raises:
            ConfigError: its own activation is not for so many channels, or contradicts `probabilities`.
        """
        expected: Activation = "sigmoid" if count == 1 else probabilities or "softmax"
        if not self.gives_probabilities:
            return expected
        if count == 1 and self.activation != "sigmoid":
            raise ConfigError(
                f"--activation {self.activation}: the network has 1 output channel, expected logits or sigmoid"
            )
        if count > 1 and self.activation == "sigmoid":
            raise ConfigError(
                f"--activation sigmoid: the network has {count} output channels; is it sigmoids, one for each? "
                "expected logits, softmax or sigmoids"
            )
        if probabilities not in (None, self.activation):
            raise ConfigError(
                f"--probabilities {probabilities}: says what logits become, and the network gives --activation "
                f"{self.activation}; leave it out"
            )
        return "sigmoid" if count == 1 else "softmax" if self.activation == "softmax" else "sigmoids"


def with_network_options(command: F) -> F:
    """Add the `NETWORK_OPTIONS` to a command, for `network_options`."""
    options = (
        click.option(
            "--network",
            metavar="FILE.py:NAME",
            help="Class or function that makes the checkpoint's network: FILE.py:NAME or package.module:NAME. Its code "
            "is run.",
        ),
        click.option(
            "--network-arg",
            multiple=True,
            metavar="NAME=VALUE",
            help="With --network: a keyword argument of it, as in TOML; may be repeated.",
        ),
        click.option(
            "--output-key",
            help="With --network: key, attribute or index of the output, if the network has several.",
        ),
        click.option(
            "--activation",
            type=click.Choice(get_args(Inside)),
            help="With --network: what it gives: logits (none), or probabilities by its own sigmoid (one class), "
            "softmax or sigmoids (several classes).  [default: logits, unless its answers look otherwise]",
        ),
        click.option(
            "--stride",
            type=int,
            help="With --network: divisor of its height and width.  [default: found by trying]",
        ),
        click.option(
            "--weights",
            type=click.Choice(get_args(WeightsChoice)),
            help="Weights to take from a checkpoint that also holds their moving average: raw, as they were trained, "
            "or ema, the average.  [default: the ones that its own program loads]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def with_card_options(command: F) -> F:
    """Add the `CARD_OPTIONS` to a command, for `card_changes`."""
    options = (
        click.option(
            "--size",
            type=Size(),
            help="Size that the network was trained at, in pixels, for checkpoints without a card.",
        ),
        click.option(
            "--channels",
            type=click.Choice((*CHANNEL_COUNT, "raw")),
            help="Kind of images: colour (RGB), grey (L), or all of 1 to 16 channels (raw).  [default: by the "
            "number of channels]",
        ),
        click.option(
            "--levels",
            type=Listed(int),
            metavar="LOW,HIGH",
            help="Stored values of images that become 0 and 255, such as 0,4095 for 12 bits in files of 16, for "
            "checkpoints without a card.  [default: the whole range]",
        ),
        click.option(
            "--mean",
            type=Listed(float),
            help="Per-channel mean (values scaled to 0..1), for checkpoints without a card.",
        ),
        click.option(
            "--std",
            type=Listed(float),
            help="Per-channel standard deviation (values scaled to 0..1), for checkpoints without a card.",
        ),
        click.option(
            "--fit",
            type=click.Choice(get_args(Fit)),
            help="Resizing of images to --size, for checkpoints without a card.",
        ),
        click.option(
            "--scale",
            type=float,
            help="With --fit native: fraction of an image's own size, for checkpoints without a card.  [default: 1]",
        ),
        click.option("--classes", type=Listed(str), help="Class names in order, for checkpoints without a card."),
        click.option(
            "--probabilities",
            type=click.Choice(get_args(Probabilities)),
            help="Meaning of several classes, for checkpoints without a card. softmax: a pixel has exactly one "
            "class; sigmoids: each class is by itself, and a pixel may have several or none.  [default: as in the "
            "file's project, else softmax]",
        ),
        click.option(
            "--threshold", type=float, help="Probability threshold, for any checkpoint of one class or with sigmoids."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def network_options(given: Mapping[str, Any]) -> NetworkOptions:
    """Make `NetworkOptions` of what a user gave a command: values by name, without those left out.

    Raises:
        ConfigError: an option describes the network of a --network that was not given, or is invalid.
    """
    for name in NETWORK_OPTIONS:
        if name in given and name not in ("network", "weights") and "network" not in given:
            raise ConfigError(f"--{name.replace('_', '-')}: goes with --network; give that too, or leave it out")
    named = {name: given[name] for name in ("output_key", "activation", "stride", "weights") if name in given}
    if "network" not in given:
        return NetworkOptions(**named)
    return NetworkOptions(source=given["network"], arguments=parse_arguments(given.get("network_arg", ())), **named)


def card_changes(given: Mapping[str, Any]) -> CardChanges:
    """Make `CardChanges` of what a user gave a command: values by name, without those left out."""
    return CardChanges(**{name: given[name] for name in CARD_OPTIONS if name in given})


def parse_arguments(given: tuple[str, ...]) -> dict[str, Any]:
    """Read arguments "NAME=VALUE": values as in TOML, which has no None, so None too; anything else is text.

    Raises:
        ConfigError: there is no "=", or a name is invalid or occurs twice.
    """
    arguments: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--network-arg {text}: expected NAME=VALUE, such as in_channels=3")
        if name in arguments:
            raise ConfigError(f"--network-arg {name}: is given twice")
        try:
            arguments[name] = None if value == "None" else tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            arguments[name] = value
    return arguments


def as_argument(name: str, value: Any) -> str:
    """Write an argument as `parse_arguments` reads it."""
    if isinstance(value, tuple | list):
        return f"{name}=[{', '.join(map(repr, value))}]"
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    return f"{name}={json.dumps(value) if isinstance(value, str) else value}"
