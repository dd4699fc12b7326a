import math

import pytest
import torch

from unet_core.losses import LOSSES, bce, bce_dice, dice_loss


def test_bce_of_a_coin_toss_is_log_two():
    assert bce(torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3)).item() == pytest.approx(math.log(2))


def test_dice_loss_by_hand():
    # Probabilities 0.5 on four pixels, truth on two of them: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert dice_loss(logits, target).item() == pytest.approx(1 - 3 / 5)


def test_dice_loss_is_a_mean_over_images_not_over_pixels():
    logits = torch.full((2, 1, 4, 4), 20.0)
    target = torch.ones(2, 1, 4, 4)
    target[1] = 0
    target[1, 0, 0, 0] = 1
    by_hand = 1 - (1 + (2 + 1) / (16 + 1 + 1)) / 2
    assert dice_loss(logits, target).item() == pytest.approx(by_hand, abs=1e-6)


def test_dice_loss_of_an_empty_truth_is_finite_and_falls_with_the_prediction():
    target = torch.zeros(1, 1, 4, 4)
    high, low = dice_loss(torch.full((1, 1, 4, 4), 5.0), target), dice_loss(torch.full((1, 1, 4, 4), -5.0), target)
    assert 0 <= low < high < 1


def test_sum_of_both():
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4)).float()
    assert bce_dice(logits, target) == bce(logits, target) + dice_loss(logits, target)
    assert LOSSES["bce+dice"] is bce_dice
