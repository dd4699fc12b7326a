"""The best epoch, the epochs since, and the plateaus of hand-made histories."""

import math

import pytest

from unet_core.evaluation.best_epoch import epochs_without_progress, is_best, reductions, score


def history(*scores):
    return [{"epoch": float(epoch), "pixel_dice": value} for epoch, value in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("scores", "patience", "count"),
    [
        ((), 1, 0),
        ((0.5,), 1, 0),
        ((0.0, 0.0), 1, 1),
        ((0.1, 0.2, 0.3), 1, 0),
        ((0.5, 0.5), 1, 1),
        ((0.5, 0.5, 0.6, 0.5, 0.5), 2, 1),
        ((0.5, 0.4, 0.4, 0.4, 0.4), 2, 2),
        ((0.5, 0.4, 0.4, 0.45, 0.49), 2, 2),
        ((0.5, 0.4, 0.4, 0.6, 0.5), 2, 1),
        ((0.5, 0.4, 0.6, 0.5), 2, 0),
        ((0.5, 0.4, math.nan, 0.4), 3, 1),
    ],
)
def test_reductions_of_hand_made_histories(scores, patience, count):
    assert reductions(history(*scores), patience) == count


def test_every_epochs_reductions_follow_from_the_one_before():
    """A resumed run computes the values that the unbroken one had."""
    scores = [0.1, 0.3, 0.2, 0.3, 0.31, 0.2, 0.2, 0.2, 0.2]
    assert [reductions(history(*scores[:epochs]), 2) for epochs in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("scores", "best", "waited"),
    [
        ((0.0,), True, 0),
        ((0.5, 0.6), True, 0),
        ((0.5, 0.5), False, 1),
        ((0.5, 0.7, 0.6), False, 1),
        ((0.7, 0.5, 0.6), False, 2),
        ((0.5, math.nan), False, 1),
        ((math.nan, 0.0), True, 0),
    ],
)
def test_the_best_epoch_and_the_wait_since(scores, best, waited):
    assert is_best(history(*scores)) is best
    assert epochs_without_progress(history(*scores)) == waited


def test_no_epoch_waits_for_nothing():
    assert epochs_without_progress([]) == 0


def test_epochs_with_a_validation_loss_are_chosen_by_it():
    rows = [
        {"pixel_dice": dice, "val_loss": loss} for dice, loss in ((1.0, 3.0), (0.5, 2.0), (1.0, 2.5), (1.0, math.nan))
    ]
    assert [is_best(rows[: count + 1]) for count in range(4)] == [True, True, False, False]
    assert epochs_without_progress(rows) == 2
    assert reductions(rows, 2) == 1


def test_epochs_are_chosen_by_pixel_dice():
    assert score({"pixel_dice": 0.25, "image_dice": 0.75, "iou": 0.5}) == 0.25
