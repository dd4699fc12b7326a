"""Pillow, strict and quiet within our calls, and as it was for everyone else.

Pillow has switches for the whole process that decide what a library inside a program must not leave to chance: it
warns of large images and of odd EXIF (or raises, where warnings are errors), refuses by `Image.MAX_IMAGE_PIXELS`, and
fills a cut-off image with grey where anybody set `ImageFile.LOAD_TRUNCATED_IMAGES`. To turn them and turn them back
would change them for other threads meanwhile. So each is replaced, once, by one that first asks a context variable
whether the call is ours: then it is quiet, counts by `Limits` and tolerates nothing. Else it does what it always did.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an encoded image may have at most; looked at before it is decoded.

    Attributes:
        pixels: height times width as its header says. 200 million are what the largest sensors give; decoded they take
            2 GB of memory for a moment.
        file_bytes: of the file, or of what a stream gives. 1 GiB holds as many pixels uncompressed.
    """

    pixels: int = 200_000_000
    file_bytes: int = 2**30

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"Limits.{item.name}: found {value!r}, expected an integer of at least 1")


class TooManyPixelsError(Exception):
    """A header promises more pixels than `Limits.pixels`; its text is their number as "WIDTH x HEIGHT"."""


_limits: ContextVar[Limits | None] = ContextVar("limits", default=None)


@contextmanager
def strict(limits: Limits) -> Iterator[None]:
    """Within the block, on this thread, Pillow is quiet, counts pixels by `limits`, and refuses what is cut off.

    Raises:
        TooManyPixelsError: an image opened in the block is too large.
    """
    _install()
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def _install() -> None:
    """Put the stand-ins in place. Two threads may do so at once: each stands for the original."""
    for module in (Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
        if vars(module).get("warnings") is warnings:
            vars(module)["warnings"] = _Warnings()
    check = Image._decompression_bomb_check
    if not hasattr(check, "__wrapped__"):
        vars(Image)["_decompression_bomb_check"] = _counting(check)
    tolerance = ImageFile.LOAD_TRUNCATED_IMAGES
    if tolerance and not isinstance(tolerance, _Tolerance):  # a program may set it at any time
        vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = _Tolerance()


class _Warnings:
    """Stands for the module `warnings` in Pillow's modules."""

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1, **options: Any) -> None:
        if _limits.get() is None:
            warnings.warn(message, category, stacklevel + 1, **options)


class _Tolerance:
    """Stands for True in `ImageFile.LOAD_TRUNCATED_IMAGES`."""

    def __bool__(self) -> bool:
        return _limits.get() is None


def _counting(check: Callable[..., None]) -> Callable[..., None]:
    @wraps(check)
    def counting(size: tuple[int, int], *arguments: Any, **options: Any) -> None:
        limits = _limits.get()
        if limits is None:
            check(size, *arguments, **options)
        elif size[0] * size[1] > limits.pixels:
            raise TooManyPixelsError(f"{size[0]} x {size[1]}")

    return counting
