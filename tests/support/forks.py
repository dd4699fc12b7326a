"""Forks of the milesial and tutorial U-Nets with the same keys and another meaning, as people write them."""

import torch
from families import Milesial
from torch import nn

from runtime.card import UNetConfig
from unet_core.model import UNet

WIDTHS = (4, 6)


class UpFirst(Milesial):
    """Concatenates [up, skip]."""

    def __init__(self):
        super().__init__(widths=WIDTHS, classes=1)

    def joined(self, skip, up):
        return torch.cat([up, skip], dim=1)


class TutorialUpFirst(UNet):
    """The tutorial's network that concatenates [up, skip]."""

    def __init__(self):
        super().__init__(UNetConfig(widths=WIDTHS))

    def forward(self, x):
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, kernel_size=2)
        x = self.bottleneck(x)
        for up, convolve in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = convolve(torch.cat([up(x), skips.pop()], dim=1))
        return self.final_conv(x)


def with_leaky_relu():
    """The tutorial's network with LeakyReLU(0.1)."""
    network = UNet(UNetConfig(widths=WIDTHS))
    for block in network.modules():
        if isinstance(block, nn.Sequential):
            for index, layer in enumerate(block):
                if isinstance(layer, nn.ReLU):
                    block[index] = nn.LeakyReLU(0.1)
    return network


def with_free_corners():
    """Milesial's bilinear network without align_corners."""
    network = Milesial(widths=WIDTHS, classes=1, bilinear=True)
    for index in range(1, network.depth + 1):
        getattr(network, f"up{index}").up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return network


def with_reflected_borders():
    """The tutorial's network whose convolutions reflect at the border."""
    network = UNet(UNetConfig(widths=WIDTHS))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding_mode = "reflect"
    return network


FORKS = {
    "milesial, up first": UpFirst,
    "tutorial, up first": TutorialUpFirst,
    "LeakyReLU": with_leaky_relu,
    "free corners": with_free_corners,
    "reflected borders": with_reflected_borders,
}
