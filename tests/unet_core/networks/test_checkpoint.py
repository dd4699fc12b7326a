"""Files of well-known programs load into their networks."""

import argparse
import pathlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from authors import write_author
from families import OlderMilesial, randomised
from networks import make_card
from networks import make_network as thin_network

from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import load_checkpoint, save_checkpoint
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import checkpoint_of, open_checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(network):
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(picture)


def nnunets(network):
    """A checkpoint_final.pth."""
    plans = {"dataset_name": "Dataset001", "configurations": {"2d": {"patch_size": [32, 48]}}}
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "epoch_start_timestamps": [1.0], "dice": [np.arange(2.0)]},
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {"plans": plans, "configuration": "2d", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def test_nnunets_checkpoint_with_deep_supervision(folder):
    network = write_author(folder, levels=3)
    torch.save(nnunets(network), "checkpoint_final.pth")
    options = NetworkOptions(source="net.py:Net", arguments={"levels": 3})
    with pytest.raises(ConfigError, match=r"--network: has several outputs; found 0, 1, 2; give one of them by --outp"):
        open_checkpoint(pathlib.Path("checkpoint_final.pth"), options, CardChanges())
    options = replace(options, output_key="0")
    loaded = open_checkpoint(pathlib.Path("checkpoint_final.pth"), options, CardChanges())
    assert torch.equal(answers(loaded.network()), answers(network)[0])
    assert loaded.notes == ()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("checkpoint_final.pth")
    assert str(caught.value).startswith(
        "checkpoint_final.pth: is a checkpoint of nnU-Net; it is not a U-Net that is known here"
    )


def test_lightnings_checkpoint(folder):
    network = write_author(folder)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": value for name, value in network.state_dict().items()}
        | {"loss_fn.pos_weight": torch.ones(1)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0), "dirpath": "runs"}},
        "hparams_name": "args",
        "hyper_parameters": {
            "args": argparse.Namespace(lr=np.float32(0.1), data=pathlib.Path("/data"), size=np.int64(3)),
        },
        "lr_schedulers": [{"best": np.float64(0.5)}],
    }
    torch.save(content, "last.ckpt")
    loaded = open_checkpoint(pathlib.Path("last.ckpt"), NetworkOptions(source="net.py:Net"), CardChanges())
    assert torch.equal(answers(loaded.network()), answers(network))
    assert loaded.notes == ("left out beside the network's weights: loss_fn.pos_weight",)


def test_milesials_older_network_by_its_own_code(folder):
    network = randomised(OlderMilesial(widths=(4, 6))).eval()
    torch.save(network.state_dict(), "older.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("older.pth")
    assert str(caught.value).startswith("older.pth: is milesial's U-Net from before March 2020, ")
    loaded = open_checkpoint(pathlib.Path("older.pth"), NetworkOptions(source="families:OlderMilesial"), CardChanges())
    assert torch.equal(answers(loaded.network()), answers(network))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"model": {"state": 1}}, "holds no weights; expected names and tensors, or these under 'state_dict'"),
        (
            {"model": {"encoder.weight": torch.ones(1)}},
            "does not fit the network; 5 missing: encoder.bias, ",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(folder, weights, said):
    write_author(folder)
    torch.save(weights, "x.pth")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(pathlib.Path("x.pth"), NetworkOptions(source="net.py:Net"), CardChanges())
    assert str(caught.value).startswith(f"x.pth: {said}")


def test_a_file_with_a_card_of_ours_is_not_taken_for_another_network(folder):
    ours = thin_network()
    save_checkpoint("model.pth", ours.state_dict(), make_card(ours))
    (folder / "ours.py").write_text("from networks import make_network\n")
    with pytest.raises(
        ConfigError, match=r"--network: model\.pth has a card, which tells its network; leave --network"
    ):
        open_checkpoint(pathlib.Path("model.pth"), NetworkOptions(source="ours.py:make_network"), CardChanges())
    assert open_checkpoint(pathlib.Path("model.pth"), NetworkOptions(), CardChanges()).card == make_card(ours)


def test_options_of_no_network_are_refused():
    options = NetworkOptions(activation="sigmoid")
    with pytest.raises(ConfigError, match=r"network: has options and no source, such as FILE\.py:NAME, that makes it"):
        open_checkpoint(pathlib.Path("x.pth"), options, CardChanges())


class Ends(torch.nn.Module):
    """A convolution and an end."""

    def __init__(self, end, classes):
        super().__init__()
        self.layer, self.end = torch.nn.Conv2d(3, classes, 3, padding=1), end

    def forward(self, x):
        return self.end(self.layer(x))


def ends(end, classes, activation):
    torch.manual_seed(0)
    return checkpoint_of(Ends(end, classes).eval(), "net", NetworkOptions(activation=activation), CardChanges())


@pytest.mark.parametrize(
    ("end", "classes", "activation", "message"),
    [
        (
            torch.sigmoid,
            1,
            None,
            r"--network: answers values in 0\.\.1 \(.*\), as if it ended in its own sigmoid; give ",
        ),
        (torch.sigmoid, 2, None, "--activation sigmoids if it does, or --activation logits if it does not$"),
        (
            lambda x: x.softmax(1),
            2,
            None,
            r"0\.\.1 that sum to 1 \(.*\), as if it ended in its own softmax; give --act",
        ),
        (torch.negative, 1, "sigmoid", "--activation sigmoid: the network answers -.* to .*, expected probabilities"),
        (torch.negative, 2, "softmax", r"expected probabilities in 0\.\.1; give --activation logits"),
        (torch.negative, 2, "sigmoids", r"expected probabilities in 0\.\.1; give --activation logits"),
        (torch.sigmoid, 2, "softmax", "--activation softmax: the classes of a pixel do not sum to 1 in the network's "),
    ],
)
def test_an_end_that_is_not_as_told_is_refused(end, classes, activation, message):
    with pytest.raises(ConfigError, match=message):
        ends(end, classes, activation)


@pytest.mark.parametrize(
    ("end", "classes", "activation", "expected"),
    [
        (torch.negative, 1, None, "sigmoid"),
        (torch.sigmoid, 1, "sigmoid", "sigmoid"),
        (torch.sigmoid, 1, "logits", "sigmoid"),  # told so, a second sigmoid follows
        (torch.sigmoid, 2, "none", "softmax"),
        (lambda x: x.softmax(1), 2, "softmax", "softmax"),
        (torch.sigmoid, 2, "sigmoids", "sigmoids"),
    ],
)
def test_an_end_as_told_is_taken(end, classes, activation, expected):
    loaded = ends(end, classes, activation)
    assert loaded.card.output.activation == expected and loaded.notes == ()
    assert loaded.network().gives_probabilities == (activation not in (None, "logits", "none"))


def test_a_softmax_told_as_sigmoids_is_noted():
    (note,) = ends(lambda x: x.softmax(1), 2, "sigmoids").notes
    assert note.startswith("the network's classes sum to 1 at every pixel") and note.endswith("--activation softmax")
