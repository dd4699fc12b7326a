"""docs/design.md, "How to add": each recipe is tried with a throw-away entry."""

import csv
from dataclasses import replace

import numpy as np
import torch
from families import Milesial, randomised
from networks import make_network

from unet_core import foreign, losses
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.conversion import layouts
from unet_core.conversion.layouts import SourceLayout
from unet_core.conversion.samples import ConvertOptions, Sample, SourceData
from unet_core.evaluation.metrics import METRICS, Metric
from unet_core.foreign import FAMILIES, Family
from unet_core.losses import LOSSES, LossEntry
from unet_core.train import train


def squared_error(logits, labels):
    """Squared error of each pixel with one class: [n, h, w] -> [n, h, w]."""
    return (logits.sigmoid() - (labels == 1).float()).square()


def test_a_loss_is_one_entry(monkeypatch, config):
    entry = LossEntry(name="brier", classes="one", pixel=squared_error)
    monkeypatch.setattr(losses, "LOSSES", (*LOSSES, entry))
    logits, labels = torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [255, 0]]], dtype=torch.uint8)
    assert losses.make_loss("brier", 1)(logits, labels).item() == 0.25
    train(replace(config, loss="brier", epochs=1))
    assert load_checkpoint(f"{config.out}/model.pth").card.training.epochs == 1


def test_a_layout_is_one_entry(monkeypatch, tmp_path):
    sample = Sample(image=tmp_path / "a.png", name="a", labels=lambda size: np.ones(size, np.uint8))

    def read(source, options):
        return SourceData(samples=[sample], classes=("cell",))

    entry = SourceLayout("a file cells.txt", lambda source: (source / "cells.txt").is_file(), read)
    monkeypatch.setattr(layouts, "LAYOUTS", {"cells": entry, **layouts.LAYOUTS})
    (tmp_path / "cells.txt").write_text("")
    name, found = layouts.read_source(tmp_path, "auto", ConvertOptions())
    assert (name, found.samples, found.classes) == ("cells", [sample], ("cell",))


def test_a_metric_is_one_entry(monkeypatch, config, capsys):
    """It is in the card, in metrics.csv and in the table."""

    def recall(images):
        """Share of the foreground that was found; counts are right, predicted and true pixels, int64 [images, 3]."""
        right, _, there = images.sum(axis=0)
        return right / there

    monkeypatch.setitem(METRICS, "recall", Metric(label="recall", of_class=recall))
    train(replace(config, epochs=1))
    card = load_checkpoint(f"{config.out}/model.pth").card
    assert 0 <= card.training.metrics["recall"] <= 1
    with open(f"{config.out}/metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["recall"]) == card.training.metrics["recall"]
    assert "recall" in "".join(capsys.readouterr())


def test_a_checkpoint_family_is_one_entry(monkeypatch, tmp_path):
    """A project that has the structure of ours under other names."""
    ours = make_network(widths=(4, 6))
    names = {"downs": "enc", "bottleneck": "mid", "ups": "dec", "final_conv": "head"}
    theirs = {}
    for key, value in ours.state_dict().items():
        first, _, rest = key.partition(".")
        theirs[f"{names[first]}.{rest}"] = value
    torch.save(theirs, tmp_path / "theirs.pth")
    family = Family(
        name="abbreviated",
        telltale=r"(enc|dec)\.\d+\.",
        down="enc.{level}.conv.{part}",
        bottleneck="mid.conv.{part}",
        transposed="dec.{even}",
        decoder="dec.{odd}.conv.{part}",
        final="head",
        ups=("transpose",),
        several="softmax",
    )
    monkeypatch.setattr(foreign, "FAMILIES", (*FAMILIES, family))
    loaded = load_checkpoint(tmp_path / "theirs.pth")
    assert (loaded.family, loaded.card.architecture.widths) == ("abbreviated", (4, 6))
    image = torch.rand(1, 3, 16, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.network()(image), ours(image))
    milesial = dict(randomised(Milesial(widths=(4, 6))).state_dict())
    assert foreign.recognise(milesial).family == "milesial"


def test_a_setting_names_the_loss():
    assert TrainConfig(data="d", out="o", loss="focal").loss_name == "focal"
