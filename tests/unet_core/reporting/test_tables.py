import numpy as np
import pytest

from unet_core.config import TrainConfig
from unet_core.evaluation.metrics import METRICS, Metric, Metrics
from unet_core.reporting.tables import card_figures, class_table, figure_lines, final_table, metrics_csv, one_sided


def measured(classes, predicted, truth):
    metrics = Metrics(classes)
    metrics.add(np.array([predicted], np.uint8), np.array([truth], np.uint8))
    return metrics


def test_figures_are_called_as_people_call_them():
    metrics = measured(["road", "car"], [0, 1, 1, 1], [0, 0, 1, 1])  # Dices 2/3 and 4/5, IoUs 1/2 and 2/3
    assert figure_lines(metrics.summary()).splitlines() == [
        "  mean pixel Dice  0.7333",
        "  mean image Dice  0.7333",
        "  mean IoU         0.5833",
        "  accuracy         0.7500",
    ]
    one = measured(["car"], [0, 1, 1, 1], [0, 0, 1, 1]).summary()
    assert figure_lines(one).splitlines()[::2] == ["  pixel Dice  0.8000", "  IoU         0.6667"]


def test_a_run_ends_with_dice_and_iou_of_each_class():
    classes = ("road", "car", "tram")
    metrics = measured(classes, [0, 1, 1, 1], [0, 0, 1, 1])
    history = [{"epoch": 1, **metrics.summary()}, {"epoch": 2, "pixel_dice": 0.1, "iou": 0.1}]
    assert final_table(history, TrainConfig(data="Data", out="runs", classes=classes)).splitlines() == [
        "best epoch: 1 of 2",
        "  mean pixel Dice  0.7333",
        "  mean image Dice  0.7333",
        "  mean IoU         0.5833",
        "  accuracy         0.7500",
        "          pixel Dice     IoU",
        "    road      0.6667  0.5000",
        "    car       0.8000  0.6667",
        "    tram           -       -",
    ]


MANY = [f"c{index}" for index in range(9)]


@pytest.mark.parametrize(
    ("classes", "predicted", "truth", "said"),
    [
        (["car"], [0, 0], [0, 1], "no pixel of these images is predicted as car"),
        (["car"], [1, 1], [0, 1], "every pixel of these images is predicted as car"),
        (["car"], [1, 0], [0, 1], None),
        (
            ["car"],
            [1] * 19 + [0],
            [1] + [0] * 19,
            "95.0% of the pixels of these images are predicted as car, and 5.00% are",
        ),
        (["car"], [1] * 17 + [0] * 3, [1] + [0] * 19, None),
        (["car"], [0] * 19 + [1], [1] + [0] * 19, None),
        (["car"], [1] * 19 + [0], [1] * 10 + [0] * 10, None),
        (["background", "car"], [0, 0], [0, 1], "every pixel of these images is predicted as background"),
        (
            MANY,
            [0, 1, 1, 1, 1, 1, 1, 1, 1],
            range(9),
            "no pixel of these images is predicted as c2, c3, c4, c5, c6 and 2 more",
        ),
    ],
)
def test_a_model_that_knows_one_answer_is_told(classes, predicted, truth, said):
    assert one_sided(measured(classes, predicted, truth)) == said


def test_table_is_aligned_and_ends_with_the_mean():
    metrics = measured(["background", "car", "tram"], [0, 1, 1], [0, 1, 0])
    assert class_table(metrics).splitlines() == [
        "class                    pixel Dice  image Dice         IoU    pixels %",
        "background                   0.6667      0.6667      0.5000       66.67",
        "car                          0.6667      0.6667      0.5000       33.33",
        "tram                              -           -           -        0.00",
        "mean without background      0.6667      0.6667      0.5000",
    ]
    assert class_table(Metrics(["car"])).splitlines()[1:] == [
        "car             -           -           -           -",
        "mean       1.0000      1.0000      1.0000",
    ]


def test_a_new_metric_is_in_every_table(monkeypatch):
    monkeypatch.setitem(METRICS, "pixels_found", Metric(label="found", of_set=lambda images: 0.25))
    row = {"epoch": 2, "train_loss": 0.5, **measured(["car"], [0, 1], [0, 1]).summary(), "seconds": 3.0}
    assert figure_lines(row).splitlines()[-1] == "  found       0.2500"
    assert card_figures(row)["pixels_found"] == 0.25
    monkeypatch.setitem(METRICS, "recall", Metric(label="recall", of_class=lambda images: images[0, 0] / images[0, 2]))
    header, car, _ = (line.split() for line in class_table(measured(["car"], [0, 1, 1], [1, 1, 1])).splitlines())
    assert (header[-3:], car[-2]) == (["recall", "pixels", "%"], "0.6667")
    assert metrics_csv([row]).splitlines()[0].split(",")[-2:] == ["pixels_found", "seconds"]
