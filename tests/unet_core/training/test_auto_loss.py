"""The loss of --loss auto, by the share of foreground; the start of a network whose foreground is rare."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.card import UNetConfig
from runtime.errors import CheckpointError
from unet_core.checkpoint import load_checkpoint
from unet_core.model import UNet
from unet_core.train import train
from unet_core.training import trainer
from unet_core.training.auto_loss import advice_on_loss, choose_loss, start_from_share
from unet_core.training.run_state import check_loss

SEVERAL = ("background", "car", "tram")


@pytest.mark.parametrize(
    ("loss", "classes", "share", "name"),
    [
        ("auto", ("car",), 0.001, "bce+dice"),
        ("auto", ("car",), 0.0099, "bce+dice"),
        ("auto", ("car",), 0.01, "bce"),
        ("auto", ("car",), 0.5, "bce"),
        ("auto", ("car",), None, "bce"),
        ("auto", SEVERAL, 0.001, "ce+dice"),
        ("auto", SEVERAL, 0.2, "ce"),
        ("bce", ("car",), 0.001, "bce"),
        ("focal", SEVERAL, 0.001, "focal"),
    ],
)
def test_rare_foreground_takes_a_loss_with_dice_unless_one_is_given(config, loss, classes, share, name):
    assert choose_loss(replace(config, loss=loss, classes=classes), share) == name


def test_a_network_starts_near_the_share_of_foreground():
    torch.manual_seed(0)
    for classes in (1, 3):
        network = UNet(UNetConfig(widths=(4, 8), classes=classes))
        start_from_share(network, 0.002, background=1)
        network.final_conv.weight.data.zero_()
        logits = network(torch.rand(2, 3, 16, 16))
        found = logits.sigmoid() if classes == 1 else logits.softmax(dim=1)
        expected = [0.002] if classes == 1 else [0.001, 0.998, 0.001]
        assert found.mean(dim=(0, 2, 3)).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_was_given_for_rare_foreground_is_advised_against(config):
    assert advice_on_loss(replace(config, loss="bce"), 0.001) == (
        "leave out --loss bce: --loss auto suits foreground of 0.10% of the training pixels"
    )
    assert [advice_on_loss(config, 0.001), advice_on_loss(replace(config, loss="bce"), 0.3)] == [None, None]


@pytest.fixture
def rare(config, tmp_path):
    """Settings for pictures of which 0.2 % are foreground: one bright square of 2x2 pixels in 32x64."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "rare" / f"{split}_{kind}").mkdir(parents=True)
        for index in range(count):
            image, mask = random.normal(100, 20, (32, 64, 3)), np.zeros((32, 64), np.uint8)
            y, x = 2 * random.integers(1, 14), 2 * random.integers(1, 30)
            image[y : y + 2, x : x + 2], mask[y : y + 2, x : x + 2] = 240, 255
            picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            picture.save(tmp_path / "rare" / f"{split}_images" / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "rare" / f"{split}_masks" / f"{index}.png")
    return replace(config, data=str(tmp_path / "rare"), width=64, lr=3e-3, epochs=7, batch_size=1, augment="off")


def rows_of(best):
    return list(csv.DictReader((best.parent / "metrics.csv").read_text().splitlines()))


def test_rare_foreground_is_found_and_the_loss_is_told(rare, capsys):
    best = train(rare)
    said = capsys.readouterr()
    share = "since 0.20% of the training pixels are foreground; the network starts from that share"
    assert said.out.count(f"--loss auto: bce+dice, {share}\n") == 1
    assert max(float(row["pixel_dice"]) for row in rows_of(best)) > 0.5  # with bce it stays at 0.004
    assert load_checkpoint(best.parent / "my_checkpoint.pth.tar").extra["loss"] == "bce+dice"


def test_balanced_foreground_keeps_its_loss_without_a_word(config, capsys):
    best = train(config)
    assert "--loss auto" not in capsys.readouterr().out
    assert load_checkpoint(best.parent / "my_checkpoint.pth.tar").extra["loss"] == "bce"


def test_a_resumed_run_keeps_its_loss(rare, capsys):
    train(replace(rare, epochs=2))
    best = train(replace(rare, epochs=3), resume=True)
    assert capsys.readouterr().out.count("--loss auto") == 1
    assert load_checkpoint(best.parent / "my_checkpoint.pth.tar").extra["loss"] == "bce+dice"
    unbroken = train(replace(rare, epochs=3, out=f"{rare.out}2"))
    assert [row["train_loss"] for row in rows_of(best)] == [row["train_loss"] for row in rows_of(unbroken)]


def test_the_loss_of_a_checkpoint_is_checked_and_older_runs_have_the_default(config):
    assert [check_loss(state, config) for state in ({}, {"loss": "dice"})] == ["bce", "dice"]
    with pytest.raises(CheckpointError) as caught:
        check_loss({"loss": "ce"}, config)
    assert str(caught.value) == "loss: found 'ce', expected one of bce, dice, bce+dice, focal"


def test_a_moving_average_starts_from_the_share_too(rare, monkeypatch):
    started = []
    monkeypatch.setattr(trainer, "start_from_share", lambda network, *_: started.append(network))
    train(replace(rare, epochs=1, ema=0.9))
    assert len(started) == len({id(network) for network in started}) == 2
