"""Networks that look at the whole picture at once are told from those that see far."""

import pytest
import torch
from families import Milesial, randomised
from torch import nn
from torch.nn import functional

from unet_core.networks.author_network import AuthorNetwork, examine
from unet_core.networks.whole_picture import NOTICEABLE


class Block(nn.Module):
    """Two convolutions around a part that may look at the whole picture."""

    def __init__(self, part, stride=1):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.part, self.stride = part, stride

    def forward(self, x):
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise RuntimeError("wrong size")
        return self.last(self.part(self.first(x).relu()).relu())


class Squeeze(nn.Module):
    """Squeeze-and-excite; pools by a module, a method or a function."""

    def __init__(self, kind="module"):
        super().__init__()
        self.kind, self.pool, self.layer = kind, nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        pooled = {
            "module": lambda: self.pool(x),
            "mean": lambda: x.mean((2, 3), keepdim=True),
            "max": lambda: x.amax((2, 3), keepdim=True),
            "sum": lambda: x.sum((2, 3), keepdim=True) / x[0, 0].numel(),
            "norm": lambda: x.norm(dim=(2, 3), keepdim=True) / x[0, 0].numel() ** 0.5,
            "kernel": lambda: functional.avg_pool2d(x, x.shape[2:]),
        }[self.kind]()
        return x * 3 * self.layer(pooled).sigmoid()


class Attention(nn.Module):
    """Each pixel of an eighth of the picture attends to all others, or to those in windows of 2x2."""

    def __init__(self, windows=False, fused=False):
        super().__init__()
        self.windows, self.fused = windows, fused

    def forward(self, x):
        small = functional.avg_pool2d(x, 8) * 4
        batch, channels, height, width = small.shape
        tokens = small.flatten(2).transpose(1, 2)
        if self.windows:
            tokens = small.reshape(batch, channels, height // 2, 2, width // 2, 2)
            tokens = tokens.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, channels)
        if self.fused:
            tokens = functional.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]
        else:
            tokens = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        if self.windows:
            tokens = tokens.reshape(batch, height // 2, width // 2, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
            found = tokens.reshape(batch, channels, height, width)
        else:
            found = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return x + functional.interpolate(found, scale_factor=8.0)


class PictureNorm(nn.Module):
    """BatchNorm that has no statistics but the picture's."""

    def forward(self, x):
        return functional.batch_norm(x, None, None, training=True)


class Coordinates(nn.Module):
    """Adds the place of each pixel in the picture, by coordinates made in one of several ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        height, width = x.shape[2:]
        if self.kind == "grid":
            same = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
            place = functional.affine_grid(same, [1, 1, height, width], align_corners=False)[..., 0]
        elif self.kind == "linspace":
            place = torch.linspace(-1, 1, width).expand(1, height, width)
        else:
            place = (torch.arange(width) / width).expand(1, height, width)
        return x + 3 * place[:, None]


class WideKernel(nn.Module):
    """A convolution whose kernel is as wide as the picture."""

    def forward(self, x):
        width = x.shape[3]
        kernel = torch.ones(8, 1, 1, 2 * (width // 2) + 1) / width
        return x + 3 * functional.conv2d(x, kernel, padding=(0, width // 2), groups=8)


class Resize(nn.Module):
    """Halves a picture and resizes it to the size that it had."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        corners = {} if self.mode == "nearest" else {"align_corners": self.mode == "bilinear, corners"}
        mode = self.mode.partition(",")[0]
        return functional.interpolate(functional.max_pool2d(x, 2), size=x.shape[2:], mode=mode, **corners)


class Unused(nn.Module):
    """Pools the whole picture for something that the answer does not depend on."""

    def forward(self, x):
        return x + 0 * x.mean((2, 3), keepdim=True)


def far_sighted():
    """Convolutions that see more than the pictures that are tried."""
    layers = [layer for _ in range(20) for layer in (nn.Conv2d(8, 8, 3, padding=4, dilation=4), nn.ReLU())]
    return nn.Sequential(*layers)


WHOLE = {
    "InstanceNorm": lambda: nn.InstanceNorm2d(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "BatchNorm of the picture": PictureNorm,
    **{
        f"squeeze by {kind}": lambda kind=kind: Squeeze(kind)
        for kind in ("module", "mean", "max", "sum", "norm", "kernel")
    },
    **{f"coordinates by {kind}": lambda kind=kind: Coordinates(kind) for kind in ("linspace", "arange", "grid")},
    "a kernel of the picture's width": WideKernel,
    "attention": Attention,
    "fused attention": lambda: Attention(fused=True),
}
LOCAL = {
    "BatchNorm": lambda: nn.BatchNorm2d(8),
    "InstanceNorm with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "norm over channels": lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1), nn.LocalResponseNorm(3)),
    "attention in windows": lambda: Attention(windows=True),
    "fused attention in windows": lambda: Attention(windows=True, fused=True),
    "far": far_sighted,
    "unused": Unused,
    **{
        f"resized, {mode}": lambda mode=mode: Resize(mode)
        for mode in ("nearest", "bilinear", "bilinear, corners", "bicubic")
    },
    "softmax over channels": lambda: nn.Softmax(dim=1),
}


def facts_of(part, stride):
    torch.manual_seed(0)
    return examine(AuthorNetwork(randomised(Block(part(), stride))).eval(), stride=stride)


@pytest.mark.parametrize("stride", [16, 48])
@pytest.mark.parametrize("part", WHOLE.values(), ids=WHOLE)
def test_networks_that_look_at_the_whole_picture_are_never_padded(part, stride):
    facts = facts_of(part, stride)
    assert NOTICEABLE < facts.change_by_padding < float("inf") and not facts.padded


@pytest.mark.parametrize("stride", [16, 48])
@pytest.mark.parametrize("part", LOCAL.values(), ids=LOCAL)
def test_networks_that_see_far_but_not_everything_are_padded(part, stride):
    assert facts_of(part, stride).padded


def test_a_u_net_is_padded_and_with_instance_norm_it_is_not():
    network = Milesial(widths=(4, 6), classes=2)
    assert examine(AuthorNetwork(randomised(network)).eval()).change_by_padding == 0
    for block in network.modules():
        for name, layer in block.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(block, name, nn.InstanceNorm2d(layer.num_features, affine=True))
    facts = examine(AuthorNetwork(randomised(network)).eval())
    assert facts.change_by_padding > 0.01
    assert (facts.stride, facts.min_size) == (4, (8, 8))  # a bottleneck of one pixel has no variance


def test_a_network_of_one_size_is_not_padded():
    class OneSize(nn.Conv2d):
        def forward(self, x):
            assert x.shape[2:] == (64, 64)
            return super().forward(x)

    facts = examine(AuthorNetwork(OneSize(3, 1, 3, padding=1)).eval(), stride=64)
    assert facts.change_by_padding == float("inf") and not facts.padded
