"""The mean loss of an epoch, and the error for a loss that is not finite."""

import pytest
import torch

from runtime.errors import NotFiniteError
from unet_core.training.loss_monitor import LossMonitor, LossTrend


def refuse_to_say():
    raise AssertionError("asked where a loss is, although it is finite")


def test_the_mean_is_over_images_and_one_loss_late():
    monitor = LossMonitor()
    assert monitor.mean == 0
    monitor.add(torch.tensor(1.0, requires_grad=True), 3, refuse_to_say)
    assert (monitor.total, monitor.seen) == (0, 0)
    monitor.add(torch.tensor(2.0), 1, refuse_to_say)
    assert (monitor.total, monitor.seen, monitor.mean) == (3, 3, 1)
    monitor.look()
    monitor.look()
    assert (monitor.total, monitor.seen, monitor.mean) == (5, 4, 1.25)


def test_a_monitor_continues_earlier_sums():
    monitor = LossMonitor(6.0, 4)
    monitor.add(torch.tensor(4.0), 1, refuse_to_say)
    monitor.look()
    assert monitor.mean == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_is_refused_when_it_is_looked_at(value):
    monitor = LossMonitor()
    monitor.add(torch.tensor(1.0), 2, refuse_to_say)
    monitor.add(torch.tensor(float(value)), 2, lambda: "epoch 2/9, car.jpg")
    with pytest.raises(NotFiniteError) as error:
        monitor.look()
    assert str(error.value) == f"epoch 2/9, car.jpg: the loss became {value}, look at these images"
    assert error.value.remedy == "a lower --lr or --clip-norm 1"
    assert monitor.mean == 1


def test_sums_are_each_processs_own_or_the_firsts():
    sums = [(6.0, 3), (1.0, 1)]
    monitors = [LossMonitor.of_process(rank, 2, sums) for rank in range(2)]
    assert [(monitor.total, monitor.seen) for monitor in monitors] == sums
    monitors = [LossMonitor.of_process(rank, 3, sums) for rank in range(3)]
    assert [(monitor.total, monitor.seen) for monitor in monitors] == [(7.0, 4), (0.0, 0), (0.0, 0)]


def rises_at(losses, steps=8):
    """Return the steps after which the trend says that the losses rise, in batches of two images."""
    trend, monitor = LossTrend(), LossMonitor()
    said = []
    for step, loss in enumerate(losses, 1):
        if step % steps == 0:
            monitor = LossMonitor()  # another epoch
        monitor.total, monitor.seen = monitor.total + 2 * loss, monitor.seen + 2
        if trend.look(monitor):
            said.append((step, trend.note(0.5)))
    return said


def test_a_loss_that_rises_from_the_first_steps_is_told_once_with_a_lower_rate():
    """0.7 in three steps, then 0.8, 0.9 and so on: the ten before step 20 are 1.5 to 2.4."""
    assert rises_at([0.7] * 3 + [0.8 + 0.1 * step for step in range(60)]) == [
        (
            20,
            "the loss rises from 0.7 to 1.95 in the first 20 steps; --lr 0.5 is probably too high, start again with "
            "--lr 0.05",
        )
    ]
    assert [step for step, _ in rises_at([0.7] * 30 + [2.0] * 100, steps=1)] == [40]


@pytest.mark.parametrize(
    "losses",
    [
        [0.7] * 200,
        [0.7 - 0.003 * step for step in range(200)],
        [0.7] * 3 + [5.0] * 7 + [0.5] * 200,  # a peak after which it learns
        [0.7] * 3 + [0.8] * 200,  # a little
        [0.7, 0.7, 1.5] + [1.4] * 200,  # within the scatter
        [0.7] * 161 + [5.0] * 40,  # later than from the first steps
    ],
    ids=["flat", "falling", "peak", "little", "scatter", "late"],
)
def test_a_loss_that_does_not_rise_is_not_told(losses):
    assert rises_at(losses) == []
