"""Outputs of somebody's network, and what trying it finds out."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runtime.errors import ConfigError
from unet_core.networks.author_network import AuthorNetwork, Facts, examine


class Net(nn.Module):
    """A convolution whose answer is changed by a function; sides have to be multiples of `stride`, `least` or more."""

    def __init__(self, change=lambda x: x, *, channels=3, classes=1, stride=1, least=1, narrowest=1):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 3, padding=1)
        self.change, self.stride, self.least, self.narrowest = change, stride, least, narrowest

    def forward(self, x):
        if x.shape[2] % self.stride or x.shape[3] % self.stride or min(x.shape[2:]) < self.least:
            raise RuntimeError("wrong size")
        if x.shape[3] < self.narrowest:
            raise RuntimeError("too narrow")
        return self.change(self.layer(x))


def wrapped(*arguments, key=None, **named):
    return AuthorNetwork(Net(*arguments, **named), key=key).eval()


@pytest.mark.parametrize(
    ("named", "facts"),
    [
        ({}, (3, 1, 1, (1, 1))),
        ({"channels": 1, "classes": 4}, (1, 4, 1, (1, 1))),
        ({"stride": 32}, (3, 1, 32, (32, 32))),
        ({"stride": 8, "least": 20}, (3, 1, 8, (24, 24))),
        ({"least": 5}, (3, 1, 1, (5, 5))),
        ({"least": 5, "narrowest": 11}, (3, 1, 1, (5, 11))),
        ({"stride": 16, "narrowest": 40}, (3, 1, 16, (16, 48))),
        ({"channels": 2}, (2, 1, 1, (1, 1))),
        ({"channels": 4, "stride": 2}, (4, 1, 2, (2, 2))),
        ({"channels": 16}, (16, 1, 1, (1, 1))),
    ],
)
def test_channels_classes_stride_and_least_size_are_found_by_trying(named, facts):
    channels, classes, stride, least = facts
    expected = Facts(in_channels=channels, classes=classes, stride=stride, min_size=least)
    assert examine(wrapped(**named)) == expected


@pytest.mark.parametrize(
    ("change", "classes", "end"),
    [
        (lambda x: x, 1, "logits"),
        (lambda x: 0.5 + x / 8, 1, "logits"),  # it leaves 0..1 on brighter pictures alone
        (torch.sigmoid, 1, "sigmoid"),
        (torch.sigmoid, 3, "sigmoids"),
        (lambda x: x.softmax(1), 3, "softmax"),
        (lambda x: x.softmax(1), 1, "sigmoid"),
    ],
)
def test_the_end_is_told_by_the_answers(change, classes, end):
    torch.manual_seed(0)
    assert examine(wrapped(change, classes=classes)).looks_like == end


@pytest.mark.parametrize(
    ("stride", "least", "smallest"), [(12, 1, 12), (6, 61, 66), (48, 60, 96), (7, 65, 70), (100, 1, 100), (3, 64, 66)]
)
def test_a_stride_that_is_no_power_of_two_is_given(stride, least, smallest):
    found = examine(wrapped(stride=stride, least=least), stride=stride)
    assert (found.stride, found.min_size) == (stride, (smallest, smallest))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_stride_that_is_not_found_is_asked_for(channels):
    with pytest.raises(ConfigError) as caught:
        examine(wrapped(stride=12, channels=channels))
    assert str(caught.value) == (
        f"--network: takes no pictures of 1 to 16 channels: to [1, {channels}, 128, 128] it raises RuntimeError: wrong "
        "size; if its sides need another divisor, give --stride; if it takes one size only, --fixed-size"
    )


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.float64, "float64")])
def test_weights_of_another_type_are_told(dtype, name):
    with pytest.raises(ConfigError, match=rf"--network: its weights are {name}, expected float32; call \.float\(\)"):
        examine(wrapped().to(dtype))


def test_more_channels_than_16_are_refused():
    with pytest.raises(
        ConfigError, match=r"takes no pictures of 1 to 16 channels: to \[1, 3, 128, 128\] it raises Runtime"
    ):
        examine(wrapped(channels=17))


@pytest.mark.parametrize(("kind", "count"), [("RGB", 3), ("L", 1)])
def test_a_network_that_takes_any_channels_takes_those_that_are_named(kind, count):
    anything = wrapped()
    anything.network.forward = lambda x: x.mean(dim=1, keepdim=True)
    assert examine(anything, channels=kind).in_channels == count
    with pytest.raises(
        ConfigError, match=rf"takes no pictures of {count} channels?: to \[1, {count}, 128, 128\] it raises"
    ):
        examine(wrapped(channels=2), channels=kind)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda x: {"out": x, "aux": -x}, "out"),
        (lambda x: {"out": x}, None),
        (lambda x: (x, -x), "0"),
        (lambda x: [x], None),
        (lambda x: SimpleNamespace(logits=x, loss=None), "logits"),
        (lambda x: SimpleNamespace(logits=x, loss=None), None),
    ],
)
def test_one_of_several_outputs_is_chosen(change, key):
    network = wrapped(change, key=key)
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(network(x), network.network.layer(x))


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        (lambda x: {"out": x, "aux": x}, None, "--network: has several outputs; found out, aux; give one of them by"),
        (lambda x: {"out": x}, "main", "--output-key main: is none of the network's outputs; found out; give one"),
        (lambda x: [], None, "has several outputs; found no tensors"),
        (
            lambda x: x[:, :, ::2, ::2],
            None,
            r"answers [1, 1, 64, 64] to pictures of [1, 3, 128, 128], expected [1, classes, ",
        ),
        (lambda x: x.mean((2, 3)), None, "answers [1, 1] to pictures of"),
        (lambda x: x > 0, None, "answers torch.bool, expected logits or probabilities as floating point"),
        (
            lambda x: x / 0 - x / 0,
            None,
            "answers NaN or infinity to a noisy picture of values in 0..1, expected finite",
        ),
        (lambda x: x + torch.rand(1), None, "answers the same picture in two ways; expected none of dropout, noise"),
    ],
)
def test_answers_that_are_no_map_of_the_picture_are_refused(change, key, message):
    with pytest.raises(ConfigError) as caught:
        examine(wrapped(change, key=key))
    assert message in str(caught.value) and "\n" not in str(caught.value)
