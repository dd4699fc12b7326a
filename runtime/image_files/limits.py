"""Limits: the largest images that are decoded, and what decoding them may cost."""

from dataclasses import dataclass
from typing import Literal, get_args

from runtime.errors import ConfigError
from runtime.support.validation import FieldChecks, make_integers_plain

Truncated = Literal["refuse", "warn"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Maximum sizes and costs of an encoded image, checked before it is decoded.

    Attributes:
        pixels: maximum of height times width in the header. The largest sensors give 200 million.
        file_bytes: maximum size of the file or stream. 1 GiB holds as many pixels uncompressed.
        header_bytes: maximum size of what stands before the pixels: profiles, comments, previews.
        scans: maximum number of scans of a JPEG; a progressive one has about 10. An image of more than a tenth of
            `pixels` may have fewer in proportion, since each scan passes over all pixels.
        memory: maximum number of bytes that decoding takes, as estimated from the header, file and result included.
        truncated: "refuse" a JPEG without its end marker; or "warn", and decode what there is. Some cameras leave the
            marker out. If pixels are missing, too, libjpeg fills them with grey.

    Raises:
        ConfigError: a number is not an integer from 1, or `truncated` is another word.
    """

    pixels: int = 200_000_000
    file_bytes: int = 2**30
    header_bytes: int = 2**24
    scans: int = 100
    memory: int = 2**31
    truncated: Truncated = "refuse"

    def __post_init__(self) -> None:
        make_integers_plain(self)
        check = FieldChecks(ConfigError, "Limits.")
        for name in ("pixels", "file_bytes", "header_bytes", "scans", "memory"):
            check.integer(name, getattr(self, name), 1)
        check.choice("truncated", self.truncated, get_args(Truncated))

    def check_pixels(self, width: int, height: int) -> None:
        """Raise a TooManyPixelsError for an image of more than `pixels`."""
        if width * height > self.pixels:
            raise TooManyPixelsError(f"{width} x {height}")

    def check_header(self, count: int) -> None:
        """Raise a LimitError for more than `header_bytes` before the pixels."""
        if count > self.header_bytes:
            raise LimitError(f"has more than {self.header_bytes} bytes before its pixels", "header_bytes")

    def check_scans(self, count: int, pixels: int) -> None:
        """Raise a LimitError for a JPEG of more scans than an image of so many pixels may have."""
        most = min(self.scans, max(1, self.scans * self.pixels // (10 * pixels)))
        if count > most:
            raise LimitError(f"has {count} scans, expected at most {most} for its {pixels} pixels", "scans")

    def check_memory(self, needed: int) -> None:
        """Raise a LimitError if decoding takes more than `memory`."""
        if needed > self.memory:
            raise LimitError(f"takes about {needed} bytes to decode, expected at most {self.memory}", "memory")


def of_picture(width: int, height: int, sample: int) -> int:
    """Bytes of one of Pillow's images and of what is made of it, `sample` a pixel, and 8 for each row."""
    return height * (width * sample + 8)


class TooManyPixelsError(Exception):
    """The header has more pixels than `Limits.pixels`; the error's text is "WIDTH x HEIGHT"."""


class LimitError(Exception):
    """An image exceeds a limit; the text is the end of a message, after the image's name."""

    def __init__(self, text: str, limit: str) -> None:
        super().__init__(f"{text}; make it smaller, or in Python allow more with Limits({limit}=...)")


LIMITS = Limits()
"""The limits of an image whose caller gives none."""
