from dataclasses import replace

import numpy as np
import pytest

from export.precision.gate import int8_is_good
from export.precision.judge import measured
from export.samples import synthetic_samples
from runtime.card import Gate
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)


def limits_of(gate_function, card, samples, flips, exact):
    """Measure a run that flips this many pixels of each picture."""

    def run(batch):
        answer = exact(batch).copy()
        answer[0, 0].reshape(-1)[:flips] = 1 - answer[0, 0].reshape(-1)[:flips]
        return answer

    return measured(run, exact, card, samples, (), gate_function, QUIET)[0]


@pytest.mark.parametrize(("flips", "passed"), [(30, True), (31, False)])
def test_int8_without_masks_may_flip_half_a_percent(trained, flips, passed):
    """A picture has 6,144 pixels: 30 are 0.488 %, 31 are 0.505 %."""
    samples = replace(trained.samples, labelled=False)
    gate = limits_of(int8_is_good, trained.card, samples, flips, trained.exact)
    assert gate.flipped == flips / 6144
    assert gate.passed == passed


@pytest.mark.parametrize(("dice", "passed"), [(0.9581, True), (0.9579, False)])
def test_int8_with_masks_may_lose_two_tenths_of_a_point(dice, passed):
    gate = Gate(images="data", count=9, flipped=0.3, image_dice=dice, image_dice_fp32=0.96, kept=(), passed=False)
    assert int8_is_good(gate) == passed


def test_images_that_show_one_class_alone_prove_nothing(trained):
    def empty(batch):
        return np.full_like(trained.exact(batch), 0.01)

    samples = replace(trained.samples, labelled=False)
    gate, doubt, _ = measured(empty, empty, trained.card, samples, (), lambda _: True, QUIET)
    assert (gate.flipped, gate.passed) == (0, False)
    assert doubt.startswith("the network answers one class everywhere on the images of --data")
    assert measured(empty, empty, trained.card, synthetic_samples(trained.card), (), lambda _: True, QUIET)[0].passed


def test_images_on_which_fp32_fails_prove_nothing(trained):
    def inverse(batch):
        return 1 - trained.exact(batch)

    gate, doubt, _ = measured(inverse, inverse, trained.card, trained.samples, (), lambda _: True, QUIET)
    assert not gate.passed
    known = trained.card.training.metrics["image_dice"]
    assert doubt == (
        f"the image Dice of fp32 on --data is {gate.image_dice_fp32:.4f}, in training {known:.4f}, so it cannot show "
        "what is lost; give images and masks of what the network was trained for"
    )
    foreign = replace(trained.card, training=None)
    _, doubt, _ = measured(inverse, inverse, foreign, trained.samples, (), lambda _: True, QUIET)
    assert f"is {gate.image_dice_fp32:.4f}, so it cannot show" in doubt
