"""Bounds that several parts of the card share, and the checks of its fields."""

from collections.abc import Mapping

from runtime.errors import ModelError
from runtime.support.validation import FieldChecks

MAX_SIDE = 32_768
MAX_CLASSES = 1_024
MAX_CHANNELS = 16
MAX_ENTRIES = 100
MAX_NAME = 200
"""Maximum number of characters of a name."""
MAX_TEXT = 1_000
"""Maximum number of characters of any other text."""

CHANNEL_COUNT: Mapping[str, int] = {"RGB": 3, "L": 1}
"""Channels of pictures; those of "raw" are counted by the card's means."""

CHECK = FieldChecks(ModelError, "card field ")

WHEN_SET = "when set"
"""Key in the metadata of a dataclass's field that the JSON of a card holds only if it is not None. Versions without the
field read such a card as long as it says nothing that they would have to obey, and refuse it otherwise."""


def check_texts(name: str, value: Mapping[str, str]) -> None:
    """Raise a ModelError unless a field maps names to texts."""
    CHECK.mapping(name, value, MAX_ENTRIES, MAX_NAME)
    for key, text in value.items():
        CHECK.text(f"{name}.{key}", text, 0, MAX_TEXT)
