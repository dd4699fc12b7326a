"""The pictures of the golden sample: they show faults in single layers that the usual picture hides."""

import numpy as np
import pytest
import torch
from networks import make_card, make_network
from torch import nn

from export import golden_choice
from export.golden_choice import CANDIDATES, Channels, Tf32, choose_pictures, collage, cut, tf32_error, visible_channels
from export.proof import make_golden, network_run
from runtime.devices.registry import BACKENDS, golden_tolerance
from runtime.model_file.golden import GOLDEN_SIZE, Golden, golden_image
from unet_core.model import Segmenter


def as_it_is(picture):
    return picture


@pytest.fixture
def segmenter():
    network = make_network()
    return Segmenter(network, make_card(network)).eval()


def faults_of(segmenter):
    """Pairs of a normalised layer, and how its answer changes: a channel's weights doubled, or all biases zeroed."""
    for layer in segmenter.modules():
        if isinstance(layer, nn.BatchNorm2d):
            bias = layer.bias - layer.weight * layer.running_mean / (layer.running_var + layer.eps).sqrt()
            bias = bias.detach().reshape(1, -1, 1, 1)
            for channel in range(layer.num_features):
                factor = torch.ones_like(bias)
                factor[:, channel] = 2
                yield layer, lambda answer, bias=bias, factor=factor: (answer - bias) * factor + bias
            yield layer, lambda answer, bias=bias: answer - bias


def errors_of(segmenter, samples):
    """Largest error of each sample with each fault, [faults, samples]."""
    rows = []
    for layer, change in faults_of(segmenter):
        handle = layer.register_forward_hook(lambda layer, inputs, answer, change=change: change(answer))
        rows.append([sample.error(network_run(segmenter)) for sample in samples])
        handle.remove()
    return np.array(rows)


def test_more_faults_of_single_layers_are_noticed_than_by_the_usual_picture():
    network = make_network(seed=2)
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    golden = make_golden(segmenter, card)
    usual = Golden.made(golden_image(3), network_run(segmenter))
    errors = errors_of(segmenter, [usual, golden, *golden.others])
    cpu, gpu, limit = BACKENDS["cpu"].tolerance, BACKENDS["cuda"].tolerance, golden_tolerance(card, "cuda", golden)
    assert (len(errors), limit, len(golden.others)) == (90, 5e-3, 2)
    noticed = [errors[:, 0] > cpu, errors[:, 1] > cpu, errors[:, 0] > gpu, errors[:, 1:].max(axis=1) > limit]
    assert [int(one.sum()) for one in noticed] == [70, 71, 6, 16]


def test_channels_are_multiplied_by_one_and_their_gradients_are_their_shares_of_the_answer(segmenter):
    picture = torch.from_numpy(golden_image(3)[None])
    expected = segmenter.logits(picture)
    with Channels() as channels:
        logits = segmenter.logits(picture)
    assert torch.equal(logits, expected)
    assert [one.numel() for one in channels.factors] == [4, 4, 8, 8, 16, 16, 8, 8, 8, 4, 4, 4, 1]
    (gradient,) = torch.autograd.grad(logits.sum(), channels.factors[-1:])
    assert gradient.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    # padded to 56x88: 3x3 convolutions and 2x2 transposed ones at each level, then 1x1
    whole, half, quarter = 56 * 88, 28 * 44, 14 * 22
    threes = 9 * (whole * (12 + 16 + 32 + 16) + half * (32 + 64 + 128 + 64) + quarter * (128 + 256))
    assert channels.multiplications == threes + half * 16 * 8 + whole * 8 * 4 + whole * 4


def test_cut_values_have_ten_bits_and_the_sign_that_they_had():
    values = torch.tensor([1 + 2**-10, 1 + 2**-11, -1 - 2**-10 - 2**-11, 0.0, 3e38])
    assert cut(values)[:4].tolist() == [1 + 2**-10, 1, -1 - 2**-10, 0]
    assert 0 <= 1 - cut(values)[4].item() / 3e38 < 2**-10
    whole = torch.arange(3)
    assert cut(whole) is whole and cut(0.1) == 0.1


def test_the_error_in_tf32_is_that_of_cut_weights_and_values(segmenter):
    picture = golden_image(3)
    probability = network_run(segmenter)(picture[None])[0]
    error = tf32_error(segmenter, picture, probability)
    assert 1e-5 < error < 1e-3
    with Tf32() as tf32, torch.inference_mode():
        answer = segmenter(torch.from_numpy(picture[None]))[0].numpy()
    assert error == pytest.approx(float(np.abs(answer - probability).max())) and tf32.calls == 13


def test_the_pictures_are_those_that_show_the_most_channels(segmenter):
    usual = golden_image(3)
    every = [usual, *(collage(usual.shape, np.random.default_rng(seed)) for seed in range(CANDIDATES))]
    visible = [visible_channels(segmenter, picture, as_it_is)[0] for picture in every]
    best, *others = choose_pictures(segmenter, usual, as_it_is)
    assert np.array_equal(best, every[int(np.argmax([one.mean() for one in visible]))])
    assert len(others) == 2 and not any(np.array_equal(best, other) for other in others)
    again = choose_pictures(segmenter, usual, as_it_is)
    assert all(np.array_equal(*pair) for pair in zip([best, *others], again, strict=True))


class WithoutGradients(nn.Module):
    """A network whose author switched gradients off."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def forward(self, x):
        return self.network(x)


class WithoutLayers(nn.Module):
    """A network in which there is nothing to watch."""

    def forward(self, x):
        return x[:, :1]


@pytest.mark.parametrize("kind", ["large", "without gradients", "without layers"])
def test_pictures_are_taken_as_they_come_where_channels_cannot_be_watched(segmenter, monkeypatch, kind):
    if kind == "large":
        monkeypatch.setattr(golden_choice, "MOST_MULTIPLICATIONS", 1)
    else:
        segmenter.network = WithoutLayers() if kind == "without layers" else WithoutGradients(segmenter.network)
    usual = golden_image(3)
    first, second, third = choose_pictures(segmenter, usual, as_it_is)
    assert first is usual
    assert np.array_equal(second, collage(usual.shape, np.random.default_rng(0)))
    assert np.array_equal(third, collage(usual.shape, np.random.default_rng(1)))
    probability = network_run(segmenter)(usual[None])[0]
    assert (tf32_error(segmenter, usual, probability) is None) == (kind == "without layers")


@pytest.mark.parametrize("shape", [(*GOLDEN_SIZE, 3), (1, 1, 1), (7, 30, 16)], ids=str)
def test_collages_have_any_shape_and_differ_by_seed(shape):
    first, second = (collage(shape, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.shape == shape and first.dtype == np.uint8
    assert np.array_equal(first, collage(shape, np.random.default_rng(0))) and not np.array_equal(first, second)


def test_a_sample_of_many_classes_has_one_picture():
    network = make_network(classes=14)
    card = make_card(network)
    golden = make_golden(Segmenter(network, card).eval(), card)
    assert golden.others == () and golden.tf32_error is not None
