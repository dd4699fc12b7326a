"""What a checkpoint without a card does not tell: the size that it was trained at, normalisation, names, threshold."""

from dataclasses import asdict, dataclass, replace

from runtime.card import Fit, ModelCard
from runtime.errors import ConfigError, ModelError

OF_OUTPUT = ("classes", "threshold")
"""Fields of the card's output; the others are of its input."""


@dataclass(frozen=True, kw_only=True)
class CardChanges:
    """Fields of a card to be given by hand, None where they stay; `size` is (height, width)."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: Fit | None = None
    classes: tuple[str, ...] | None = None
    threshold: float | None = None

    def applied(self, card: ModelCard, *, assumed: bool) -> ModelCard:
        """The card with these changes; in one that training wrote only the threshold can be changed.

        Raises:
            ConfigError: it is not `assumed` and says otherwise, or a value is out of its bounds or not of this network.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name, value in given.items():
            known = getattr(card.output if name in OF_OUTPUT else card.input, name)
            if not assumed and name != "threshold" and value != known:
                raise ConfigError(
                    f"--{name}: found {_shown(name, value)}, the checkpoint's card says {_shown(name, known)}; "
                    "leave it out"
                )
        count = card.architecture.classes
        if self.classes is not None and len(self.classes) != count:
            raise ConfigError(f"--classes: found {len(self.classes)}, the weights have {count}; give a name for each")
        if self.threshold is not None and count > 1:
            raise ConfigError(f"--threshold: is of one class, the weights have {count}; leave it out")
        output = {name: given.pop(name) for name in OF_OUTPUT if name in given}
        try:
            return replace(card, input=replace(card.input, **given), output=replace(card.output, **output))
        except ModelError as error:  # of the field input.NAME or output.NAME
            raise ConfigError(f"--{str(error).partition('.')[2]}") from error


def _shown(name: str, value: object) -> str:
    """A value as the command line takes it."""
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(map(str, reversed(value))) if name == "size" else ",".join(map(str, value))
