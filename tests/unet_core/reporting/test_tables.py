import numpy as np
import pytest

from unet_core.evaluation.metrics import Metrics
from unet_core.reporting.tables import figure_lines, one_sided


def measured(classes, predicted, truth):
    metrics = Metrics(classes)
    metrics.add(np.array([predicted], np.uint8), np.array([truth], np.uint8))
    return metrics


def test_figures_are_called_as_people_call_them():
    metrics = measured(["road", "car"], [0, 1, 1, 1], [0, 0, 1, 1])  # Dices 2/3 and 4/5, IoUs 1/2 and 2/3
    assert figure_lines(metrics.summary()).splitlines() == [
        "  pixel Dice  0.7333",
        "  image Dice  0.7333",
        "  IoU         0.5833",
        "  accuracy    0.7500",
    ]


MANY = [f"c{index}" for index in range(9)]


@pytest.mark.parametrize(
    ("classes", "predicted", "truth", "said"),
    [
        (["car"], [0, 0], [0, 1], "no pixel of these images is predicted as car"),
        (["car"], [1, 1], [0, 1], "every pixel of these images is predicted as car"),
        (["car"], [1, 0], [0, 1], None),
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
