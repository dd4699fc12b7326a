"""Segmentation metrics, counted over images and never averaged over batches.

For the pixels A that are predicted to be of a class and the pixels B that are of it, Dice = 2|A∩B| / (|A|+|B|) and
IoU = |A∩B| / |A∪B|. *Image Dice* of a class is the mean of its Dice over images, an image where both are empty counting
1 (Carvana's rule); *pixel Dice* and IoU come from pixels summed over the whole set; accuracy is the share of all pixels
whose label is right. Pixels whose truth is `IGNORED` count nowhere.

With several classes the figures of the set are means over the classes without the one named "background". A class that
occurs nowhere, neither in truth nor in prediction, has no Dice: its own figures are NaN, and the means leave it out.
Where none is left there was nothing to find and nothing was found, which is 1.

What is kept is integers of each image, so neither the order of the images nor how processes shared them changes a bit
of the result.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.data.labels import BACKGROUND, IGNORED, Labels

LABELS = {"pixel_dice": "pixel Dice", "image_dice": "image Dice", "iou": "IoU", "accuracy": "accuracy"}
"""What the figures of a set are called where people read them."""

MAX_NAMED = 90
"""Classes that `Metrics.summary` names; a card holds 100 figures."""

Counts = NDArray[np.int64]
"""Pixels by label, int64 [3, labels]: rightly predicted, predicted, true. One class has two labels, 0 and 1."""

State = Mapping[int, Counts]
"""The counts of each image by its index."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Figures of one class, 0..1 or NaN where it occurs nowhere; `pixels` is how many it has in the truth."""

    name: str
    pixel_dice: float
    image_dice: float
    iou: float
    pixels: int


class Metrics:
    """Counts of `classes` (their names, 1 to 255) over a set of images."""

    def __init__(self, classes: Sequence[str]) -> None:
        if not 1 <= len(classes) <= IGNORED:
            raise ValueError(f"{len(classes)} classes: expected 1 to {IGNORED}")
        self.classes = tuple(classes)
        self._labels = range(len(classes)) if len(classes) > 1 else range(1, 2)
        self._images: dict[int, Counts] = {}

    @classmethod
    def from_state(cls, classes: Sequence[str], state: State) -> "Metrics":
        """The metrics whose `state` this is."""
        metrics = cls(classes)
        metrics._images.update(state)
        return metrics

    def state(self) -> State:
        """All that was counted, to be pickled and sent to another process."""
        return dict(self._images)

    def add(self, predicted: Labels, truth: Labels, index: int | None = None) -> float:
        """Count one image; return the mean Dice of the classes that are looked for and occur in it, 1 if none does.

        Args:
            predicted: labels uint8 [height, width], none of them `IGNORED`.
            truth: labels uint8 of the same size.
            index: the image's number in the whole set; by default one more than the highest so far.

        Raises:
            ValueError: sizes differ, a label has no class, or the index was counted already.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"masks of {predicted.shape} and {truth.shape} cannot be compared")
        if index is None:
            index = max(self._images, default=-1) + 1
        if index in self._images:
            raise ValueError(f"image {index}: is counted already")
        one = len(self.classes) == 1
        counts = _count_one(predicted, truth) if one else _count_several(predicted, truth, len(self.classes))
        self._images[index] = counts
        right, found, there = counts[:, self._measured()]
        return _mean(_dice(right, found, there)[found + there > 0])

    def merge(self, other: "Metrics") -> None:
        """Add the images of another part of the same set.

        Raises:
            ValueError: it has other classes, or an image that was counted here already.
        """
        if other.classes != self.classes:
            raise ValueError(f"metrics of {other.classes} and {self.classes} cannot be merged")
        twice = self._images.keys() & other._images.keys()
        if twice:
            raise ValueError(f"image {min(twice)}: is counted already")
        self._images.update(other._images)

    def per_class(self) -> list[ClassScore]:
        """The figures of every class, in the classes' order."""
        return self._scores(self._labels)

    @property
    def pixels(self) -> int:
        """How many pixels count, over all images."""
        return int(self._stacked()[:, 2].sum())

    @property
    def accuracy(self) -> float:
        """Share of them whose label is right, 0..1."""
        return _ratio(int(self._stacked()[:, 0].sum()), self.pixels)

    @property
    def image_dice(self) -> float:
        """Mean Dice of the images, 0..1."""
        return _mean(score.image_dice for score in self._occurring())

    @property
    def pixel_dice(self) -> float:
        """Dice of all pixels of the set as if it were one image, 0..1."""
        return _mean(score.pixel_dice for score in self._occurring())

    @property
    def iou(self) -> float:
        """Intersection over union of all pixels of the set, 0..1."""
        return _mean(score.iou for score in self._occurring())

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Names of the classes that occur in the truth and that no pixel was predicted as."""
        _, found, there = self._stacked().sum(axis=0)
        return tuple(self._name(label) for label in self._labels if there[label] and not found[label])

    @property
    def always_predicted(self) -> str | None:
        """Name of the class that every pixel was predicted as, where the truth has others too."""
        _, found, there = self._stacked().sum(axis=0)
        whole = (self._name(label) for label in self._labels if there[label] < found[label] == self.pixels)
        return next(whole, None)

    def summary(self) -> dict[str, float]:
        """The four figures of the set by name; with several classes also "pixel_dice NAME" of each.

        Named are the classes of the truth, at most `MAX_NAMED`. So the same set gives the same names whatever is
        predicted, and no figure is NaN.
        """
        several = self.per_class() if len(self.classes) > 1 else []
        named = [score for score in several if score.pixels][:MAX_NAMED]
        return {
            "accuracy": self.accuracy,
            "image_dice": self.image_dice,
            "pixel_dice": self.pixel_dice,
            "iou": self.iou,
            **{f"pixel_dice {score.name}": score.pixel_dice for score in named},
        }

    def _measured(self) -> list[int]:
        """The labels that are looked for."""
        return [label for label in self._labels if len(self.classes) == 1 or self.classes[label] != BACKGROUND]

    def _occurring(self) -> list[ClassScore]:
        """Scores of the classes that are looked for and occur."""
        return [score for score in self._scores(self._measured()) if not math.isnan(score.pixel_dice)]

    def _scores(self, labels: Iterable[int]) -> list[ClassScore]:
        images = self._stacked()
        return [_score(self._name(label), images[:, :, label]) for label in labels]

    def _name(self, label: int) -> str:
        return self.classes[label - self._labels[0]]

    def _stacked(self) -> Counts:
        """Counts of all images, [images, 3, labels]."""
        if not self._images:
            return np.zeros((0, 3, self._labels[-1] + 1), np.int64)
        return np.stack(list(self._images.values()))


def table(metrics: Metrics) -> str:
    """The figures of every class as aligned lines of text, the means of the set in the last one.

    "-" stands for the figures of a class that occurs nowhere; the share of pixels is that of the truth.
    """
    scores, all_pixels = metrics.per_class(), metrics.pixels
    background = len(scores) > 1 and BACKGROUND in metrics.classes
    rows: list[tuple[str, ...]] = [("class", "pixel Dice", "image Dice", "IoU", "pixels %")]
    for score in scores:
        share = f"{100 * score.pixels / all_pixels:.2f}" if all_pixels else "-"
        rows.append((score.name, *map(_four_digits, (score.pixel_dice, score.image_dice, score.iou)), share))
    means = map(_four_digits, (metrics.pixel_dice, metrics.image_dice, metrics.iou))
    rows.append(("mean without background" if background else "mean", *means, ""))
    width = max(len(row[0]) for row in rows)
    return "\n".join((f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:])).rstrip() for row in rows)


def _four_digits(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.4f}"


def _count_one(predicted: Labels, truth: Labels) -> Counts:
    """Counts of background and class: passes over bytes take a fifth of the time of `_count_several`."""
    highest = max(int(predicted.max()), int((truth + np.uint8(1)).max()) - 1)  # IGNORED + 1 is 0
    if highest > 1:
        raise ValueError(f"label {highest}: has no class, expected 0 or 1")
    counted, class_truth = truth != IGNORED, truth == 1
    class_predicted = (predicted == 1) & counted
    pixels, found, there = map(np.count_nonzero, (counted, class_predicted, class_truth))
    right = np.count_nonzero(class_predicted & class_truth)
    of_background = [pixels - found - there + right, pixels - found, pixels - there]
    return np.array([of_background, [right, found, there]], np.int64).T


def _count_several(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """Counts from the confusion matrix."""
    pairs = truth.astype(np.uint16) << 8 | predicted
    confusion = np.bincount(pairs.reshape(-1), minlength=2**16).reshape(256, 256)[:IGNORED]  # [truth, predicted]
    highest = max(axis.max() for axis in np.nonzero(confusion)) if confusion.any() else 0
    if highest >= classes:
        raise ValueError(f"label {highest}: has no class, expected 0 to {classes - 1}")
    confusion = confusion[:classes, :classes]
    return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)])


def _score(name: str, images: Counts) -> ClassScore:
    """The figures of one class from its counts in each image, [images, 3]."""
    right, found, there = map(int, images.sum(axis=0))
    occurs = found + there > 0
    return ClassScore(
        name=name,
        pixel_dice=2 * right / (found + there) if occurs else math.nan,
        image_dice=_mean(_dice(*images.T)) if occurs else math.nan,
        iou=right / (found + there - right) if occurs else math.nan,
        pixels=there,
    )


def _dice(right: Counts, found: Counts, there: Counts) -> NDArray[np.float64]:
    """Dice of each element; both empty is 1."""
    whole = found + there
    dice = np.ones(whole.shape)
    np.divide(2 * right, whole, out=dice, where=whole > 0)
    return dice


def _mean(figures: Iterable[float]) -> float:
    """Mean from a sum that is rounded once, so that the order does not matter; of nothing it is 1."""
    terms = list(figures)
    return math.fsum(terms) / len(terms) if terms else 1.0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def score(row: Mapping[str, float]) -> float:
    """What the best epoch is chosen by: pixel Dice; image Dice rewards finding nothing where most images are empty.

    NaN, which would win and lose every comparison alike, is below all.
    """
    value = row["pixel_dice"]
    return -math.inf if math.isnan(value) else value
