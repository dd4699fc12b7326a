"""The images that were segmented worst: their order, those of several processes, their pictures."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from folders import write_pair
from networks import make_card, make_network

from runtime.image import fit, load_image
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.worst_images import Worst


def worst_of(items, limit=3):
    worst = Worst(limit)
    for index, dice in items:
        labels = np.full((1, 1), index, np.uint8)
        worst.add(index, labels, labels + 1, dice)
    return worst


def kept(worst):
    return [(item.index, item.dice, int(item.predicted[0, 0]), int(item.truth[0, 0])) for item in worst.items]


def test_the_worst_come_first_and_ties_by_index():
    worst = worst_of([(4, 0.5), (0, 0.9), (3, 0.5), (1, 0.1), (6, 1.0), (2, 0.5), (5, 0.5)])
    assert kept(worst) == [(1, 0.1, 1, 2), (2, 0.5, 2, 3), (3, 0.5, 3, 4)]
    assert kept(worst_of([(7, 1.0)])) == [(7, 1.0, 7, 8)]


def test_the_worst_of_two_processes_are_the_worst_of_one():
    random = np.random.default_rng(0)
    items = [(index, float(random.integers(0, 4)) / 4) for index in range(20)]
    merged, other = worst_of(items[::2]), worst_of(items[1::2])
    merged.merge(pickle.loads(pickle.dumps(other)))
    assert kept(merged) == kept(worst_of(items))
    merged.merge(Worst(3))
    assert kept(merged) == kept(worst_of(items))


@pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])
@pytest.mark.parametrize("original", [True, False])
def test_a_poor_images_picture_has_the_size_of_its_labels(tmp_path, how, original):
    card = make_card(make_network(in_channels=1))
    write_pair(tmp_path, "val", "v0", size=(40, 90), seed=0)
    (pair,) = find_pairs(tmp_path, "val")
    spec, labels = replace(card.input, fit=how), LabelSpec(classes=card.output.classes)
    records = Records([pair], SampleDecoder(input=spec, labels=labels, truth_at_original=original))
    worst = Worst(1)
    worst.add(0, records[0][1], records[0][1], 0.0)
    picture = worst.picture(records, worst.items[0])
    assert picture.shape[:2] == records[0][1].shape == ((40, 90) if original or how == "native" else (32, 48))
    expected = load_image(pair.image) if original else fit(load_image(pair.image, "L"), spec).image
    assert np.array_equal(picture, expected)
