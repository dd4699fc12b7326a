"""Segmentation metrics, counted over images and never averaged over batches.

Let A be the pixels predicted as a class, and B the pixels of that class in the truth. Dice = 2|A∩B| / (|A|+|B|), and
IoU = |A∩B| / |A∪B|. *Image Dice* of a class is the mean of its Dice over images; an image where both are empty counts 1
(Carvana's rule). *Pixel Dice* and IoU are computed from pixels summed over the whole set. Accuracy is the share of all
pixels whose label is right. Pixels whose truth is `IGNORED` count nowhere.

With several classes, the figures of the set are means over all classes but the one named "background". A class that
occurs neither in the truth nor in a prediction has no Dice: its own figures are NaN, and the means leave it out. If no
class occurs, there was nothing to find and nothing was found, which counts 1.

A new metric is one entry in `METRICS`: it is then in metrics.csv, the card, the tables and the curves.

The counts of each image are integers, so neither the order of the images nor how processes shared them changes a bit
of the result.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.data.labels import BACKGROUND, IGNORED, Labels

MAX_NAMED = 90
"""Maximum number of classes that `Metrics.summary` names; a card holds 100 figures."""

Counts = NDArray[np.int64]
"""Pixels by label, int64 [3, labels]: rightly predicted, predicted, true. One class has two labels, 0 and 1."""

State = Mapping[int, Counts]
"""The counts of each image by its index."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a set of images, 0..1: its name for people, and one function that computes it from counts.

    `of_class` takes the counts of one class in each image, int64 [images, 3]; it is called for classes that occur, and
    the set's figure is the mean over classes. `of_set` takes the counts of all labels, int64 [images, 3, labels].
    """

    label: str
    of_class: Callable[[Counts], float] | None = None
    of_set: Callable[[Counts], float] | None = None


def pixel_dice(images: Counts) -> float:
    """Dice of one class over the pixels of all images, as if they were one image."""
    right, found, there = map(int, images.sum(axis=0))
    return 2 * right / (found + there)


def image_dice(images: Counts) -> float:
    """Mean over the images of the Dice of one class."""
    return mean(dice(*images.T))


def iou(images: Counts) -> float:
    """Intersection over union of one class over the pixels of all images."""
    right, found, there = map(int, images.sum(axis=0))
    return right / (found + there - right)


def accuracy(images: Counts) -> float:
    """Share of the pixels whose label is right."""
    right, _, there = map(int, images.sum(axis=(0, 2)))
    return right / there if there else 1.0


METRICS: dict[str, Metric] = {
    "pixel_dice": Metric(label="pixel Dice", of_class=pixel_dice),
    "image_dice": Metric(label="image Dice", of_class=image_dice),
    "iou": Metric(label="IoU", of_class=iou),
    "accuracy": Metric(label="accuracy", of_set=accuracy),
}
"""All metrics by their name in metrics.csv and the card, in the order of the tables."""

CLASS_PREFIX = "pixel_dice "
"""Start of the keys that hold the pixel Dice of each class in `Metrics.summary` and in the epochs of a run."""

NEARLY = 0.9
"""Share of the pixels that counts as nearly all."""

FIRST_COLUMNS = ("accuracy", "image_dice", "pixel_dice", "iou")
"""The metrics that metrics.csv always had, in its order, which programs may rely on; new ones follow them."""


def label_of(name: str, row: Mapping[str, float]) -> str:
    """Return the label of a metric for `Metrics.summary` or an epoch: "IoU", or "mean IoU" of several classes."""
    metric = METRICS[name]
    several = metric.of_class is not None and any(key.startswith(CLASS_PREFIX) for key in row)
    return f"mean {metric.label}" if several else metric.label


def iou_of_dice(pixel_dice: float) -> float:
    """Return the IoU that belongs to a pixel Dice; NaN gives NaN."""
    return pixel_dice / (2 - pixel_dice)


def mean(figures: Iterable[float]) -> float:
    """Mean from a sum that is rounded once, so that the order does not matter; 1 if there are no figures."""
    terms = list(figures)
    return math.fsum(terms) / len(terms) if terms else 1.0


def dice(right: Counts, found: Counts, there: Counts) -> NDArray[np.float64]:
    """Dice of each element; 1 where nothing was found and nothing was there."""
    whole = found + there
    result = np.ones(whole.shape)
    np.divide(2 * right, whole, out=result, where=whole > 0)
    return result


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Figures of one class by the metric's name, 0..1 or NaN if it occurs nowhere, and its pixels in the truth."""

    name: str
    figures: Mapping[str, float]
    pixels: int


class Metrics:
    """Counts over a set of images; `classes` are the names of 1 to 255 classes."""

    def __init__(self, classes: Sequence[str]) -> None:
        if not 1 <= len(classes) <= IGNORED:
            raise ValueError(f"{len(classes)} classes: expected 1 to {IGNORED}")
        self.classes = tuple(classes)
        self._labels = range(len(classes)) if len(classes) > 1 else range(1, 2)
        # The labels in the means: all but the background.
        self._measured = [label for label in self._labels if len(classes) == 1 or self.classes[label] != BACKGROUND]
        self._images: dict[int, Counts] = {}

    @classmethod
    def from_state(cls, classes: Sequence[str], state: State) -> "Metrics":
        """Make metrics from what `state` returned, perhaps in another process."""
        metrics = cls(classes)
        metrics._images.update(state)
        return metrics

    def state(self) -> State:
        """All counts, which can be pickled and sent to another process."""
        return dict(self._images)

    def add(self, predicted: Labels, truth: Labels, index: int | None = None) -> float:
        """Count one image; return the mean Dice of its classes without the background, 1 if none of them occurs.

        Args:
            predicted: labels uint8 [height, width], none of them `IGNORED`.
            truth: labels uint8 of the same size.
            index: the image's number in the whole set; by default one more than the highest so far.

        Raises:
            ValueError: the sizes differ, a label has no class, or the index is counted already.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"masks of {predicted.shape} and {truth.shape} cannot be compared")
        if index is None:
            index = max(self._images, default=-1) + 1
        if index in self._images:
            raise ValueError(f"image {index}: is counted already")
        one = len(self.classes) == 1
        counts = count_one_class(predicted, truth) if one else count_classes(predicted, truth, len(self.classes))
        self._images[index] = counts
        return self._mean_dice(counts)

    def dice_by_image(self) -> dict[int, float]:
        """Dice of each image as `add` returned it, by the image's number."""
        return {index: self._mean_dice(counts) for index, counts in self._images.items()}

    def merge(self, other: "Metrics") -> None:
        """Add the images of another part of the same set.

        Raises:
            ValueError: the other part has other classes, or an image that is counted here already.
        """
        if other.classes != self.classes:
            raise ValueError(f"metrics of {other.classes} and {self.classes} cannot be merged")
        twice = self._images.keys() & other._images.keys()
        if twice:
            raise ValueError(f"image {min(twice)}: is counted already")
        self._images.update(other._images)

    def per_class(self) -> list[ClassScore]:
        """The figures of every class, in the order of the classes."""
        images = self._stacked()
        return [self._score(images, label) for label in self._labels]

    def figure(self, name: str) -> float:
        """The figure of the whole set for a name in `METRICS`, 0..1."""
        metric = METRICS[name]
        images = self._stacked()
        if metric.of_set is not None:
            return metric.of_set(images)
        figures = (self._score(images, label).figures[name] for label in self._measured)
        return mean(figure for figure in figures if not math.isnan(figure))

    def summary(self) -> dict[str, float]:
        """The figures of the set by name; with several classes also "pixel_dice NAME" of each class.

        Only classes that occur in the truth are named, at most `MAX_NAMED`. So the same set gives the same names
        whatever is predicted, and no figure is NaN.
        """
        figures = {name: self.figure(name) for name in dict.fromkeys((*FIRST_COLUMNS, *METRICS))}
        several = self.per_class() if len(self.classes) > 1 else []
        named = [score for score in several if score.pixels][:MAX_NAMED]
        return figures | {f"{CLASS_PREFIX}{score.name}": score.figures["pixel_dice"] for score in named}

    @property
    def pixels(self) -> int:
        """Number of pixels that count, over all images."""
        return int(self._stacked()[:, 2].sum())

    @property
    def accuracy(self) -> float:
        """Share of the pixels whose label is right, 0..1."""
        return self.figure("accuracy")

    @property
    def image_dice(self) -> float:
        """Mean Dice of the images, 0..1."""
        return self.figure("image_dice")

    @property
    def pixel_dice(self) -> float:
        """Dice of all pixels of the set as if it were one image, 0..1."""
        return self.figure("pixel_dice")

    @property
    def iou(self) -> float:
        """Intersection over union of all pixels of the set, 0..1."""
        return self.figure("iou")

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Names of the classes that occur in the truth but in no prediction."""
        _, found, there = self._stacked().sum(axis=0)
        return tuple(self._name(label) for label in self._labels if there[label] and not found[label])

    @property
    def always_predicted(self) -> str | None:
        """Name of the class that every pixel was predicted as, if the truth has other classes too."""
        _, found, there = self._stacked().sum(axis=0)
        whole = (self._name(label) for label in self._labels if there[label] < found[label] == self.pixels)
        return next(whole, None)

    @property
    def nearly_always_predicted(self) -> tuple[str, float, float] | None:
        """A class that is predicted in `NEARLY` all pixels, and that at most half of these are.

        Its name, and the shares of the pixels that are predicted as it and that are it; None if there is no such class.
        """
        _, found, there = self._stacked().sum(axis=0)
        for label in self._labels:
            if self.pixels and found[label] >= NEARLY * self.pixels and 2 * there[label] <= found[label]:
                return self._name(label), found[label] / self.pixels, there[label] / self.pixels
        return None

    def _mean_dice(self, counts: Counts) -> float:
        right, found, there = counts[:, self._measured]
        return mean(dice(right, found, there)[found + there > 0])

    def _score(self, images: Counts, label: int) -> ClassScore:
        images = images[:, :, label]  # [images, 3]
        _, found, there = map(int, images.sum(axis=0))
        functions = {name: metric.of_class for name, metric in METRICS.items() if metric.of_class is not None}
        figures = {name: of_class(images) if found + there else math.nan for name, of_class in functions.items()}
        return ClassScore(name=self._name(label), figures=figures, pixels=there)

    def _name(self, label: int) -> str:
        return self.classes[label - self._labels[0]]

    def _stacked(self) -> Counts:
        """Counts of all images, int64 [images, 3, labels]."""
        if not self._images:
            return np.zeros((0, 3, self._labels[-1] + 1), np.int64)
        return np.stack(list(self._images.values()))


def count_one_class(predicted: Labels, truth: Labels) -> Counts:
    """Count background and class in passes over bytes, which take a fifth of the time of `count_classes`."""
    highest = max(int(predicted.max()), int((truth + np.uint8(1)).max()) - 1)  # IGNORED + 1 is 0
    if highest > 1:
        raise ValueError(f"label {highest}: has no class, expected 0 or 1")
    counted, class_truth = truth != IGNORED, truth == 1
    class_predicted = (predicted == 1) & counted
    pixels, found, there = map(np.count_nonzero, (counted, class_predicted, class_truth))
    right = np.count_nonzero(class_predicted & class_truth)
    of_background = [pixels - found - there + right, pixels - found, pixels - there]
    return np.array([of_background, [right, found, there]], np.int64).T


def count_classes(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """Count the pixels of every class, by a confusion matrix."""
    pairs = truth.astype(np.uint16) << 8 | predicted
    confusion = np.bincount(pairs.reshape(-1), minlength=2**16).reshape(256, 256)[:IGNORED]  # [truth, predicted]
    highest = max(axis.max() for axis in np.nonzero(confusion)) if confusion.any() else 0
    if highest >= classes:
        raise ValueError(f"label {highest}: has no class, expected 0 to {classes - 1}")
    confusion = confusion[:classes, :classes]
    return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)])
