"""The loss of `--loss auto`: another one, and a network that starts from the foreground's share, where that is rare.

With cross-entropy alone, a network learns first that nearly nothing is foreground, and with rare foreground it stays
there for long. A loss with a Dice term sees the foreground, and a last layer that starts from its share (Lin et al.,
"Focal Loss for Dense Object Detection", 2017, 3.3) has nothing to learn about the rest first.
"""

import math

import torch
from torch import nn

from unet_core.config import AUTO, TrainConfig
from unet_core.model import UNet

RARE = 0.01
"""Share of the training pixels below which foreground is rare."""


def is_rare(share: float | None) -> bool:
    """Return True for a share of foreground, if it is known, that cross-entropy alone learns badly."""
    return share is not None and 0 < share < RARE


def choose_loss(config: TrainConfig, share: float | None) -> str:
    """Return the name of the loss for this share of foreground; a loss that the settings name stays."""
    if config.loss != AUTO or not is_rare(share):
        return config.loss_name
    return "bce+dice" if len(config.classes) == 1 else "ce+dice"


def start_from_share(network: nn.Module, share: float, background: int) -> None:
    """Set the biases of the last layer so that its probabilities begin near the share of foreground."""
    last = network.get_submodule("final_conv" if isinstance(network, UNet) else "segmentation_head.0")
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    classes = len(last.bias)
    biases = torch.full((classes,), math.log(share / max(1, classes - 1)))
    if classes == 1:
        biases -= math.log(1 - share)
    else:
        biases[background] = math.log(1 - share)
    with torch.no_grad():
        last.bias.copy_(biases)


def advice_on_loss(config: TrainConfig, share: float | None) -> str | None:
    """Say which loss suits rare foreground, if the settings name one; None if the loss is not to be blamed."""
    if is_rare(share) and config.loss != AUTO:
        return f"leave out --loss {config.loss}: --loss auto suits foreground of {share:.2%} of the training pixels"
    return None
