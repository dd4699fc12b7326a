"""Options that say of a model what its file does not: how its network is made, and fields of its card.

Needs neither PyTorch nor onnx.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from runtime.card import CHANNEL_COUNT, MAX_STRIDE, Fit, InputChannels, InputSpec, ModelCard, OutputSpec
from runtime.errors import ConfigError, ModelError

OUTPUT_FIELDS = ("classes", "threshold")
"""Fields of `CardChanges` that belong to the card's output. The others belong to its input."""

NETWORK_OPTIONS = ("network", "network_arg", "output_key", "activation", "stride")
CARD_OPTIONS = ("size", "channels", "mean", "std", "fit", "classes", "threshold")
"""Options of the command line for a network and for its card, under the names of their Python arguments."""

Inside = Literal["logits", "sigmoid", "softmax"]
"""End of a network: logits, or probabilities by a sigmoid or a softmax of its own."""


@dataclass(frozen=True, kw_only=True)
class CardChanges:
    """Fields of a card that a user gives by hand; None leaves a field as it is. `size` is (height, width).

    Raises:
        ConfigError: a value is out of its bounds.
    """

    size: tuple[int, int] | None = None
    channels: InputChannels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: Fit | None = None
    classes: tuple[str, ...] | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = self.given
        if self.channels is not None and self.channels not in (*CHANNEL_COUNT, "raw"):
            raise ConfigError(f"--channels {self.channels}: expected RGB, L or raw")
        try:
            InputSpec(**{name: given[name] for name in ("size", "fit") if name in given})
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
            known = getattr(card.output if name in OUTPUT_FIELDS else card.input, name)
            if not assumed and name != "threshold" and value != known:
                raise ConfigError(
                    f"--{name}: found {_as_option(name, value)}, the checkpoint's card says {_as_option(name, known)}; "
                    "leave it out"
                )
        count = card.architecture.classes
        if self.classes is not None and len(self.classes) != count:
            raise ConfigError(f"--classes: found {len(self.classes)}, the weights have {count}; give a name for each")
        channels = card.architecture.in_channels
        if self.channels is not None and CHANNEL_COUNT.get(self.channels, channels) != channels:
            raise ConfigError(f"--channels {self.channels}: the weights take {channels}; leave it out")
        for name in ("mean", "std"):
            if name in given and len(given[name]) != channels:
                raise ConfigError(f"--{name}: found {given[name]!r}, expected {channels} values")
        if self.threshold is not None and count > 1:
            raise ConfigError(f"--threshold: needs a model of one class, the weights have {count}; leave it out")
        output = {name: given.pop(name) for name in OUTPUT_FIELDS if name in given}
        try:
            return replace(card, input=replace(card.input, **given), output=replace(card.output, **output))
        except ModelError as error:
            raise _named_by_option(error) from error


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
    """A network that its author's code makes, and its ends; see `unet_core.networks`.

    Attributes:
        source: "FILE.py:NAME" or "package.module:NAME" of a class or function that returns a `torch.nn.Module`; empty
            for a network that is there already.
        arguments: its keyword arguments.
        output_key: key, attribute or index of the output, where there are several.
        activation: what the output is already: logits, or probabilities by a sigmoid or softmax.
        stride: number of which height and width have to be multiples; None finds it out.

    Raises:
        ConfigError: a value is unknown or out of bounds.
    """

    source: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    activation: Inside = "logits"
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.activation not in get_args(Inside):
            raise ConfigError(f"--activation {self.activation}: expected {', '.join(get_args(Inside))}")
        if self.stride is not None and not 1 <= self.stride <= MAX_STRIDE:
            raise ConfigError(f"--stride {self.stride}: expected 1 to {MAX_STRIDE}")
