"""Weights are found in every place where programs keep them, and of two kinds the one that was asked for."""

import time

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import load_checkpoint
from unet_core.networks.weights import load_weights_into
from unet_core.weight_files.finder import ENTRIES, is_averaged, is_state_dict


def net(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    network[1].running_mean.normal_()
    return network


RAW, AVERAGE = net(1).state_dict(), net(2).state_dict()


def prefixed(prefix, weights=RAW):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def averaged_model():
    """The state dict of PyTorch's AveragedModel: module.* and n_averaged."""
    average = AveragedModel(net(2))
    weights = average.state_dict()
    assert "n_averaged" in weights and "module.0.weight" in weights
    return weights


@pytest.fixture
def load(tmp_path):
    """Save a content, load it into a network, and return which weights it got, and the notes."""

    def load(content, choice=None):
        torch.save(content, tmp_path / "x.pth")
        network = net(0)
        notes = load_weights_into(network, tmp_path / "x.pth", choice)
        got = network.state_dict()
        for name, weights in (("raw", RAW), ("ema", AVERAGE)):
            if all(torch.equal(value, got[key]) for key, value in weights.items()):
                return name, notes
        raise AssertionError("other weights were loaded")

    return load


@pytest.mark.parametrize("entry", [None, *ENTRIES, "unet", "checkpoint"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "model.net.", "net._orig_mod.", "segmenter.unet."]
)
def test_any_entry_and_any_prefix(load, entry, prefix):
    content = prefixed(prefix)
    assert load(content if entry is None else {entry: content, "epoch": 3}) == ("raw", ())


def test_entries_within_entries_and_losses_beside_the_network(load):
    assert load({"model": {"state_dict": RAW}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}) == ("raw", ())
    beside = {"criterion.weight": torch.ones(2), "val_dice.total": torch.ones(1)}
    name, notes = load({"state_dict": prefixed("net.") | beside})
    assert name == "raw"
    assert notes == ("left out beside the network's weights: criterion.weight, val_dice.total",)


def test_old_weights_have_no_counters_of_batches(load):
    old = {name: value for name, value in RAW.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == len(RAW) - 1
    assert load(old) == ("raw", ())


BOTH = {
    "timm": ({"state_dict": RAW, "state_dict_ema": AVERAGE}, "'state_dict'", "'state_dict_ema'"),
    "torchvision": ({"model": RAW, "model_ema": averaged_model()}, "'model'", "'model_ema' with the prefix 'module.'"),
    "plain": ({"net": RAW, "ema": AVERAGE}, "'net'", "'ema'"),
    "nested": ({"model": {"raw": RAW, "ema": AVERAGE}}, "'model.raw'", "'model.ema'"),
    "average first": ({"ema": AVERAGE, "params": RAW}, "'params'", "'ema'"),
    "wrapped average": ({"model": RAW, "ema": {"module": AVERAGE, "updates": 3}}, "'model'", "'ema.module'"),
}


@pytest.mark.parametrize("name", BOTH)
def test_of_weights_and_their_average_one_is_chosen_and_named(load, name):
    content, raw, average = BOTH[name]
    kinds = f"the weights as trained, under {raw}", f"the moving average of the weights, under {average}"
    expected = f"{kinds[0]}, are taken; --weights ema takes {kinds[1]}"
    assert load(content) == ("raw", (expected,))
    assert load(content, "raw") == ("raw", (expected,))
    assert load(content, "ema") == ("ema", (f"{kinds[1]}, is taken; --weights raw takes {kinds[0]}",))


def test_an_average_within_a_lightning_module(load):
    content = {"state_dict": prefixed("model.") | prefixed("ema.", averaged_model())}
    assert load(content)[0] == "raw"
    assert load(content, "ema")[0] == "ema"
    assert load(content)[1] == (
        "the weights as trained, under 'state_dict' with the prefix 'model.', are taken; --weights ema takes the "
        "moving average of the weights, under 'state_dict' with the prefix 'ema.module.'",
    )


def test_lightnings_averaging_swaps_the_entries(load):
    content = {"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {"n_averaged": torch.tensor(3)}}
    assert load(content)[0] == "ema"
    assert load(content)[1][0].startswith(
        "the moving average of the weights, under 'state_dict', is taken; --weights raw"
    )
    assert load(content, "raw")[0] == "raw"
    assert load(content, "ema")[0] == "ema"


@pytest.mark.parametrize("content", [averaged_model(), {"ema": AVERAGE}, {"model_ema": averaged_model()}])
def test_an_average_alone_is_told(load, content):
    name, notes = load(content)
    assert name == "ema" and notes[0].endswith("are a moving average; there are no others")
    assert load(content, "ema")[0] == "ema"
    with pytest.raises(
        ConfigError, match=r"--weights raw: .*x\.pth has nothing but a moving average of its weights, f"
    ):
        load(content, "raw")


def test_an_average_that_is_not_there_is_refused(load, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load({"state_dict": RAW}, "ema")
    assert str(caught.value) == (
        f"--weights ema: {tmp_path / 'x.pth'} has no moving average of its weights, found some under 'state_dict'; "
        "leave the option out"
    )


@pytest.mark.parametrize("entries", ["ema.shadow_params", "state.ema.shadow_params", "shadow_params"])
def test_an_average_without_names_is_told(load, tmp_path, entries):
    content = [torch.ones(1)]
    for entry in reversed(entries.split(".")):
        content = {entry: content, "decay": 0.9}
    naming = (
        f"the moving average of the weights, under '{entries}', is a list without names; to have it, call "
        "ema.copy_to(model.parameters()) in its own program, and save model.state_dict()"
    )
    note = f"the weights under 'state_dict' are taken; {naming}"
    assert load({"state_dict": RAW} | content) == ("raw", (note,))
    assert load({"state_dict": RAW} | content, "raw") == ("raw", (note,))
    with pytest.raises(ConfigError) as caught:
        load({"state_dict": RAW} | content, "ema")
    assert str(caught.value) == f"--weights ema: {tmp_path / 'x.pth'}: {naming}"


@pytest.mark.parametrize("wrapped", [lambda weights: weights, lambda weights: {"state_dict": weights}])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_loss_with_weights_beside_the_networks_own(load, wrapped, prefix):
    beside = {f"{prefix}loss_fn.weight": torch.ones(2), f"{prefix}train_metric.total": torch.ones(1)}
    name, notes = load(wrapped(prefixed(prefix) | beside))
    assert name == "raw"
    assert notes == (f"left out beside the network's weights: {prefix}loss_fn.weight, {prefix}train_metric.total",)


def test_a_layer_that_has_the_name_of_a_loss_is_the_networks(tmp_path):
    network = nn.ModuleDict({"loss_head": nn.Conv2d(3, 1, 1), "first": nn.Conv2d(3, 1, 1)})
    torch.save(network.state_dict() | {"loss_fn.weight": torch.ones(2)}, tmp_path / "x.pth")
    assert load_weights_into(network, tmp_path / "x.pth") == ("left out beside the network's weights: loss_fn.weight",)


def test_two_networks_of_one_kind_are_not_guessed_between(load):
    with pytest.raises(CheckpointError, match=r"weights of this network under 'generator' and under 'old'; save"):
        load({"generator": RAW, "old": AVERAGE})
    with pytest.raises(CheckpointError, match=r"with the prefix 'student\.' and at the top of the file with"):
        load(prefixed("student.") | prefixed("teacher.", AVERAGE))
    assert load({"generator": RAW, "old": dict(RAW)}) == ("raw", ())
    name, notes = load({"model": RAW, "net": AVERAGE})
    assert (name, notes) == ("raw", ("the weights under 'model' are taken; different ones are under 'net'",))
    for entry in ("best", "best_model"):
        name, notes = load({entry: AVERAGE, "model": RAW})
        assert name == "raw"
        assert notes == (f"the weights under 'model' are taken; different ones are under '{entry}'",)
    assert load({"model": RAW, "best": dict(RAW)}) == ("raw", ())


def test_words_of_averages():
    assert all(map(is_averaged, ("ema", "state_dict_ema", "model_ema.", "ema_model.module.", "swa_net", "EMA")))
    assert not any(map(is_averaged, ("schema", "gemma.", "average_pool", "cinema", "model.")))


def test_state_dicts_are_names_with_dense_tensors():
    tensor = torch.ones(1)
    assert is_state_dict({"a": tensor}) and is_state_dict({"a": tensor, "mask_values": [0, 255]})
    for value in ({}, {0: tensor}, {"a": 1}, {"a": tensor, "b": 1}, [tensor], {"a": tensor.to_sparse()}, None):
        assert not is_state_dict(value)


MANY = 20_000
ONE = torch.zeros(1)


@pytest.mark.parametrize(
    "content",
    [
        {f"ema_{index}.x": ONE for index in range(MANY)},
        {f"a{index}.weight": ONE for index in range(MANY)},
        {f"downs.0.conv.{index}": ONE for index in range(MANY)},
        {"model." * MANY + "x": ONE, "model." * MANY + "y": ONE},
        {f"entry {index}": {"x": ONE} for index in range(MANY // 4)},
    ],
    ids=["prefixes", "parts", "names", "prefix of prefixes", "entries"],
)
def test_names_by_the_thousand_are_searched_in_no_time(tmp_path, content):
    """The time grew with the square of their number: minutes for a file of 2 MB."""
    torch.save(content, tmp_path / "x.pth")
    begun = time.process_time()
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(CheckpointError):
        load_weights_into(net(1), tmp_path / "x.pth")
    assert time.process_time() - begun < 4
