"""Pictures on disk: without loss, whole or not at all."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from runtime.errors import OutputError
from runtime.files import replacing

LOSSLESS = frozenset({".png", ".gif", ".bmp", ".tif", ".tiff"})
"""Suffixes that a mask may be saved under; others change its values."""

RUN_LENGTHS = 3
"""Z_RLE of zlib.h. Masks of 1918x1280 take 8 % fewer bytes than by zlib's default strategy, in 60 to 80 % of the time.
Overlays and cut-outs take 1 to 10 % more, in a quarter of the time."""

PNG_OPTIONS: Mapping[str, Any] = {"compress_level": 1, "compress_type": RUN_LENGTHS}


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture without loss, atomically.

    Raises:
        OutputError: a lossy or unknown suffix, or the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in LOSSLESS:
        raise OutputError(f"{target}: would not keep a mask exactly; expected one of {', '.join(sorted(LOSSLESS))}")
    if picture.mode == "I;16" and suffix in (".gif", ".bmp"):
        raise OutputError(f"{target}: keeps at most 256 classes, the mask may have more; expected .png, .tif or .tiff")
    with replacing(target) as temporary:
        if suffix == ".gif":
            picture.save(temporary, optimize=False)  # or Pillow renumbers the values to those in use
        else:
            picture.save(temporary, **(PNG_OPTIONS if suffix == ".png" else {}))
    return target


def png_of(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", **PNG_OPTIONS)
    return file.getvalue()
