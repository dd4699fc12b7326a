"""Weights of the classes by median frequency balancing, so that rare classes are learned as well as common ones.

Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
Architecture", 2015, section 5: the frequency of a class is its share of the pixels of those images in which it occurs,
and its weight is the median of all frequencies divided by its own.
"""

from collections.abc import Callable, Sequence

import numpy as np

from unet_core.data.labels import IGNORED
from unet_core.data.records import Records
from unet_core.losses import ClassWeights


def weights_of_classes(kind: ClassWeights, train: Records, advance: Callable[[int], None]) -> tuple[float, ...]:
    """Return the weight of each label in the training images, for one class those of background and class.

    `kind` is "median", or "sqrt" for the square roots of those weights: where a label is a hundred times as rare as
    another, median frequency balancing makes it appear in many places where it is not.

    The weights are scaled so that their mean over all pixels is 1, and the loss is as large as without them. A label
    that occurs nowhere has the weight 1. `advance` is called with 1 after each image.

    Raises:
        ImageError: a pair cannot be decoded.
    """
    labels = max(2, len(train.decoder.labels.classes))
    own, around = np.zeros(labels, np.int64), np.zeros(labels, np.int64)
    for index in range(len(train)):
        counts = np.bincount(train[index][1].reshape(-1), minlength=IGNORED + 1)[:labels]
        own += counts
        around += np.where(counts > 0, counts.sum(), 0)
        advance(1)
    present = own > 0
    if not present.any():
        return (1.0,) * labels
    frequencies = own[present] / around[present]
    weights = np.ones(labels)
    weights[present] = np.median(frequencies) / frequencies
    if kind == "sqrt":
        weights = np.sqrt(weights)
    weights[present] *= own.sum() / (own @ weights)
    return tuple(weights.tolist())


def weights_line(kind: ClassWeights, weights: Sequence[float], classes: Sequence[str]) -> str:
    """Tell the smallest and the largest of the weights that `weights_of_classes` found."""
    names = classes if len(classes) > 1 else ("background", *classes)
    named = sorted(zip(weights, names, strict=True))
    (low, lightest), (high, heaviest) = named[0], named[-1]
    return f"--class-weights {kind}: from {low:.2f} ({lightest}) to {high:.2f} ({heaviest})"
