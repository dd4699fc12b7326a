import numpy as np
import pytest

from export.precision.judge import MOST_TRIED, Judge, measured, tried_together
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_flip_all(trained, value):
    def broken(batch):
        return np.full_like(trained.exact(batch), value)

    judge = Judge(trained.exact, trained.samples.pictures(2), trained.card)
    assert judge.cost(broken) == (1.0, 1.0)
    assert judge.cost(trained.exact) == (0.0, 0.0)
    gate, _, finite = measured(broken, trained.exact, trained.card, trained.samples, (), lambda _: True, QUIET)
    assert (gate.flipped, gate.passed, finite) == (1.0, False, False)


def test_flipped_pixels_by_hand(trained):
    """The first eight rows of each picture say the contrary."""

    def other(batch):
        answer = trained.exact(batch).copy()
        answer[:, :, :8] = 1 - answer[:, :, :8]
        return answer

    share = 8 / trained.card.input.size[0]
    assert Judge(trained.exact, trained.samples.pictures(4), trained.card).cost(other)[0] == share
    asked = []
    gate, doubt, finite = measured(
        other, trained.exact, trained.card, trained.samples, ("a",), lambda gate: bool(asked.append(gate)), QUIET
    )
    assert (asked, doubt, finite) == ([gate], None, True)
    assert gate.image_dice_fp32 - gate.image_dice > 0.01
    assert (gate.flipped, gate.kept, gate.passed) == (pytest.approx(share), ("a",), False)


@pytest.mark.parametrize("count", [0, 1, 24, 25, 31, 500])
def test_layers_are_tried_in_few_groups_of_neighbours(count):
    layers = [f"layer{index}" for index in range(count)]
    groups = tried_together(layers)
    assert [layer for group in groups.values() for layer in group] == layers and len(groups) <= MOST_TRIED
    if count <= MOST_TRIED:
        assert list(groups) == layers
    if count == 31:
        assert groups["layer0 to layer1"] == ["layer0", "layer1"] and "layer30" in groups
