"""What the values of a mask file mean: class indices, foreground, pixels that do not count.

A label picture is uint8 [height, width]: with one class 0 is background and 1 is the class, with several it is the
index of the class, and `IGNORED` marks pixels that neither loss nor metrics look at.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.image import Fitted, load_labels, resize

IGNORED = 255
"""Label of a pixel that does not count; at most 255 classes leave it free."""

BACKGROUND = "background"
"""The class of this name is left out of means, and crops do not look for it."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """How mask files are read: names of the classes, and the value in the files that does not count (or None).

    `of_model`: the classes are a trained model's, so a message does not ask for more of them.
    """

    classes: tuple[str, ...]
    ignore_index: int | None = None
    of_model: bool = False

    @property
    def binary(self) -> bool:
        """One class against the background."""
        return len(self.classes) == 1

    @property
    def background(self) -> int | None:
        """The label that is no object's: 0 with one class, with several that of the class called "background"."""
        if self.binary:
            return 0
        return self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None


def load_truth(path: str | os.PathLike[str], spec: LabelSpec) -> Labels:
    """Read a mask file as labels, uint8 [height, width].

    Raises:
        ImageError: it cannot be read, or has values that mean nothing: with one class others than 0 and 255, or 0 and
            1; with several an index that no class has (two classes may be 0 and 255 as well).
    """
    values = load_labels(path)
    found = [value for value in present_labels(values) if value != spec.ignore_index]
    black_and_white = len(spec.classes) <= 2 and set(found) <= {0, 255}
    highest = max(1, len(spec.classes) - 1)
    if not black_and_white and max(found, default=0) > highest:
        # Two classes may be 0 and 255; 255 is odd where 1 is there too.
        allowed = {*range(highest + 1), *({255} if len(spec.classes) <= 2 else ())}
        odd = [value for value in found if value not in allowed] or found
        raise ImageError(f"{path}: has values that are no labels ({_listed(odd)}); {_expected(spec)}")
    meaning = np.arange(256, dtype=np.uint8)
    if black_and_white:
        meaning[255] = 1
    if spec.ignore_index is not None:
        meaning[spec.ignore_index] = IGNORED
    return meaning[values]


def _listed(values: Sequence[int]) -> str:
    shown = [*values[:5], "...", values[-1]] if len(values) > 7 else values
    return ", ".join(map(str, shown))


def _expected(spec: LabelSpec) -> str:
    meant = "0 and 255, or 0 and 1" if spec.binary else f"class indices 0 to {len(spec.classes) - 1}"
    if spec.of_model:
        meant += f" as the model has {len(spec.classes)} class{'es' * (not spec.binary)}"
    else:
        meant += "; name more --classes"
    if spec.ignore_index is not None:
        return f"expected --ignore-index {spec.ignore_index}, and {meant}"
    return f"expected {meant}; or give the value that does not count with --ignore-index"


def fit_truth(labels: Labels, fitted: Fitted) -> Labels:
    """Bring labels where their image was brought, uint8 [fitted height, fitted width].

    Where pixels merge, the label that covers most of the new one wins. The bars of a letterbox are `IGNORED`.
    """
    canvas = np.full(fitted.image.shape[:2], IGNORED, np.uint8)
    part = resize_labels(labels, (fitted.height, fitted.width))
    canvas[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width] = part
    return canvas


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resample labels to (height, width) by majority: the share of every label is resized, and the largest wins."""
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


def present_labels(labels: Labels) -> Sequence[int]:
    """The labels that occur, in rising order."""
    return [int(label) for label in np.flatnonzero(np.bincount(labels.reshape(-1), minlength=1))]
