"""Limits: the largest images that are decoded."""

from dataclasses import dataclass

from runtime.errors import ConfigError
from runtime.support.validation import FieldChecks


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Maximum sizes of an encoded image, checked before it is decoded.

    Attributes:
        pixels: maximum of height times width in the header. The largest sensors give 200 million; decoding these takes
            2 GB of memory for a moment.
        file_bytes: maximum size of the file or stream. 1 GiB holds as many pixels uncompressed.

    Raises:
        ConfigError: a number is not an integer from 1.
    """

    pixels: int = 200_000_000
    file_bytes: int = 2**30

    def __post_init__(self) -> None:
        check = FieldChecks(ConfigError, "Limits.")
        check.integer("pixels", self.pixels, 1)
        check.integer("file_bytes", self.file_bytes, 1)


LIMITS = Limits()
"""The limits of an image whose caller gives none."""
