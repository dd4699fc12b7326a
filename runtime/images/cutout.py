"""Cut-outs: alpha with a soft edge along the border of a region, and the colours below it."""

import operator
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError
from runtime.images.overlay import displayable, strips

EDGE = 2.0
"""Width of the ramp from transparent to opaque across the border, in pixels. Tried on CamVid's cars, poles, trees and
people, whose true opacity is known where the labels are shrunk: 1.5 to 2 came nearest, and nearer than a hard edge."""

REACH = 2
"""Pixels that have none of the other kind so near, in pixels, have an alpha of 0 or 255, whatever their margin is."""

DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * REACH + 1, 2 * REACH + 1))

TRANSPARENT = "transparent"

Colour = str | Sequence[int] | None
"""Background of a cut-out: a name ("white") or hexadecimal digits ("#ff8800") as Pillow takes them, (red, green, blue)
of 0 to 255, or None and "transparent" for none."""


def edge_alpha(margin: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Alpha with a soft edge, uint8 [height, width]: above 127 in the region, below 128 outside.

    A pixel's distance from the border is its margin divided by the margin's slope there, so the edge has one width
    however slowly the probabilities change. Far from the border, and where margin and region disagree, as in a mask
    that was changed, alpha is 255 in the region and 0 outside.

    Args:
        margin: float32 [height, width], the amount by which a pixel belongs to the region: positive inside.
        region: bool [height, width].
    """
    slope = np.hypot(
        cv2.Sobel(margin, cv2.CV_32F, 1, 0, scale=1 / 8, borderType=cv2.BORDER_REPLICATE),
        cv2.Sobel(margin, cv2.CV_32F, 0, 1, scale=1 / 8, borderType=cv2.BORDER_REPLICATE),
    )
    opacity = np.clip(0.5 + margin / np.fmax(slope, np.finfo(np.float32).tiny) / EDGE, 0, 1)
    inside = region.view(np.uint8)
    near = cv2.dilate(inside, DISC) > cv2.erode(inside, DISC)
    sharp = ~near | ((margin > 0) != region)
    alpha = np.where(region, np.ceil(255 * opacity), np.floor(255 * opacity))
    return np.where(sharp, 255 * inside, alpha).astype(np.uint8)


def check_background(background: Colour, keep_colours: bool = False) -> tuple[int, int, int] | None:
    """Return a background as (red, green, blue), or None for a transparent one.

    Raises:
        ConfigError: it is not an opaque colour, or it has no transparent pixels to keep the colours of.
    """
    if background is None or (isinstance(background, str) and background.lower() == TRANSPARENT):
        return None
    if keep_colours:
        raise ConfigError("keep_colours: is for a transparent background, found a colour; leave out one of the two")
    from PIL import ImageColor

    try:
        values = ImageColor.getrgb(background) if isinstance(background, str) else background
        red, green, blue = (operator.index(value) for value in values)
    except (TypeError, ValueError):
        red = green = blue = -1
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ConfigError(
            f'background: found {background!r}, expected "transparent", an opaque colour such as "white" or "#ff8800", '
            "or (red, green, blue) of 0 to 255"
        )
    return red, green, blue


def cut_out(
    image: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    background: tuple[int, int, int] | None,
    keep_colours: bool,
) -> NDArray[np.uint8]:
    """Lay an image [height, width, channels] over a background by alpha [height, width].

    Returns:
        uint8 RGBA [height, width, 4], with black where alpha is 0 unless `keep_colours`; over a colour RGB [..., 3].
    """
    shown = displayable(image)
    picture = np.empty((*alpha.shape, 4 if background is None else 3), np.uint8)
    for rows in strips(alpha.shape):
        part, opacity = picture[rows], alpha[rows, :, None]
        part[:, :, :3] = shown[rows]
        if background is None:
            part[:, :, 3:] = opacity
            if not keep_colours:
                part[opacity[:, :, 0] == 0] = 0
        else:
            share = opacity.astype(np.float32) / 255
            part[:] = np.rint(part * share + np.array(background, np.float32) * (1 - share))
    return picture
