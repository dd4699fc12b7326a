"""Small networks with the structure that other people's U-Nets document: their names, their order, their answers.

`widths` are the channels of the levels from the top. Weights and BatchNorm statistics are random, so that a wrong
permutation or a bias that got lost shows.
"""

from collections import OrderedDict

import torch
from torch import nn


def randomised(network, seed=0):
    """Every weight, bias and statistic away from its initial value; logits of a few units."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        with torch.no_grad():
            tensor.uniform_(low, high, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.2, 0.6)
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(3)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            uniform(module.weight, -((6 / taps) ** 0.5), (6 / taps) ** 0.5)  # keeps the variance through a ReLU
            if module.bias is not None:
                uniform(module.bias, -0.4, 0.4)
    return network.eval()


def two_convolutions(inputs, outputs, *, names=None, middle=None, bias=False, norm=True):
    """Convolution, BatchNorm unless without `norm`, ReLU, twice; numbered, or with `names` for the four layers."""
    middle = middle or outputs
    layers = []
    for channels, width in ((inputs, middle), (middle, outputs)):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
    if names is None:
        return nn.Sequential(*layers)
    first, first_norm, second, second_norm = names
    order = [first, first_norm, "relu1", second, second_norm, "relu2"]
    return nn.Sequential(OrderedDict(zip(order, layers, strict=True)))


def under(**modules):
    """A module that only holds others under these names."""
    holder = nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


class Milesial(nn.Module):
    """inc, down1 ... downN, up1 ... upN, outc; concatenates [skip, up]; gives logits, softmaxed if several."""

    def __init__(self, widths=(4, 6, 10, 14), channels=3, classes=2, bilinear=False, bias=False):
        super().__init__()
        self.depth, self.bilinear = len(widths), bilinear
        lowest = widths[-1] if bilinear else 2 * widths[-1]
        self.inc = under(double_conv=two_convolutions(channels, widths[0], bias=bias))
        for index, (above, width) in enumerate(zip(widths, (*widths[1:], lowest), strict=True), start=1):
            down = nn.Sequential(nn.MaxPool2d(2), under(double_conv=two_convolutions(above, width, bias=bias)))
            self.add_module(f"down{index}", under(maxpool_conv=down))
        below = lowest
        for index, level in enumerate(reversed(range(len(widths))), start=1):
            width = widths[level]
            outputs = widths[max(level - 1, 0)] if bilinear else width
            grow = (
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                if bilinear
                else nn.ConvTranspose2d(below, width, 2, stride=2)
            )
            inputs = width + (below if bilinear else width)
            convolve = under(double_conv=two_convolutions(inputs, outputs, middle=width, bias=bias))
            self.add_module(f"up{index}", under(up=grow, conv=convolve))
            below = outputs
        self.outc = under(conv=nn.Conv2d(widths[0], classes, 1))

    def forward(self, x):
        skips = [self.inc.double_conv(x)]
        for index in range(1, self.depth + 1):
            pool, convolve = getattr(self, f"down{index}").maxpool_conv
            skips.append(convolve.double_conv(pool(skips[-1])))
        x = skips.pop()
        for index in range(1, self.depth + 1):
            stage = getattr(self, f"up{index}")
            x = stage.conv.double_conv(self.joined(skips.pop(), stage.up(x)))
        return self.outc.conv(x)

    def joined(self, skip, up):
        return torch.cat([skip, up], dim=1)


class OlderMilesial(nn.Module):
    """inc.conv, down1.mpconv.1, up1.conv ... outc.conv, as before November 2019; logits, [skip, up].

    Upsampling keeps all channels, and the first convolution after it narrows to those of the level above.
    """

    def __init__(self, widths=(4, 6), channels=3, classes=1, bilinear=True):
        super().__init__()
        self.depth = len(widths)

        def block(inputs, outputs):
            return under(conv=two_convolutions(inputs, outputs, bias=True))

        self.inc = under(conv=block(channels, widths[0]))
        for number, width in enumerate(widths, start=1):
            below = widths[min(number, self.depth - 1)]
            self.add_module(f"down{number}", under(mpconv=nn.Sequential(nn.MaxPool2d(2), block(width, below))))
        below = widths[-1]
        for number, level in enumerate(reversed(range(self.depth)), start=1):
            outputs = widths[max(level - 1, 0)]
            grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            up = grow if bilinear else nn.ConvTranspose2d(below, below, 2, stride=2)
            self.add_module(f"up{number}", under(up=up, conv=block(below + widths[level], outputs)))
            below = outputs
        self.outc = under(conv=nn.Conv2d(below, classes, 1))

    def forward(self, x):
        skips = [self.inc.conv.conv(x)]
        for number in range(1, self.depth + 1):
            pool, block = getattr(self, f"down{number}").mpconv
            skips.append(block.conv(pool(skips[-1])))
        x = skips.pop()
        for number in range(1, self.depth + 1):
            up = getattr(self, f"up{number}")
            x = up.conv.conv(torch.cat([skips.pop(), up.up(x)], dim=1))
        return self.outc.conv(x)


class Mateuszbuda(nn.Module):
    """encoder1 ... encoderN, bottleneck, upconvN ... decoder1, conv; [up, skip]; gives sigmoids."""

    def __init__(self, widths=(4, 6, 10, 14), channels=3, classes=1):
        super().__init__()
        self.depth = len(widths)

        def block(inputs, outputs, name):
            return two_convolutions(
                inputs, outputs, names=[f"{name}{part}" for part in ("conv1", "norm1", "conv2", "norm2")]
            )

        below = channels
        for number, width in enumerate(widths, start=1):
            self.add_module(f"encoder{number}", block(below, width, f"enc{number}"))
            below = width
        self.bottleneck = block(below, 2 * below, "bottleneck")
        below = 2 * below
        for number in range(self.depth, 0, -1):
            width = widths[number - 1]
            self.add_module(f"upconv{number}", nn.ConvTranspose2d(below, width, 2, stride=2))
            self.add_module(f"decoder{number}", block(2 * width, width, f"dec{number}"))
            below = width
        self.conv = nn.Conv2d(below, classes, 1)

    def forward(self, x):
        skips = []
        for number in range(1, self.depth + 1):
            skips.append(getattr(self, f"encoder{number}")(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for number in range(self.depth, 0, -1):
            grown = getattr(self, f"upconv{number}")(x)
            x = getattr(self, f"decoder{number}")(torch.cat([grown, skips.pop()], dim=1))
        return self.conv(x).sigmoid()


class Usuyama(nn.Module):
    """dconv_down1 ... dconv_downN+1, dconv_upN ... dconv_up1, conv_last; no BatchNorm; [up, skip]; gives logits."""

    def __init__(self, widths=(4, 6, 10), channels=3, classes=1):
        super().__init__()
        self.depth = len(widths)
        below = channels
        for number, width in enumerate((*widths, 2 * widths[-1]), start=1):
            self.add_module(f"dconv_down{number}", two_convolutions(below, width, bias=True, norm=False))
            below = width
        for number in range(self.depth, 0, -1):
            width = widths[number - 1]
            self.add_module(f"dconv_up{number}", two_convolutions(below + width, width, bias=True, norm=False))
            below = width
        self.conv_last = nn.Conv2d(below, classes, 1)

    def forward(self, x):
        skips = []
        for number in range(1, self.depth + 1):
            skips.append(getattr(self, f"dconv_down{number}")(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = getattr(self, f"dconv_down{self.depth + 1}")(x)
        for number in range(self.depth, 0, -1):
            grown = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = getattr(self, f"dconv_up{number}")(torch.cat([grown, skips.pop()], dim=1))
        return self.conv_last(x)
