"""Image files to measure on: real ones, resized, or synthetic ones."""

from pathlib import Path

import numpy as np
from PIL import Image

from runtime.card import CHANNEL_COUNT, InputChannels
from runtime.errors import ImageError
from runtime.image import load_image, resize
from runtime.image_files.limits import LIMITS, Limits
from runtime.model_file.golden import synthetic_image

QUALITY = 95
"""Quality of JPEG files, as cameras write them."""

NO_PNG = "writes masks as PNG, which hold one class for each pixel, and the model's classes overlap"
"""Reason why a part that writes masks is skipped."""


def write_jpeg(
    path: Path,
    size: tuple[int, int],
    channels: InputChannels,
    source: Path | None = None,
    limits: Limits = LIMITS,
    *,
    seed: int = 0,
) -> Path:
    """Write a JPEG file of (height, width) from a real image, or else a synthetic one, and return its path.

    Raises:
        ImageError: the real image cannot be read, or the model takes other channels than colours or grey.
    """
    if channels == "raw":
        raise ImageError("writes JPEG files, which do not hold the channels of this model")
    if source is None:
        pixels = synthetic_image(*size, CHANNEL_COUNT[channels], seed=seed)
    else:
        pixels = resize(load_image(source, channels, limits=limits), size)
    Image.fromarray(np.squeeze(pixels, axis=2) if pixels.shape[2] == 1 else pixels).save(path, quality=QUALITY)
    return path
