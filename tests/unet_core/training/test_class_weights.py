"""Weights of the classes by median frequency balancing, from the labels to the steps of a run."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from caching import decoder

from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.train import train
from unet_core.training import trainer
from unet_core.training.class_weights import weights_line, weights_of_classes


class Labelled(list):
    """Stands in for records of these labels."""

    def __init__(self, classes, *labels):
        super().__init__((None, np.array(one, np.uint8)) for one in labels)
        self.decoder = decoder(labels=LabelSpec(classes=classes))


def test_weights_are_the_median_frequency_over_each_classes_own():
    """Of the images that have it: sky 6 of 16 pixels, road 8 of 16, sign 2 of 8; tram is nowhere.

    The median is 3/8, so the weights are 1, 3/4 and 3/2 before they are divided by their mean, 15/16.
    """
    first = [[0, 0, 1, 1, IGNORED], [1, 1, 3, 3, IGNORED]]
    second = [[0, 0, 0, 0], [1, 1, 1, 1]]
    advanced = []
    found = weights_of_classes("median", Labelled(("sky", "road", "tram", "sign"), first, second), advanced.append)
    assert found == pytest.approx((16 / 15, 12 / 15, 1, 24 / 15))
    assert advanced == [1, 1]
    assert 6 * found[0] + 8 * found[1] + 2 * found[3] == pytest.approx(16)


def test_sqrt_takes_the_square_roots_of_the_weights():
    labelled = Labelled(("sky", "road", "tram", "sign"), [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 3]])
    found = weights_of_classes("sqrt", labelled, lambda _: None)
    assert found[0] / found[1] == pytest.approx(2 / 3)  # frequencies of 9/14 and 4/14
    assert found[3] / found[1] == pytest.approx(2)
    assert 9 * found[0] + 4 * found[1] + found[3] == pytest.approx(14)
    assert found[2] == 1
    assert weights_line("sqrt", found, labelled.decoder.labels.classes).startswith("--class-weights sqrt: from ")


def test_one_class_weighs_against_its_background():
    found = weights_of_classes("median", Labelled(("car",), [[0, 0, 0, 1]]), lambda _: None)
    assert found == pytest.approx((2 / 3, 2))
    assert weights_line("median", found, ("car",)) == "--class-weights median: from 0.67 (background) to 2.00 (car)"


def test_labels_that_do_not_count_weigh_nothing():
    assert weights_of_classes("median", Labelled(("car",), [[IGNORED]]), lambda _: None) == (1, 1)


def rows_of(best):
    return list(csv.DictReader((best.parent / "metrics.csv").read_text().splitlines()))


def test_a_run_is_trained_with_the_weights_and_a_resumed_one_too(config, capsys, monkeypatch):
    """The rectangle is a quarter of each picture."""
    used, make_loss = [], trainer.make_loss

    def note(name, classes, boundary_weight, class_weights):
        used.append(class_weights)
        return make_loss(name, classes, boundary_weight, class_weights)

    monkeypatch.setattr(trainer, "make_loss", note)
    weighted = replace(config, class_weights="median", loss="bce+dice", epochs=1)
    train(weighted)
    assert used[-1] == pytest.approx((2 / 3, 2))
    best = train(replace(weighted, epochs=2), resume=True)
    assert used[-1] == pytest.approx((2 / 3, 2))
    said = capsys.readouterr().out
    assert said.count("--class-weights median: from 0.67 (background) to 2.00 (car)\n") == 2
    unbroken = train(replace(weighted, epochs=2, out=f"{config.out}2"))
    assert [row["train_loss"] for row in rows_of(best)] == [row["train_loss"] for row in rows_of(unbroken)]
    plain = train(replace(weighted, class_weights="none", epochs=1, out=f"{config.out}3"))
    assert used[-1] is None
    assert rows_of(plain)[0]["train_loss"] != rows_of(unbroken)[0]["train_loss"]


def test_with_weights_the_network_does_not_start_from_the_share_of_rare_foreground(config, capsys, monkeypatch):
    monkeypatch.setattr("unet_core.training.auto_loss.RARE", 0.5)
    train(replace(config, class_weights="median", epochs=1))
    assert "--loss auto: bce+dice, since 25.00% of the training pixels are foreground\n" in capsys.readouterr().out
