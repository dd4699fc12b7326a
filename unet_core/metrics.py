"""Segmentation metrics, counted over images and never averaged over batches.

Dice = 2|A∩B| / (|A|+|B|). *Image Dice* is its mean over images, an image where both are empty counting 1 (Carvana's
rule); *pixel Dice*, IoU and accuracy come from true and false positives and negatives summed over the whole set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class BinaryMetrics:
    """Counts of one foreground class over a set of images."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0
    image_dices: list[float] = field(default_factory=list)

    def add(self, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """Count one image's masks, 0 or 1 of the same [height, width]; return its Dice."""
        if predicted.shape != truth.shape:
            raise ValueError(f"masks of {predicted.shape} and {truth.shape} cannot be compared")
        both = int(np.count_nonzero(predicted & truth))
        found, there = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
        self.true_positives += both
        self.false_positives += found - both
        self.false_negatives += there - both
        self.true_negatives += truth.size - found - there + both
        dice = _ratio(2 * both, found + there)
        self.image_dices.append(dice)
        return dice

    @property
    def accuracy(self) -> float:
        """Share of all pixels that are right, 0..1."""
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def image_dice(self) -> float:
        """Mean Dice of the images, 0..1."""
        return float(np.mean(self.image_dices)) if self.image_dices else 1.0

    @property
    def pixel_dice(self) -> float:
        """Dice of all pixels of the set as if it were one image, 0..1."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def iou(self) -> float:
        """Intersection over union of all pixels of the set, 0..1."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    def summary(self) -> Mapping[str, float]:
        """The four metrics by name."""
        return {
            "accuracy": self.accuracy,
            "image_dice": self.image_dice,
            "pixel_dice": self.pixel_dice,
            "iou": self.iou,
        }


def _ratio(part: int, whole: int) -> float:
    """Nothing to find and nothing found is perfect."""
    return part / whole if whole else 1.0
