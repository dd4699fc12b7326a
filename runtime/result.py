"""Segmentation: the answer for one image, at that image's own size."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ConfigError, OutputError
from runtime.files import replacing

LOSSLESS = frozenset({".png", ".gif", ".bmp", ".tif", ".tiff"})
"""Suffixes that a mask may be saved under; others change its values."""

COLOURS = ((255, 64, 64), (64, 160, 255), (255, 208, 48), (96, 208, 96), (208, 96, 224), (64, 216, 216))
"""Overlay colours (RGB) of the foreground classes, repeated in turn."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segmentation:
    """The answer for one image of height x width pixels.

    `probability` is float32 [classes, height, width], 0..1; `image` the picture as it was understood, uint8
    [height, width, 3 or 1], upright.
    """

    probability: NDArray[np.float32]
    image: NDArray[np.uint8]
    output: OutputSpec

    def __repr__(self) -> str:
        height, width = self.size
        return f"Segmentation({width}x{height}, classes={self.output.classes})"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of image and mask."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """Class of each pixel, uint8 (uint16 above 256 classes) [height, width].

        With one class: 1 where its probability is above the threshold, else 0. With several: the index of the most
        probable class, 0 being the first name of `output.classes`.
        """
        return mask_of(self.probability, self.output)

    def overlay(self, opacity: float = 0.5) -> NDArray[np.uint8]:
        """The image with its foreground tinted, uint8 RGB [height, width, 3]; `opacity` of the tint in 0..1.

        Raises:
            ConfigError: `opacity` is out of its bounds.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f"opacity: found {opacity!r}, expected 0 to 1")
        picture = np.broadcast_to(self.image, (*self.size, 3)).astype(np.float32)
        foreground = self.mask > 0
        tint = np.array(COLOURS, np.float32)[(self.mask[foreground].astype(int) - 1) % len(COLOURS)]
        picture[foreground] += opacity * (tint - picture[foreground])
        return np.rint(picture).astype(np.uint8)

    def picture(self) -> Image.Image:
        """The mask as it is saved: 0 and 255 for one class, class indices for several."""
        return Image.fromarray(self.mask * np.uint8(255) if len(self.output.classes) == 1 else self.mask)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask at the image's own size as a PNG, GIF, BMP or TIFF file, and return its path.

        Raises:
            OutputError: a lossy or unknown suffix, or the file cannot be written.
        """
        return save_picture(self.picture(), path)


def mask_of(probability: NDArray[np.float32], output: OutputSpec) -> NDArray[np.uint8]:
    """Threshold or arg-max float32 [classes, ...] to class indices [...]; see `Segmentation.mask`."""
    if output.activation == "sigmoid":
        above: NDArray[np.uint8] = (probability[0] > output.threshold).astype(np.uint8)
        return above
    kind = np.uint8 if len(output.classes) <= 256 else np.uint16
    index: NDArray[np.uint8] = probability.argmax(axis=0).astype(kind)
    return index


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture without loss, atomically.

    Raises:
        OutputError: a lossy or unknown suffix, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in LOSSLESS:
        raise OutputError(f"{target}: would not keep a mask exactly; expected one of {', '.join(sorted(LOSSLESS))}")
    with replacing(target) as temporary:
        if target.suffix.lower() == ".gif":
            picture.save(temporary, optimize=False)  # or Pillow renumbers the values to those in use
        else:
            picture.save(temporary)
    return target
