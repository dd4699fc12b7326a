"""Limits: the largest images that are decoded, and what decoding them may cost."""

from dataclasses import dataclass, fields
from typing import Literal, Self, get_args

from runtime.errors import ConfigError
from runtime.support.validation import FieldChecks, make_integers_plain, plain_integer

Truncated = Literal["refuse", "warn"]

MAX_PIXELS, MOST_PIXELS = 200_000_000, 10**10
"""Pixels of an image that are decoded by default, since the largest sensors give as many; and at most by a command."""

FILE_BYTES, MEMORY = 2**30, 2**31
"""Bytes of a file with `MAX_PIXELS`, uncompressed; and what decoding it may take."""

BY_PIXELS = {"pixels": MAX_PIXELS, "file_bytes": FILE_BYTES, "memory": MEMORY}
"""The limits that grow with the number of pixels, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Maximum sizes and costs of an encoded image, checked before it is decoded.

    Attributes:
        pixels: maximum of height times width in the header. The largest sensors give 200 million. See `for_pixels`.
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

    pixels: int = MAX_PIXELS
    file_bytes: int = FILE_BYTES
    header_bytes: int = 2**24
    scans: int = 100
    memory: int = MEMORY
    truncated: Truncated = "refuse"

    def __post_init__(self) -> None:
        make_integers_plain(self)
        check = FieldChecks(ConfigError, "Limits.")
        for name in ("pixels", "file_bytes", "header_bytes", "scans", "memory"):
            check.integer(name, getattr(self, name), 1)
        check.choice("truncated", self.truncated, get_args(Truncated))

    @classmethod
    def for_pixels(cls, pixels: int) -> Self:
        """Limits for images of so many pixels: above the default, `file_bytes` and `memory` grow in proportion."""
        FieldChecks(ConfigError, "Limits.").integer("pixels", plain_integer(pixels), 1)
        return cls(
            pixels=pixels,
            file_bytes=max(FILE_BYTES, in_proportion(pixels, FILE_BYTES, MAX_PIXELS)),
            memory=max(MEMORY, in_proportion(pixels, MEMORY, MAX_PIXELS)),
        )

    def check_pixels(self, width: int, height: int) -> None:
        """Raise a LimitError for an image of more than `pixels`."""
        if width * height > self.pixels:
            text = f"has {width} x {height} pixels, expected at most {self.pixels} in all"
            raise LimitError(f"{text}; {self.advice('pixels', width * height)}")

    def check_file(self, count: int, *, whole: bool = True) -> None:
        """Raise a LimitError for more than `file_bytes`; `whole` is false for a stream that has more than `count`."""
        if count > self.file_bytes:
            text = f"has more bytes than the {self.file_bytes} that are read"
            raise LimitError(f"{text}; {self.advice('file_bytes', count if whole else None)}")

    def check_header(self, count: int) -> None:
        """Raise a LimitError for more than `header_bytes` before the pixels."""
        if count > self.header_bytes:
            text = f"has more than {self.header_bytes} bytes before its pixels"
            raise LimitError(f"{text}; {self.advice('header_bytes', None)}")

    def check_scans(self, count: int, pixels: int) -> None:
        """Raise a LimitError for a JPEG of more scans than an image of so many pixels may have."""
        most = min(self.scans, max(1, self.scans * self.pixels // (10 * pixels)))
        if count > most:
            text = f"has {count} scans, expected at most {most} for its {pixels} pixels"
            needed = max(count, in_proportion(count, 10 * pixels, self.pixels))
            raise LimitError(f"{text}; {self.advice('scans', needed)}")

    def check_memory(self, needed: int) -> None:
        """Raise a LimitError if decoding takes more than `memory`."""
        if needed > self.memory:
            text = f"takes about {needed} bytes to decode, expected at most {self.memory}"
            raise LimitError(f"{text}; {self.advice('memory', needed)}")

    def advice(self, limit: str, needed: int | None) -> str:
        """Return the end of a message about an image that needs so much of a limit; None: nobody knows how much."""
        if needed is not None and limit in BY_PIXELS and as_pixels(limit, needed) > MOST_PIXELS:
            return "make it smaller"
        return f"make it smaller, or {self.way(limit, needed)}"

    def way(self, limit: str, needed: int | None) -> str:
        """Return the text about allowing more."""
        if limit == "pixels":
            return f"allow more with limits=runtime.Limits.for_pixels({needed})"
        changed = {item.name: getattr(self, item.name) for item in fields(self)}
        changed = {name: value for name, value in changed.items() if value != getattr(Limits, name)} | {limit: needed}
        listed = ", ".join(f"{name}={'...' if value is None else repr(value)}" for name, value in changed.items())
        return f"allow more with limits=runtime.Limits({listed})"


@dataclass(frozen=True, kw_only=True)
class LimitsByOption(Limits):
    """The limits of a command, of which its users choose one number: --max-pixels."""

    def way(self, limit: str, needed: int | None) -> str:
        """Return the text about allowing more by the option, or in Python where the option does not help."""
        if limit not in BY_PIXELS:
            return f"in Python {super().way(limit, needed)}"
        return "allow more with " + (
            "a larger --max-pixels" if needed is None else f"--max-pixels {as_pixels(limit, needed)}"
        )


def as_pixels(limit: str, needed: int) -> int:
    """Return the argument of `Limits.for_pixels` that allows so much of one of the limits `BY_PIXELS`."""
    return in_proportion(needed, MAX_PIXELS, BY_PIXELS[limit])


def in_proportion(number: int, to: int, of: int) -> int:
    """Return `number` times `to` / `of`, rounded up."""
    return -(-number * to // of)


def of_picture(width: int, height: int, sample: int) -> int:
    """Bytes of one of Pillow's images and of what is made of it, `sample` a pixel, and 8 for each row."""
    return height * (width * sample + 8)


class LimitError(Exception):
    """An image exceeds a limit; the text is the end of a message, after the image's name."""


LIMITS = Limits()
"""The limits of an image whose caller gives none."""
