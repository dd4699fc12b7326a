"""Checks of the fields of frozen dataclasses; errors name the field, the value found and the expected one."""

import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import ConfigError, UnetError


def plain_integer(value: Any) -> Any:
    """Return integers of NumPy and others as Python's, in tuples too; all else, True and False too, stays as it is."""
    if isinstance(value, tuple):
        return tuple(map(plain_integer, value))
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def make_integers_plain(record: Any) -> None:
    """Apply `plain_integer` to the fields of a frozen dataclass."""
    for name, value in vars(record).items():
        object.__setattr__(record, name, plain_integer(value))


@dataclass(frozen=True)
class FieldChecks:
    """Checks that raise `error`; its messages begin with `prefix` and the field's name.

    Each check takes the field's name and its value. Bounds are inclusive.
    """

    error: type[UnetError] = ConfigError
    prefix: str = ""

    def refusal(self, name: str, found: object, expected: str) -> UnetError:
        """Return the error, with a found value of any size on one short line."""
        return self.error(f"{self.prefix}{name}: found {reprlib.repr(found)}, expected {expected}")

    def integer(self, name: str, value: object, low: int, high: int | None = None, unit: str = "") -> None:
        """Refuse everything but an integer; True and False are none. `unit` is its unit in the message."""
        if type(value) is not int or value < low or (high is not None and value > high):
            bounds = f"an integer from {low}" + ("" if high is None else f" to {high}")
            raise self.refusal(name, value, bounds + (f" {unit}" if unit else ""))

    def number(self, name: str, value: object, low: float, high: float, unit: str = "") -> None:
        """Refuse everything but a number, NaN among it; `unit` is its unit in the message."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            kind = f"a number of {unit}" if unit else "a number"
            raise self.refusal(name, value, f"{kind} from {low:.12g} to {high:.12g}")

    def choice(self, name: str, value: object, choices: Sequence[object]) -> None:
        """Refuse everything but the choices, with their types: True == 1 == 1.0."""
        for choice in choices:
            is_same_type = type(value) is type(choice) or (isinstance(value, str) and isinstance(choice, str))
            if is_same_type and value == choice:
                return
        raise self.refusal(name, value, "one of " + ", ".join(map(str, choices)))

    def text(self, name: str, value: object, low: int, high: int) -> None:
        """Refuse everything but a text of `low` to `high` characters."""
        if not isinstance(value, str) or not low <= len(value) <= high:
            raise self.refusal(name, value, f"text of {low} to {high} characters")

    def length(self, name: str, value: object, low: int, high: int) -> None:
        """Refuse everything but a tuple of `low` to `high` values."""
        if not isinstance(value, tuple) or not low <= len(value) <= high:
            raise self.refusal(name, value, f"{low} values" if low == high else f"{low} to {high} values")

    def mapping(self, name: str, value: object, entries: int, characters: int) -> None:
        """Refuse everything but a mapping of at most `entries`, whose keys are texts of 1 to `characters`."""
        if not isinstance(value, Mapping) or len(value) > entries:
            raise self.refusal(name, value, f"a record of at most {entries} entries")
        for key in value:
            self.text(name, key, 1, characters)
