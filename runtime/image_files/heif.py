"""HEIC and AVIF, where a package that decodes them is installed: pillow-heif, and Pillow's own AVIF from 11.3 on."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.limits import Limits, of_picture

if TYPE_CHECKING:
    from PIL import Image

AVIF, HEIC = "PIL._avif", "pillow_heif"
"""Modules that decode them."""

PACKAGES = {".avif": AVIF, ".heic": HEIC, ".heif": HEIC, ".hif": HEIC}
"""Module that decodes the files of each suffix."""

ADVICE = {AVIF: "Pillow 11.3 or newer reads AVIF", HEIC: "pip install pillow-heif to read HEIC"}

BRANDS = {b"avif": AVIF, b"avis": AVIF} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"), HEIC)
"""Module for each brand of a file, the more exact ones first."""

MOST_BRANDS = 64

SAMPLE = 16
"""Bytes that a pixel takes: planes of YCbCr and alpha of 10 bits, Pillow's image, and the result."""


def module_of(content: bytes) -> str | None:
    """Return the module that decodes a file, by its brands; None for a file of another format."""
    if content[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(content[:4], "big"), len(content), 16 + 4 * MOST_BRANDS)
    brands = {content[8:12], *(content[place : place + 4] for place in range(16, end - 3, 4))}
    return next((module for brand, module in BRANDS.items() if brand in brands), None)


def is_installed(module: str) -> bool:
    """Return True if a module of `PACKAGES` is there to decode."""
    return find_spec(module) is not None


def decode_heif(content: bytes, limits: Limits) -> "Image.Image":
    """Decode the main image.

    Raises:
        UnreadKindError: the package that decodes it is not installed.
        LimitError: it exceeds the limits.
    """
    with refusals(), opened(content) as picture:
        limits.check_pixels(*picture.size)
        limits.check_memory(2 * len(content) + of_picture(*picture.size, SAMPLE))
        picture.load()
        return picture


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the decoders' errors, which are of many types, into ours."""
    try:
        yield
    except (ValueError, SyntaxError, OSError, EOFError, RuntimeError) as error:
        if "nsupported" in str(error):
            raise UnreadKindError("is a HEIC or AVIF of a kind that is not read; save it as PNG") from error
        raise DamageError("its decoder finds an error") from error


def opened(content: bytes) -> "Image.Image":
    """Open a file without decoding its pixels."""
    module = module_of(content)
    assert module is not None
    if not is_installed(module):
        name = "an AVIF" if module == AVIF else "a HEIC"
        raise UnreadKindError(f"is {name}, which is not read here; {ADVICE[module]}, or save it as PNG")
    if module == AVIF:
        import_module("PIL.AvifImagePlugin")
        from PIL import Image

        return Image.open(io.BytesIO(content), formats=("AVIF",))
    picture: Image.Image = import_module(module).HeifImageFile(io.BytesIO(content))
    return picture
