"""Losses on logits [n, 1, h, w] against float targets of the same shape, 0 or 1; each returns a scalar."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all pixels."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - soft Dice of each image (Milletari et al., "V-Net", 2016, without the squares), mean over the batch.

    `smooth` pixels are added to both sides of the fraction, so that an empty truth gives a finite gradient.
    """
    probability = logits.sigmoid().flatten(1)  # [n, h * w]
    target = target.flatten(1)
    overlap = (probability * target).sum(dim=1)
    dice = (2 * overlap + smooth) / (probability.sum(dim=1) + target.sum(dim=1) + smooth)
    return 1 - dice.mean()


def bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus Dice loss, equally weighted."""
    return bce(logits, target) + dice_loss(logits, target)


LOSSES: Mapping[str, Loss] = {"bce": bce, "bce+dice": bce_dice}
"""The losses by their names on the command line."""
