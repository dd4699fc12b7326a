"""Weights are found in whatever people save, and fit exactly or not at all."""

import pytest
import torch
from torch import nn

from runtime.errors import CheckpointError
from unet_core.networks.weights import load_weights_into
from unet_core.weight_files.finder import ENTRIES


def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


def prefixed(prefix, weights):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("entry", [None, *ENTRIES])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.net."])
def test_weights_under_any_entry_with_any_prefix_are_loaded(file, entry, prefix):
    torch.manual_seed(1)
    weights = net().state_dict()
    content = prefixed(prefix, weights)
    torch.save(content if entry is None else {entry: content, "epoch": 3}, file)
    network = net()
    load_weights_into(network, file)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_weights_that_do_not_fit_are_listed_each_way(file):
    weights = net(width=5).state_dict()
    weights["extra.weight"] = weights.pop("2.weight")
    torch.save(weights, file)
    with pytest.raises(CheckpointError) as caught:
        load_weights_into(net(), file)
    assert str(caught.value) == (
        f"{file}: does not fit the network; 1 missing: 2.weight; 1 not in the network: extra.weight; 6 of another "
        "shape: 0.weight [5, 3, 3, 3] instead of [4, 3, 3, 3], 0.bias [5] instead of [4], 1.weight [5] instead of [4], "
        "1.bias [5] instead of [4], 1.running_mean [5] instead of [4], 1.running_var [5] instead of [4]; "
        "are its arguments those of the training?"
    )


def test_of_many_keys_ten_are_listed(file):
    torch.save({f"layer{index}": torch.zeros(1) for index in range(20)}, file)
    with pytest.raises(CheckpointError, match=r"20 not in the network: layer0, .*layer9, \.\.\.; are its"):
        load_weights_into(net(), file)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": [1]}])
def test_a_file_without_weights_is_told(file, content):
    torch.save(content, file)
    with pytest.raises(
        CheckpointError, match=r"holds no weights; expected names and tensors, or these under 'state_dict'"
    ):
        load_weights_into(net(), file)


def test_weights_of_other_floating_types_become_float32_and_it_is_said(file):
    weights = {name: value.half() if value.is_floating_point() else value for name, value in net().state_dict().items()}
    torch.save(weights, file)
    network = net()
    assert load_weights_into(network, file) == ("weights stored as float16 are float32 here",)
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, weights["0.weight"].float())


class Picky(nn.Sequential):
    """A network that changes names as it loads them."""

    def load_state_dict(self, state_dict, *_, **__):
        raise KeyError(f"no\n{next(iter(state_dict))}")


def test_an_error_of_the_networks_own_loading_is_one_line(file):
    torch.save(net().state_dict(), file)
    with pytest.raises(CheckpointError) as caught:
        load_weights_into(Picky(*net()), file)
    assert str(caught.value).startswith(f"{file}: does not fit the network, whose load_state_dict raises KeyError: 'no")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused_by_name(file):
    weights = net().state_dict()
    weights["2.weight"][:] = float("nan")
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"2\.weight holds NaN or infinite weights; use an earlier checkpoint"):
        load_weights_into(net(), file)
