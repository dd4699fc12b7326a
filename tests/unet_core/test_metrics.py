import numpy as np
import pytest

from unet_core.metrics import BinaryMetrics


def masks(*rows):
    return np.array(rows, np.uint8)


def test_all_figures_by_hand():
    metrics = BinaryMetrics()
    first = metrics.add(masks([1, 1, 0, 0]), masks([1, 0, 1, 0]))  # TP 1, FP 1, FN 1, TN 1
    second = metrics.add(masks([1, 1, 1, 1, 0, 0]), masks([1, 1, 1, 1, 1, 0]))  # TP 4, FN 1, TN 1
    assert (first, second) == (0.5, 8 / 9)
    assert metrics.summary() == {
        "accuracy": pytest.approx(7 / 10),
        "image_dice": pytest.approx((0.5 + 8 / 9) / 2),
        "pixel_dice": pytest.approx(10 / 13),
        "iou": pytest.approx(5 / 8),
    }


def test_both_empty_is_one_and_a_false_alarm_is_zero():
    metrics = BinaryMetrics()
    assert metrics.add(masks([0, 0]), masks([0, 0])) == 1.0
    assert metrics.pixel_dice == metrics.iou == metrics.accuracy == 1.0
    assert metrics.add(masks([1, 0]), masks([0, 0])) == 0.0
    assert metrics.image_dice == 0.5
    assert metrics.pixel_dice == 0.0


def test_figures_do_not_depend_on_how_the_set_is_cut():
    random = np.random.default_rng(0)
    pairs = [
        (random.integers(0, 2, (5, 7)).astype(np.uint8), random.integers(0, 2, (5, 7)).astype(np.uint8))
        for _ in range(6)
    ]
    together, flat = BinaryMetrics(), BinaryMetrics()
    for predicted, truth in pairs:
        together.add(predicted, truth)
    flat.add(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    assert together.pixel_dice == flat.pixel_dice == flat.image_dice
    assert together.image_dice != pytest.approx(together.pixel_dice, abs=1e-6)


def test_masks_of_different_size_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        BinaryMetrics().add(masks([1, 0]), masks([1, 0, 1]))
