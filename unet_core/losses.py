"""Losses by their names on the command line: `make_loss("bce+dice", classes=1)`.

A loss takes logits [n, classes, h, w] and labels uint8 [n, h, w] (see `unet_core.data.labels`; `IGNORED` pixels do not
count). It is the mean over the images of each image's own loss. So where a batch is cut into shards, the shards' losses
weighted by their numbers of images give the loss of the whole batch. Logits of any float type are computed in float32.
An image without a pixel that counts has loss 0. No loss synchronises with the device.

    bce, ce     cross-entropy, mean over the image's pixels
    focal       cross-entropy times (1 - p) ** 2, where p is the probability of the true label, mean over the image's
                pixels; with one class also times 0.25 on the class and 0.75 off it (Lin et al., "Focal Loss for Dense
                Object Detection", 2017, who divide by the number of objects instead)
    dice        1 - soft Dice of the image (Milletari et al., "V-Net", 2016, without the squares)
    bce+dice, ce+dice    the sum of both

Weights of classes (`--class-weights`) multiply bce, ce and focal of each pixel by the weight of its true label.

To add a loss, add an entry to `LOSSES`. Importing this module does not import PyTorch, so that the command line can
list the names without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtime.errors import ConfigError
from unet_core.data.labels import IGNORED, Labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ClassWeights = Literal["none", "median", "sqrt"]
"""`--class-weights`: all labels count alike, by median frequency balancing, or by the square roots of its weights."""

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Function of logits [n, classes, h, w] and labels uint8 [n, h, w] that returns a float32 scalar."""

Term = Callable[["Tensor", "Tensor"], "Tensor"]
"""Part of a loss: a function of predictions and labels uint8 [n, h, w].

With one class the predictions are logits [n, h, w], in which ignored pixels are certain background. With several they
are logarithms of the softmax [n, classes, h, w].
"""

FOCAL_ALPHA = 0.25
"""Weight of foreground pixels in the focal loss of one class; background pixels have 1 - this."""

SMOOTH = 1.0
"""Pixels added above and below the fraction of a soft Dice, so that an empty mask has a finite gradient."""

NO_PROBABILITY = -1e4
"""Logit whose sigmoid and whose cross-entropy against background are exactly 0 in float32."""

LEAST_PROBABILITY = 1e-7
"""Probability that a smaller one is taken for, so that its logarithm is finite."""

BOUNDARY_SHARE = 12
"""Shorter side of an image, divided by the side of the window that finds pixels near a boundary."""


def binary_cross_entropy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Cross-entropy of each pixel with one class: [n, h, w] -> [n, h, w]."""
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(logits, (labels == 1).float(), reduction="none")


def cross_entropy(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Cross-entropy of each pixel with several classes: [n, classes, h, w] -> [n, h, w]."""
    from torch.nn import functional

    return functional.nll_loss(log_probabilities, labels.long(), ignore_index=IGNORED, reduction="none")


def focal_of_one_class(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Focal loss of each pixel with one class: [n, h, w] -> [n, h, w]."""
    from torchvision.ops import sigmoid_focal_loss

    target = (labels == 1).float()
    loss: Tensor = sigmoid_focal_loss(logits, target, alpha=FOCAL_ALPHA, gamma=2, reduction="none")
    return loss


def focal_of_several_classes(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Focal loss of each pixel with several classes: [n, classes, h, w] -> [n, h, w]."""
    entropy = cross_entropy(log_probabilities, labels)  # -log p, so 1 - p is -expm1 of its negative, exact near p = 1
    return (-entropy).expm1().square() * entropy


def dice_of_one_class(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Soft Dice loss of each image with one class: [n, h, w] -> [n]."""
    probability, truth = logits.sigmoid(), labels == 1
    overlap = image_sums(probability * truth)
    return 1 - (2 * overlap + SMOOTH) / (image_sums(probability) + image_sums(truth) + SMOOTH)


def dice_of_several_classes(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    """Soft Dice loss of each image, mean over the classes that occur in its labels: [n, classes, h, w] -> [n].

    Absent classes are left out: a few stray pixels' worth of probability bring their soft Dice close to 0, so they
    would dominate the mean (nnU-Net smooths by 1e-5, which leaves absent classes next to no gradient either). Nothing
    is missed: whatever probability an absent class gets, a present one lacks, be it the background.
    """
    import torch

    classes = log_probabilities.shape[1]
    probability = log_probabilities.exp().masked_fill((labels == IGNORED)[:, None], 0)  # [n, classes, h, w]
    indices = torch.arange(classes, dtype=torch.uint8, device=labels.device)
    truth = labels[:, None] == indices[:, None, None]  # [n, classes, h, w]
    overlap = torch.where(truth, probability, 0).flatten(2).sum(dim=2)  # [n, classes, h * w] -> [n, classes]
    size = truth.flatten(2).sum(dim=2)
    dice = (2 * overlap + SMOOTH) / (probability.flatten(2).sum(dim=2) + size + SMOOTH)
    present = size > 0
    return ((1 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """A loss by its name and number of classes: the sum of a term for each pixel and a term for each image."""

    name: str
    classes: Literal["one", "several"]
    pixel: Term | None = None
    image: Term | None = None


LOSSES = (
    LossEntry(name="bce", classes="one", pixel=binary_cross_entropy),
    LossEntry(name="dice", classes="one", image=dice_of_one_class),
    LossEntry(name="bce+dice", classes="one", pixel=binary_cross_entropy, image=dice_of_one_class),
    LossEntry(name="focal", classes="one", pixel=focal_of_one_class),
    LossEntry(name="ce", classes="several", pixel=cross_entropy),
    LossEntry(name="dice", classes="several", image=dice_of_several_classes),
    LossEntry(name="ce+dice", classes="several", pixel=cross_entropy, image=dice_of_several_classes),
    LossEntry(name="focal", classes="several", pixel=focal_of_several_classes),
)
"""All losses; the first one for a number of classes is its default."""


def loss_names(classes: int) -> list[str]:
    """Return the names of the losses for this many classes, the default first."""
    return [entry.name for entry in LOSSES if entry.classes == ("one" if classes == 1 else "several")]


def find_loss(name: str, classes: int, boundary_weight: float = 0.0, class_weights: ClassWeights = "none") -> LossEntry:
    """Find a loss in `LOSSES`, without importing PyTorch.

    Raises:
        ConfigError: `name` does not suit the number of classes, or a weight is out of bounds or without effect.
    """
    here, there = ("one", "several classes") if classes == 1 else ("several", "one class")
    found = next((entry for entry in LOSSES if (entry.name, entry.classes) == (name, here)), None)
    if found is None:
        reason = f"is for {there}" if name in {entry.name for entry in LOSSES} else "is unknown"
        raise ConfigError(f"--loss {name}: {reason}, expected one of {', '.join(loss_names(classes))} for {here}")
    if not 0 <= boundary_weight < math.inf:
        raise ConfigError(f"--boundary-weight {boundary_weight}: expected a number of at least 0")
    if boundary_weight and found.pixel is None:
        raise ConfigError(f"--boundary-weight {boundary_weight}: has no effect on --loss {name}; leave one of them out")
    if class_weights != "none" and found.pixel is None:
        raise ConfigError(f"--class-weights {class_weights}: has no effect on --loss {name}; leave one of them out")
    return found


def make_loss(
    name: str, classes: int, boundary_weight: float = 0.0, class_weights: Sequence[float] | None = None
) -> Loss:
    """Make the loss called `name`, for logits of one class (sigmoid) or several (softmax).

    `boundary_weight` gives pixels near a boundary between labels a weight of 1 + as much in the mean over an image's
    pixels (bce, ce, focal), which is divided by the sum of these weights. A pixel is near a boundary if a square window
    around it (see `BOUNDARY_SHARE`) holds two labels. After A. Sanakoyeu's part of the first place in Kaggle's Carvana
    challenge (2017), whose weight is 2.

    `class_weights` are factors of the pixels of each label, for one class those of background and class. The mean is
    not divided by their sum, so that a rare class counts as much as they say in images where it is alone, too.

    Raises:
        ConfigError: as `find_loss`.
    """
    assert 1 <= classes <= IGNORED
    assert class_weights is None or len(class_weights) == max(2, classes)
    entry = find_loss(name, classes, boundary_weight)

    def loss(logits: "Tensor", labels: "Tensor") -> "Tensor":
        assert logits.shape == (len(labels), classes, *labels.shape[1:]), (logits.shape, labels.shape)
        logits = logits.float()
        if classes == 1:
            # Ignored pixels become certain background, which adds 0 to every term.
            predictions = logits[:, 0].masked_fill(labels == IGNORED, NO_PROBABILITY)  # [n, 1, h, w] -> [n, h, w]
        else:
            predictions = logits.log_softmax(dim=1)
        images = predictions.new_zeros(len(labels))
        if entry.pixel is not None:
            weights = labels != IGNORED
            if boundary_weight:
                weights = weights * (1 + boundary_weight * near_boundary(labels))
            pixels = entry.pixel(predictions, labels)  # 0 where ignored
            pixels = pixels * weights if boundary_weight else pixels
            if class_weights is not None:
                pixels = pixels * weight_of_pixels(labels, class_weights)
            images = images + image_sums(pixels) / image_sums(weights).clamp(min=1)
        if entry.image is not None:
            images = images + entry.image(predictions, labels)
        return images.mean()

    return loss


def loss_of_answer(loss: Loss, probability: "NDArray[np.float32]", truth: Labels) -> float:
    """Compute a loss from the probabilities [classes, h, w] of one image and its labels [h, w]."""
    import torch

    answer = torch.from_numpy(probability)[None].clamp(min=LEAST_PROBABILITY, max=1 - LEAST_PROBABILITY)
    logits = answer.logit() if len(probability) == 1 else answer.log()
    return float(loss(logits, torch.from_numpy(truth)[None]))


def weight_of_pixels(labels: "Tensor", class_weights: Sequence[float]) -> "Tensor":
    """Look up the weight of each pixel's label; ignored pixels have 0: uint8 [n, h, w] -> float32 [n, h, w]."""
    import torch

    table = torch.zeros(IGNORED + 1, device=labels.device)
    table[: len(class_weights)] = torch.tensor(class_weights, device=labels.device)
    return table[labels.long()]


def image_sums(pixels: "Tensor") -> "Tensor":
    """Sum of each image's pixels: [n, h, w] -> [n]."""
    return pixels.flatten(1).sum(dim=1)  # [n, h * w] -> [n]


def near_boundary(labels: "Tensor") -> "Tensor":
    """Find pixels around which a square window holds more than one label (`IGNORED` aside): bool [n, h, w].

    The window's side is the shorter side of the image / `BOUNDARY_SHARE`, odd and at least 3. Its maximum is taken as
    by max pooling with a stride of 1, but the window about doubles with every step: a side of 107 takes 7 comparisons
    along each axis, and they work on bytes.
    """
    import torch
    from torch.nn import functional

    window = max(3, min(labels.shape[1:]) // BOUNDARY_SHARE | 1)
    # uint8 wraps at 256: both planes are 0 where IGNORED and more elsewhere, and the highest label + 1 plus 255 - the
    # lowest label is the difference of the two labels.
    planes = torch.stack([labels + 1, IGNORED - labels], dim=1)  # [n, 2, h, w]
    planes = functional.pad(planes, (window // 2,) * 4)
    side = 1
    while side < window:
        step = min(side, window - side)
        planes = torch.maximum(planes[:, :, step:], planes[:, :, :-step])
        planes = torch.maximum(planes[:, :, :, step:], planes[:, :, :, :-step])
        side += step
    highest, lowest = planes.unbind(dim=1)
    return highest + lowest > 0
