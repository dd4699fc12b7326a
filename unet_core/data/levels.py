"""The setting `--levels`: the stored values of images that become 0 and 255, or how they are found."""

import re

from runtime.card import MAX_LEVEL, Levels
from runtime.errors import ConfigError

FOUND = ("auto", "percentile")
"""Settings for which the training images are looked at."""


def parse_levels(text: str) -> Levels | None:
    """Read the setting: (black, white) of "LOW,HIGH"; None for "auto", "full" and "percentile".

    Raises:
        ConfigError: it is none of these.
    """
    if text in (*FOUND, "full"):
        return None
    found = re.fullmatch(r"(\d{1,5}) ?, ?(\d{1,5})", text, re.ASCII)
    if found is None or not int(found[1]) < int(found[2]) <= MAX_LEVEL:
        shown = text if text.isprintable() and len(text) <= 40 else repr(text)[:40]
        raise ConfigError(
            f"--levels {shown}: expected auto, full, percentile or LOW,HIGH: the stored values that become 0 and 255, "
            f"whole numbers up to {MAX_LEVEL}, the lower one first, such as 0,4095"
        )
    return int(found[1]), int(found[2])


def levels_line(levels: Levels, setting: str) -> str:
    """Describe levels that were found."""
    black, white = levels
    what = f"the images use {white.bit_length()} bits" if setting == "auto" else "all but 0.2 % of the values lie there"
    return f"levels: stored values {black} to {white} become 0 to 255, since {what} (--levels {black},{white})"
