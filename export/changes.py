"""What a checkpoint without a card does not tell: the size that it was trained at, normalisation, names, threshold."""

from dataclasses import asdict, dataclass, replace

from runtime.card import Fit, ModelCard
from runtime.errors import ConfigError, ModelError


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
            ConfigError: it is not `assumed` and says otherwise, or a value is out of its bounds.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        known = {name: getattr(card.output if name in ("classes", "threshold") else card.input, name) for name in given}
        for name, value in given.items():
            if not assumed and name != "threshold" and value != known[name]:
                raise ConfigError(f"--{name}: the checkpoint's card says {known[name]}; leave it out")
        output = {name: given.pop(name) for name in ("classes", "threshold") if name in given}
        try:
            return replace(card, input=replace(card.input, **given), output=replace(card.output, **output))
        except ModelError as error:
            raise ConfigError(str(error).removeprefix("card field ")) from error
