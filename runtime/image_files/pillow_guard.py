"""Pillow, strict and quiet within our calls, unchanged for the rest of a program.

Pillow has switches for the whole process that a library must not rely on. It warns about large images and odd EXIF (or
raises, where warnings are errors), refuses images by `Image.MAX_IMAGE_PIXELS`, and fills a truncated image with grey if
anybody set `ImageFile.LOAD_TRUNCATED_IMAGES`. Changing a switch for the time of a call would change it for other
threads, too. So each switch is replaced, once, by one that asks a context variable. Within our calls it is quiet,
counts pixels by `Limits` and refuses truncated images. For other calls it does what it always did.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from runtime.image_files.limits import Limits

_limits: ContextVar[Limits | None] = ContextVar("limits", default=None)


@contextmanager
def strict(limits: Limits) -> Iterator[None]:
    """Make Pillow quiet within the block, on this thread; it counts pixels by `limits` and refuses truncated images.

    Raises:
        LimitError: an image opened in the block is too large.
    """
    # Two threads may install the stand-ins at once: each stands for the original.
    for module in (Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
        if vars(module).get("warnings") is warnings:
            vars(module)["warnings"] = QuietWarnings()
    check = Image._decompression_bomb_check
    if not hasattr(check, "__wrapped__"):
        vars(Image)["_decompression_bomb_check"] = counting(check)
    tolerance = ImageFile.LOAD_TRUNCATED_IMAGES
    if tolerance and not isinstance(tolerance, Tolerance):  # a program may set it at any time
        vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = Tolerance()
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


class QuietWarnings:
    """Stand-in for the module `warnings` in Pillow's modules."""

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1, **options: Any) -> None:
        if _limits.get() is None:
            warnings.warn(message, category, stacklevel + 1, **options)


class Tolerance:
    """Stand-in for True in `ImageFile.LOAD_TRUNCATED_IMAGES`."""

    def __bool__(self) -> bool:
        return _limits.get() is None


def counting(check: Callable[..., None]) -> Callable[..., None]:
    """Return Pillow's check of an image's size, by `Limits` within our calls."""

    @wraps(check)
    def check_size(size: tuple[int, int], *arguments: Any, **options: Any) -> None:
        limits = _limits.get()
        if limits is None:
            check(size, *arguments, **options)
        else:
            limits.check_pixels(*size)

    return check_size
