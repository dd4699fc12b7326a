from dataclasses import replace

import pytest
import torch
from networks import make_card, make_network
from torch import nn

from runtime.card import UNetConfig
from unet_core.model import Segmenter, UNet


def test_default_has_the_tutorials_size_and_keys():
    network = UNet()
    keys = network.state_dict().keys()
    assert sum(weight.numel() for weight in network.parameters()) == 31_037_633
    assert network.state_dict()["bottleneck.conv.0.weight"].shape == (1024, 512, 3, 3)
    for index in (0, 1, 3, 4):
        assert f"downs.3.conv.{index}.weight" in keys
        assert f"ups.7.conv.{index}.weight" in keys
    assert network.state_dict()["ups.0.weight"].shape == (1024, 512, 2, 2)
    assert {"final_conv.weight", "final_conv.bias"} <= keys
    assert "downs.0.conv.0.bias" not in keys


@pytest.mark.parametrize("up", ["transpose", "bilinear", "bilinear-wide"])
@pytest.mark.parametrize("widths", [(4,), (4, 8), (3, 5, 9)])
@pytest.mark.parametrize(("channels", "classes"), [(3, 1), (1, 4)])
def test_logits_have_the_inputs_size_for_every_configuration(up, widths, channels, classes):
    config = UNetConfig(in_channels=channels, classes=classes, widths=widths, up=up)
    network = UNet(config).eval()
    with torch.inference_mode():
        logits = network(torch.rand(2, channels, config.stride, 2 * config.stride))
    assert logits.shape == (2, classes, config.stride, 2 * config.stride)


def test_bilinear_narrows_on_the_way_up():
    shapes = {
        key: tuple(value.shape) for key, value in UNet(UNetConfig(widths=(4, 8), up="bilinear")).state_dict().items()
    }
    assert shapes["bottleneck.conv.3.weight"] == (8, 8, 3, 3)
    assert shapes["ups.1.conv.0.weight"] == (8, 16, 3, 3)
    assert shapes["ups.1.conv.3.weight"] == (4, 8, 3, 3)
    assert shapes["ups.3.conv.3.weight"] == (4, 4, 3, 3)


def test_wide_bilinear_keeps_all_channels_on_the_way_up():
    config = UNetConfig(widths=(4, 8), up="bilinear-wide")
    shapes = {key: tuple(value.shape) for key, value in UNet(config).state_dict().items()}
    assert shapes["bottleneck.conv.3.weight"] == (16, 16, 3, 3)
    assert shapes["ups.1.conv.0.weight"] == (8, 24, 3, 3)
    assert shapes["ups.1.conv.3.weight"] == (8, 8, 3, 3)
    assert shapes["ups.3.conv.0.weight"] == (4, 12, 3, 3)
    assert "ups.0.weight" not in shapes


def test_the_skip_comes_first_in_the_concatenation(network):
    seen = []
    network.ups[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        network(x)
        skip = network.downs[0](x)
    assert seen[0].shape == (1, 8, 8, 8)
    assert torch.equal(seen[0][:, :4], skip)
    assert not torch.equal(seen[0][:, 4:], skip)


class MeanOfChannels(nn.Module):
    """Stands in for the network: logits are the mean of the normalised channels, and the sizes it saw are kept."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return x.mean(dim=1, keepdim=True)


def test_segmenter_normalises_pads_and_crops(card):
    card = replace(card, input=replace(card.input, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25)))
    segmenter = Segmenter(MeanOfChannels(), card)
    image = torch.tensor([[[[51, 102, 153]]]], dtype=torch.uint8)  # 0.2, 0.4, 0.6 -> 0.2, 0.4, 1.2
    probability = segmenter(image)
    assert segmenter.network.sizes == [(1, 3, 4, 4)]
    assert probability.shape == (1, 1, 1, 1)
    assert probability.item() == pytest.approx(torch.tensor(0.6).sigmoid().item(), abs=1e-6)


def test_padding_repeats_the_edge(card):
    segmenter = Segmenter(nn.Identity(), card)
    seen = []
    segmenter.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.arange(5 * 6 * 3, dtype=torch.uint8).reshape(1, 5, 6, 3)
    segmenter(image)
    assert seen[0].shape == (1, 3, 8, 8)
    assert torch.equal(seen[0][:, :, 7, :6], seen[0][:, :, 4, :6])
    assert torch.equal(seen[0][:, :, :, 7], seen[0][:, :, :, 5])


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_sigmoid_or_softmax(classes):
    network = make_network(classes=classes)
    probability = Segmenter(network, make_card(network))(torch.randint(0, 256, (2, 7, 9, 3), dtype=torch.uint8))
    assert probability.shape == (2, classes, 7, 9)
    assert probability.dtype == torch.float32
    if classes == 3:
        assert torch.allclose(probability.sum(dim=1), torch.ones(2, 7, 9), atol=1e-6)
    assert 0 < probability.min() < probability.max() < 1
