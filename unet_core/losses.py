"""Losses by their names on the command line: `make_loss("bce+dice", classes=1)`.

A loss takes logits [n, classes, h, w] and labels uint8 [n, h, w] (see `unet_core.data.labels`; `IGNORED` pixels count
nowhere) and is the mean over the images of each image's own loss: where a batch is cut into shards, their losses
weighted by their numbers of images give the loss of the whole. Logits of any float type are computed in float32. An
image without a pixel that counts has loss 0. Nothing here waits for the device.

    bce, ce     cross-entropy, mean over the image's pixels
    focal       cross-entropy times (1 - p) ** 2, where p is the probability of the true label, mean over the image's
                pixels; with one class also times 0.25 on the class and 0.75 off it (Lin et al., "Focal Loss for Dense
                Object Detection", 2017, who divide by the number of objects instead)
    dice        1 - soft Dice of the image (Milletari et al., "V-Net", 2016, without the squares)
    bce+dice, ce+dice    the sum of both
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from runtime.errors import ConfigError
from unet_core.data.labels import IGNORED

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [n, classes, h, w] and labels uint8 [n, h, w] to a float32 scalar."""

Term = Callable[[Tensor, Tensor], Tensor]
"""What was prepared from the logits, and labels [n, h, w], to the loss of each pixel [n, h, w] or image [n]."""

LOSSES_OF_ONE_CLASS = ("bce", "dice", "bce+dice", "focal")
LOSSES_OF_SEVERAL = ("ce", "dice", "ce+dice", "focal")

FOCAL_ALPHA = 0.25
"""Focal loss of one class: its pixels count this much, the background's 1 - this."""

SMOOTH = 1.0
"""Pixels added above and below the fraction of a soft Dice: an empty truth has a finite gradient."""

NO_PROBABILITY = -1e4
"""Logit whose sigmoid and whose cross-entropy against background are exactly 0 in float32."""

BOUNDARY_SHARE = 12
"""The window that tells pixels near a boundary has 1 / this of the image's shorter side."""


def make_loss(name: str, classes: int, boundary_weight: float = 0.0) -> Loss:
    """The loss called `name`, for logits of one class (sigmoid) or several (softmax).

    `boundary_weight` makes pixels near a boundary between labels count 1 + as much in the mean over an image's pixels
    (bce, ce, focal), which is divided by the sum of these weights. Near means that a square window around the pixel
    (see `BOUNDARY_SHARE`) holds two labels. After A. Sanakoyeu's part of the first place in Kaggle's Carvana
    challenge (2017), whose weight is 2.

    Raises:
        ConfigError: `name` does not suit the number of classes, or the weight is out of its bounds or without effect.
    """
    assert 1 <= classes <= IGNORED
    _check(name, classes, boundary_weight)
    prepare = _background_where_ignored if classes == 1 else _log_probabilities
    per_pixel, per_image = (_PIXEL_OF_ONE, _dice_of_one) if classes == 1 else (_PIXEL_OF_SEVERAL, _dice_of_several)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        assert logits.shape == (len(labels), classes, *labels.shape[1:]), (logits.shape, labels.shape)
        prepared = prepare(logits.float(), labels)
        images = prepared.new_zeros(len(labels))
        for term in name.split("+"):
            if term == "dice":
                images = images + per_image(prepared, labels)
            else:
                images = images + _pixel_mean(per_pixel[term](prepared, labels), labels, boundary_weight)
        return images.mean()

    return loss


def _check(name: str, classes: int, boundary_weight: float) -> None:
    allowed = LOSSES_OF_ONE_CLASS if classes == 1 else LOSSES_OF_SEVERAL
    if name not in allowed:
        here, there = ("one", "several classes") if classes == 1 else ("several", "one class")
        known = name in LOSSES_OF_ONE_CLASS + LOSSES_OF_SEVERAL
        why = f"is for {there}" if known else "is unknown"
        raise ConfigError(f"--loss {name}: {why}, expected one of {', '.join(allowed)} for {here}")
    if not 0 <= boundary_weight < math.inf:
        raise ConfigError(f"--boundary-weight {boundary_weight}: expected a number of at least 0")
    if boundary_weight and name == "dice":
        raise ConfigError(f"--boundary-weight {boundary_weight}: has no effect on --loss dice; leave one of them out")


def _background_where_ignored(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits of one class [n, h, w]; ignored pixels become background that is found with certainty, which adds 0."""
    return logits[:, 0].masked_fill(labels == IGNORED, NO_PROBABILITY)


def _log_probabilities(logits: Tensor, _: Tensor) -> Tensor:
    """Logarithm of the softmax, [n, classes, h, w]."""
    return logits.log_softmax(dim=1)


def _bce(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, (labels == 1).float(), reduction="none")


def _ce(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return functional.nll_loss(log_probabilities, labels.long(), ignore_index=IGNORED, reduction="none")


def _focal_of_one(logits: Tensor, labels: Tensor) -> Tensor:
    target = (labels == 1).float()
    loss: Tensor = sigmoid_focal_loss(logits, target, alpha=FOCAL_ALPHA, gamma=2, reduction="none")
    return loss


def _focal_of_several(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    cross_entropy = _ce(log_probabilities, labels)  # -log p, so 1 - p is -expm1 of its negative, exact near p = 1
    return torch.expm1(-cross_entropy).square() * cross_entropy


_PIXEL_OF_ONE: Mapping[str, Term] = {"bce": _bce, "focal": _focal_of_one}
_PIXEL_OF_SEVERAL: Mapping[str, Term] = {"ce": _ce, "focal": _focal_of_several}


def _pixel_mean(pixels: Tensor, labels: Tensor, boundary_weight: float) -> Tensor:
    """Mean of each image's pixels, [n, h, w] -> [n]; the ignored ones are 0 already and are left out of the count."""
    counted = labels != IGNORED
    if boundary_weight == 0:
        return _image_sums(pixels) / _image_sums(counted).clamp(min=1)
    weights = counted * (1 + boundary_weight * near_boundary(labels))
    return _image_sums(pixels * weights) / _image_sums(weights).clamp(min=1)


def _dice_of_one(logits: Tensor, labels: Tensor) -> Tensor:
    probability, truth = logits.sigmoid(), labels == 1
    overlap = _image_sums(probability * truth)
    return 1 - (2 * overlap + SMOOTH) / (_image_sums(probability) + _image_sums(truth) + SMOOTH)


def _dice_of_several(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur in an image's truth, [n].

    A few stray pixels' worth of probability bring the soft Dice of an absent class close to 0, so in the mean it would
    drown those that are there (nnU-Net smooths by 1e-5, which leaves absent classes next to no gradient either).
    Nothing is missed: whatever probability an absent class gets, a present one lacks, be it the background.
    """
    classes = log_probabilities.shape[1]
    probability = log_probabilities.exp().masked_fill((labels == IGNORED)[:, None], 0)  # [n, classes, h, w]
    indices = torch.arange(classes, dtype=torch.uint8, device=labels.device)
    truth = labels[:, None] == indices[:, None, None]  # [n, classes, h, w]
    overlap, there = _plane_sums(torch.where(truth, probability, 0)), _plane_sums(truth)  # [n, classes]
    dice = (2 * overlap + SMOOTH) / (_plane_sums(probability) + there + SMOOTH)
    present = there > 0
    return ((1 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def _image_sums(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).sum(dim=1)  # [n, h * w] -> [n]


def _plane_sums(planes: Tensor) -> Tensor:
    return planes.flatten(2).sum(dim=2)  # [n, classes, h * w] -> [n, classes]


def near_boundary(labels: Tensor) -> Tensor:
    """Where a square window around the pixel holds more than one label (`IGNORED` aside): bool [n, h, w].

    The window's side is the shorter side of the image / `BOUNDARY_SHARE`, odd and at least 3.
    """
    window = max(3, min(labels.shape[1:]) // BOUNDARY_SHARE | 1)
    # uint8 wraps at 256: both planes are 0 where IGNORED and more elsewhere, and the highest label + 1 plus 255 - the
    # lowest label is the difference of the two labels.
    planes = torch.stack([labels + 1, IGNORED - labels], dim=1)  # [n, 2, h, w]
    highest, lowest = _window_maximum(planes, window).unbind(dim=1)
    return highest + lowest > 0


def _window_maximum(planes: Tensor, window: int) -> Tensor:
    """Maximum of the window around each pixel, of the same size; 0 beyond the edge.

    As max pooling with a stride of 1, but the window about doubles with every step: a side of 107 takes 7 comparisons
    along each axis, and they work on bytes.
    """
    planes = functional.pad(planes, (window // 2,) * 4)
    side = 1
    while side < window:
        step = min(side, window - side)
        planes = torch.maximum(planes[:, :, step:], planes[:, :, :-step])
        planes = torch.maximum(planes[:, :, :, step:], planes[:, :, :, :-step])
        side += step
    return planes
