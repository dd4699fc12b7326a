"""Test-time augmentation: means that are known beforehand, and answers that turn with the picture."""

import numpy as np
import pytest
from asked import noise, place_of

from runtime.inference.tta import augmented


def test_flip_is_the_mean_of_the_picture_and_its_mirror_image():
    found = augmented(place_of, "flip")(noise(2, 3, 5, 3))
    assert found.shape == (2, 1, 3, 5)
    assert found[0, 0] == pytest.approx(np.broadcast_to(np.arange(3)[:, None] / 1000 + 0.2, (3, 5)), abs=1e-6)


def test_d4_is_the_mean_over_the_eight_symmetries():
    found = augmented(place_of, "d4")(noise(1, 3, 5, 3))
    # Four of the eight see the picture turned by 90 degrees: 5 high and 3 wide.
    assert found == pytest.approx(np.full((1, 1, 3, 5), (0.001 + 0.2 + 0.002 + 0.1) / 2), abs=1e-6)


@pytest.mark.parametrize("tta", ["flip", "d4"])
def test_pixelwise_networks_do_not_notice(answers, tta):
    batch = noise(2, 6, 9, 3)
    assert augmented(answers["softmax"], tta)(batch) == pytest.approx(answers["softmax"](batch), abs=1e-6)


@pytest.mark.parametrize("tta", ["flip", "d4"])
def test_the_answer_turns_with_the_picture(answers, tta):
    batch = noise(1, 9, 9, 3)
    run = augmented(answers["conv"], tta)
    assert run(batch[:, :, ::-1])[..., ::-1] == pytest.approx(run(batch), abs=1e-6)
    turned = np.rot90(run(np.rot90(batch, axes=(1, 2))), -1, axes=(2, 3))
    assert (np.abs(turned - run(batch)).max() < 1e-6) == (tta == "d4")


def test_no_augmentation_is_the_network_itself(answers):
    assert augmented(answers["conv"], None) is answers["conv"]
