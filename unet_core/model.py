"""UNet: the network. Segmenter: the network with its pre- and post-processing.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015, with padded
convolutions and batch normalisation. The state-dict keys (`downs`, `bottleneck`, `ups`, `final_conv`) are those of the
well-known PyTorch tutorial, so its checkpoints load as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.card import ModelCard, UNetConfig

__all__ = ["DoubleConv", "Segmenter", "UNet", "UNetConfig"]


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and ReLU: [n, inputs, h, w] -> [n, outputs, h, w]."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class UNet(nn.Module):
    """The network: normalised float images [n, in_channels, h, w] -> logits [n, classes, h, w].

    h and w have to be multiples of the stride, 2 ** number of levels.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        self.downs = nn.ModuleList()
        channels = config.in_channels
        for width in config.widths:
            self.downs.append(DoubleConv(channels, width))
            channels = width
        bottom = channels if config.up == "bilinear" else 2 * channels
        self.bottleneck = DoubleConv(channels, bottom)
        channels = bottom
        self.ups = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            outputs = width = config.widths[level]
            if config.up == "transpose":
                self.ups.append(nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2))
                channels = width
            else:
                # Upsampling keeps the channels, so each level narrows to the width of the level above, unless wide.
                outputs = width if config.up == "bilinear-wide" else config.widths[max(level - 1, 0)]
                self.ups.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.ups.append(DoubleConv(width + channels, outputs, middle=width))
            channels = outputs
        self.final_conv = nn.Conv2d(config.widths[0], config.classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = functional.max_pool2d(x, kernel_size=2)
        x = self.bottleneck(x)
        for up, convolve in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = convolve(torch.cat([skips.pop(), up(x)], dim=1))  # skip first, as in the tutorial
        logits: Tensor = self.final_conv(x)
        return logits


class Segmenter(nn.Module):
    """The network with its pre- and post-processing, which is exported and which evaluation runs.

    uint8 images [n, h, w, channels] of any height and width >= 1 -> probability float32 [n, classes, h, w]. For a
    network that looks at the whole picture at once (`InputSpec.padded`), they have to be multiples of the stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        # A network that ends in its own sigmoid or softmax says so by this attribute; a `UNet` never does.
        self.gives_probabilities = bool(getattr(network, "gives_probabilities", False))
        self.stride, self.padded = card.input.stride, card.input.padded
        self.activation = card.output.activation
        self.register_buffer("mean", torch.tensor(card.input.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.input.std).reshape(1, -1, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise images: uint8 [n, h, w, channels] -> float32 [n, channels, h, w], (value / 255 - mean) / std."""
        planes = image.to(self.mean.dtype).permute(0, 3, 1, 2)  # first: TensorRT takes uint8 only into a cast
        return (planes / 255 - self.mean) / self.std

    def logits(self, image: Tensor) -> Tensor:
        """Compute the network's answer: uint8 [n, h, w, channels] -> float32 [n, classes, h, w].

        These are logits, before sigmoid or softmax, unless the network gives probabilities itself.
        """
        x = self.normalise(image)
        if not self.padded:
            whole: Tensor = self.network(x).float()
            return whole
        height, width = x.shape[2:]
        # Repeating the edge changes the border less than black would; multiples of the stride need no padding.
        padding = (0, -width % self.stride, 0, -height % self.stride)
        # Sizes are symbols while the network is traced with free ones; to ask whether they are 0 would fix them.
        if not all(type(side) is int and side == 0 for side in padding):
            x = functional.pad(x, padding, mode="replicate")
        logits: Tensor = self.network(x)[:, :, :height, :width].float()
        return logits

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logits(image)
        if self.gives_probabilities:
            return logits
        probability: Tensor = logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()
        return probability
