"""Mask files: their stored values, and what these mean: class indices, foreground, pixels that do not count.

A label picture is uint8 [height, width]. With one class, 0 is background and 1 is the class; with several, a label is
the index of a class. `IGNORED` marks pixels that neither losses nor metrics count.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.image_files.limits import LIMITS, Limits
from runtime.image_files.warned import warn_once

if TYPE_CHECKING:  # loads OpenCV and Pillow, which --help of the commands must not need
    from PIL import Image

    from runtime.image import Fitted

IGNORED = 255
"""Label of a pixel that does not count; 255 classes at most leave it free."""

GREY, SHADES = 128, 8
"""Threshold that is advised for masks in shades of grey, and the number of values above which they may be that."""

SHOWN = 5
"""Maximum number of colours that an error lists."""

BACKGROUND = "background"
"""Name of the class that means leave out and that crops do not look for."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """Names of the classes in the mask files, and the value in the files that does not count (or None).

    `class_offset`: the value of the first class in the files, with several classes; ADE20K's begin with 1.
    `of_model`: the classes are those of a trained model, so an error does not suggest to add classes.
    """

    classes: tuple[str, ...]
    ignore_index: int | None = None
    class_offset: int = 0
    of_model: bool = False

    @property
    def binary(self) -> bool:
        """True for one class against the background."""
        return len(self.classes) == 1

    @property
    def background(self) -> int | None:
        """The label of the background: 0 with one class; with several, that of the class "background", if any."""
        if self.binary:
            return 0
        return self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None

    @property
    def indices(self) -> set[int]:
        """The values of the classes in the mask files; with one class, 0 for the background and 1."""
        return {*range(self.class_offset, self.class_offset + max(2, len(self.classes)))}

    def has_all(self, labels: Labels) -> bool:
        """Return True if every label is that of a class, or `IGNORED`."""
        count = max(2, len(self.classes))
        return bool(labels.max(initial=0) < count or not ((labels >= count) & (labels != IGNORED)).any())


def load_labels(
    source: str | os.PathLike[str] | IO[bytes], limits: Limits = LIMITS, *, black_is_background: bool = False
) -> NDArray[np.uint8]:
    """Decode a mask file to its stored values, uint8 [height, width]; `limits` bound its size.

    A palette file (GIF, PNG) whose palette holds greys only gives the greys, whatever their indices, since writers
    order a palette as they like. With `black_is_background`, which is for masks of one class, a palette of black and
    one other colour gives 0 and 1 for the same reason. Any other palette file gives its indices.

    Where the colours are all the same, the mask is in the alpha channel, which a warning tells.

    Raises:
        ImageError: as in `runtime.image.load_image`, or the mask has colours instead of labels.
    """
    from runtime.image_files.decoding import open_image
    from runtime.image_files.deep_colours import CONTENT
    from runtime.image_files.sources import name_of
    from runtime.images.pixels import pixels

    picture, name = open_image(source, limits=limits), name_of(source)
    if picture.mode == "P":
        return palette_labels(picture, name, black_is_background)
    if picture.mode == "1":
        picture = picture.convert("L")
    array = pixels(picture)
    if picture.mode.startswith("I"):
        return labels_of_16_bits(array, name)
    is_deep = CONTENT in picture.info  # its upper 8 bits hold no labels
    if picture.mode in ("LA", "RGBA") and not is_deep:
        colours, alpha = array[:, :, :-1], array[:, :, -1]
        is_opaque = (alpha == alpha[0, 0]).all() and alpha[0, 0]
        if (colours == colours[0, 0]).all() and not is_opaque:
            warn_of_alpha(name)
            return np.array(alpha)
    if picture.mode == "LA" or (picture.mode in ("RGB", "RGBA") and (array[:, :, :3] == array[:, :, :1]).all()):
        array = array[:, :, 0]
    if array.ndim != 2 or array.dtype != np.uint8 or is_deep:
        found, advice = f"{'16-bit ' * is_deep}{picture.mode} pixels", ""
        if picture.mode in ("RGB", "RGBA") and not is_deep:
            codes = np.unique(array[:, :, :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))
            found += f" ({listed_colours(codes.tolist())})"
            advice = "; if its colours are classes, give --colours NAME=#RRGGBB for each"
        raise ImageError(f"{name}: has {found}, expected a mask of one 8-bit channel or a palette{advice}")
    return np.array(array)


def listed_colours(codes: Sequence[int]) -> str:
    """Write colours 0xRRGGBB as "#804080, #00008e"; of many the first `SHOWN`."""
    return ", ".join([*(f"#{code:06x}" for code in codes[:SHOWN]), *(["..."] if len(codes) > SHOWN else [])])


def palette_labels(picture: "Image.Image", name: str, black_is_background: bool) -> Labels:
    """Return the values of a palette picture as `load_labels` describes them, uint8 [height, width].

    What they are depends on the whole palette, so all masks that a program writes with it are read alike.
    """
    from runtime.image_files.formats import PALETTE_ALPHA
    from runtime.images.pixels import pixels

    indices: Labels = np.array(pixels(picture))
    palette = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    transparency = picture.info.get(PALETTE_ALPHA)
    if transparency is not None and (palette == palette[:1]).all():
        alpha = np.full(256, 255, np.uint8)
        if isinstance(transparency, int):
            alpha[transparency] = 0
        else:
            alpha[: len(transparency)] = list(transparency)
        warn_of_alpha(name)
        return np.take(alpha, indices)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    if (colours == colours[:, :1]).all():
        return np.take(colours[:, 0], indices)
    others = np.unique(palette[palette.any(axis=1)], axis=0)
    if black_is_background and len(others) == 1:
        return np.take(colours.any(axis=1).astype(np.uint8), indices)
    return indices


def warn_of_alpha(name: str) -> None:
    """Warn, once a process, of a mask that is in the alpha channel."""
    warn_once(
        "alpha",
        f"{name}: has one colour everywhere, so its alpha channel is taken as the mask; other masks of this kind are "
        "read in the same way",
    )


def labels_of_16_bits(values: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """Return the values of a grey mask of 16 bits as uint8: labels up to 255, or 0 and 255 for 0 and 65535.

    Raises:
        ImageError: there are other values, as in masks of many instances.
    """
    if values.max() <= 255 and values.min() >= 0:
        return values.astype(np.uint8)
    if np.isin(values, (0, 65535)).all():
        return np.where(values == 0, np.uint8(0), np.uint8(255))
    raise ImageError(
        f"{name}: has 16-bit values up to {values.max()}, expected labels up to 255, or 0 and 65535; for numbers of "
        "instances use: unet-data convert --instances foreground"
    )


def load_truth(source: str | os.PathLike[str] | IO[bytes], spec: LabelSpec, limits: Limits = LIMITS) -> Labels:
    """Read a mask file as labels, uint8 [height, width]; `limits` bound its size.

    Valid values are 0 and 255, or 0 and 1, with one class; with several the class indices, plus `class_offset` (two
    classes may be 0 and 255 as well); and the value that does not count.

    Raises:
        ImageError: the file cannot be read, or has other values.
    """
    from runtime.image_files.sources import name_of

    two_values = len(spec.classes) <= 2 and not spec.class_offset
    black_is_background = two_values and spec.background == 0
    values = load_labels(source, limits, black_is_background=black_is_background)
    found = [value for value in present_labels(values) if value != spec.ignore_index]
    black_and_white = two_values and set(found) <= {0, 255}
    indices = spec.indices
    if not black_and_white and not set(found) <= indices:
        # With two classes 255 is valid, but not beside 1: then it is the value to report.
        allowed = {*indices, *({255} if two_values else ())}
        invalid = [value for value in found if value not in allowed] or found
        shown = [*invalid[:5], "...", invalid[-1]] if len(invalid) > 7 else invalid
        raise ImageError(
            f"{name_of(source)}: has invalid labels ({', '.join(map(str, shown))}); {expected_values(found, spec)}"
        )
    meaning = np.zeros(256, np.uint8)
    meaning[sorted(indices)] = range(len(indices))
    if black_and_white:
        meaning[255] = 1
    if spec.ignore_index is not None:
        meaning[spec.ignore_index] = IGNORED
    return meaning[values]


def expected_values(found: Sequence[int], spec: LabelSpec) -> str:
    """The part of an error that names the valid values of a mask file, and the options that fit those it has."""
    first = spec.class_offset
    meant = "0 and 255, or 0 and 1" if spec.binary else f"class indices {first} to {first + len(spec.classes) - 1}"
    more = "" if spec.of_model else "; name more --classes"
    if spec.of_model:
        meant += f" as the model has {len(spec.classes)} class{'es' * (not spec.binary)}"
    if spec.ignore_index is not None:
        return f"expected --ignore-index {spec.ignore_index}, and {meant}{more}"
    if options := fitting_options(found, spec):
        return f"expected {meant}; give {', '.join(options)}" + more.replace("; ", "; or ")
    return f"expected {meant}{more}; or give the value that does not count with --ignore-index"


def fitting_options(found: Sequence[int], spec: LabelSpec) -> list[str]:
    """List the options that make labels of the values in a mask file, which are in rising order, and when to use each.

    Args:
        found: all values of the file, of which some are invalid.
        spec: the classes; no value is ignored yet.
    """
    others = [value for value in found if value not in (0, 255)]
    if spec.binary and len(others) > SHADES and found[-1] > GREY:
        return [f"--mask-threshold {GREY} if these are shades of grey, as JPEG has"]
    if spec.binary and others == [1]:
        return ["--ignore-index 255 if pixels of 255 do not count", "--mask-threshold 1 if they are foreground"]
    if spec.binary and len(others) == 1:
        value = others[0]
        if 255 in found:
            return [
                f"--ignore-index {value} if pixels of {value} do not count",
                f"--mask-threshold {GREY} if they are soft edges",
            ]
        return [
            f"--mask-threshold {value} if pixels of {value} are foreground",
            f"--ignore-index {value} if they do not count",
        ]
    if not spec.binary and found[-1] == 255 and spec.indices >= {*found} - {255}:
        return ["--ignore-index 255 if pixels of 255 do not count"]
    if not spec.of_model and not spec.class_offset and found[0] == 1 and found[-1] <= max(SHADES, len(spec.classes)):
        return [f"--class-offset 1 and {found[-1]} --classes if 1 is the first class"]
    return []


def fit_truth(labels: Labels, fitted: "Fitted") -> Labels:
    """Resize and place labels as their image was, to uint8 [fitted height, fitted width].

    If pixels merge, the label that covers most of the new pixel wins. The bars of a letterbox are `IGNORED`.
    """
    canvas = np.full(fitted.image.shape[:2], IGNORED, np.uint8)
    part = resize_labels(labels, (fitted.height, fitted.width))
    canvas[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width] = part
    return canvas


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resample labels to (height, width) by majority: the share of every label is resized, and the largest wins."""
    from runtime.image import resize

    if labels.shape == size:
        return labels
    present = present_labels(labels)
    result = np.full(size, present[0], np.uint8)
    most = np.zeros(size, np.float32)
    for label in present:
        share = resize((labels == label).astype(np.float32)[:, :, None], size)[:, :, 0]
        result[share > most] = label
        np.maximum(most, share, out=most)
    return result


def present_labels(labels: Labels) -> list[int]:
    """The labels that occur, in rising order."""
    return [int(label) for label in np.flatnonzero(np.bincount(labels.reshape(-1), minlength=1))]
