import numpy as np
import pytest
from PIL import Image

from unet_core.evaluation.metrics import METRICS, Metric
from unet_core.reporting import curves
from unet_core.reporting.curves import save_curves


def history_of(epochs, classes=(), **figures):
    """Figures may be functions of the epoch."""
    row = {"train_loss": 0.5, "pixel_dice": 0.6, "image_dice": 0.5, "iou": 0.4, "lr": 1e-3, "seconds": 1.0}
    row |= {f"pixel_dice {name}": 0.7 for name in classes} | figures
    return [
        {"epoch": epoch} | {key: value(epoch) if callable(value) else value for key, value in row.items()}
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def plot(tmp_path, monkeypatch):
    """Save the curves of a history and return the figure's axes."""
    figures = []
    save = curves.Figure.savefig

    def savefig(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(curves.Figure, "savefig", savefig)

    def run(history, classes=()):
        save_curves(tmp_path / "curves.png", history, classes)
        with Image.open(tmp_path / "curves.png") as file:
            assert file.size[0] in (1100, 1540)
        return figures[-1].axes

    return run


def named(axes):
    """The lines in the legend, by name."""
    legend = axes.get_legend()
    return dict(zip([text.get_text() for text in legend.get_texts()], legend.get_lines(), strict=True))


def test_curves_show_loss_metrics_and_learning_rate(plot):
    loss, metrics, rate = plot(history_of(5, pixel_dice=lambda epoch: (0.5, 0.7, 0.8, 0.8, 0.6)[epoch - 1]))
    assert [axes.get_title() for axes in (loss, rate)] == ["training loss", "learning rate"]
    assert loss.lines[0].get_xydata().tolist() == [[epoch, 0.5] for epoch in range(1, 6)]
    assert rate.lines[0].get_ydata().tolist() == [1e-3] * 5
    curves = {line.get_label(): line.get_ydata().tolist() for line in metrics.lines[:3]}
    assert curves == {"pixel Dice": [0.5, 0.7, 0.8, 0.8, 0.6], "image Dice": [0.5] * 5, "IoU": [0.4] * 5}
    assert list(named(metrics)) == list(curves)
    assert metrics.get_title() == "validation: best pixel Dice 0.800 in epoch 3"  # the first of equals
    star = metrics.lines[-1]
    assert (star.get_marker(), star.get_xydata().tolist()) == ("*", [[3, 0.8]])
    assert metrics.get_ylim() == (pytest.approx(0.3), 1.01)
    assert [line.get_marker() for line in metrics.lines[:3]] == ["o", "s", "^"]


@pytest.mark.parametrize(("last", "scale"), [(0.11, "linear"), (0.09, "log")])
def test_more_than_a_decade_is_logarithmic(plot, last, scale):
    figures = [1.0, 0.5, last, 0.0]  # zero has no logarithm and spans nothing
    loss, _, rate = plot(
        history_of(4, train_loss=lambda epoch: figures[epoch - 1], lr=lambda epoch: figures[epoch - 1] * 1e-4)
    )
    assert (loss.get_yscale(), rate.get_yscale()) == (scale, scale)
    if scale == "linear":
        assert loss.get_ylim() == (0.0, pytest.approx(1.1))


def test_four_decades_of_the_learning_rate_are_shown(plot):
    figures = [1e-3, 1e-5, 1e-10]
    loss, _, rate = plot(
        history_of(3, lr=lambda epoch: figures[epoch - 1], train_loss=lambda epoch: figures[epoch - 1])
    )
    assert rate.get_ylim()[0] == pytest.approx(1e-7)
    assert rate.lines[0].get_ydata().tolist() == figures
    assert loss.get_ylim()[0] < 1e-10
    _, _, rate = plot(history_of(2, lr=lambda epoch: 1e-3 / 100**epoch))
    assert 1e-8 < rate.get_ylim()[0] < 1e-7  # fewer decades, no floor


def test_undefined_figures_leave_gaps(plot):
    history = history_of(3, ("car",), lr=None)
    history[1] |= {"train_loss": float("nan"), "pixel_dice": None, "pixel_dice car": None}
    del history[2]["lr"], history[2]["iou"]
    loss, metrics = plot(history)  # no learning rate, no plot of it
    assert np.isnan(loss.lines[0].get_ydata()).tolist() == [False, True, False]
    lines = named(metrics)
    assert list(lines) == ["pixel Dice", "image Dice", "IoU", "car"]
    gaps = {line.get_label(): np.isnan(line.get_ydata()).tolist() for line in metrics.lines}
    assert gaps["pixel Dice"] == gaps["car"] == [False, True, False]
    assert gaps["IoU"] == [False, False, True]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_one_epoch_of_any_figures_is_drawn(plot, value):
    axes = plot(history_of(1, train_loss=value, pixel_dice=None, image_dice=None, iou=None))
    assert axes[1].get_title() == "validation"
    assert [tick for tick in axes[0].get_xticks() if 0.5 <= tick <= 1.5] == [1]


def test_thousand_epochs_have_no_markers(plot):
    loss, metrics, _ = plot(history_of(1000, pixel_dice=lambda epoch: epoch / 1001))
    assert {line.get_marker() for line in (*loss.lines, *metrics.lines[:3])} == {""}
    assert metrics.get_title() == "validation: best pixel Dice 0.999 in epoch 1000"


def test_up_to_twelve_classes_are_named_and_more_are_grey(plot):
    odd = ("_void", r"$\bad$", "日本", "n" * 60, *(f"k{index}" for index in range(8)))
    lines = named(plot(history_of(2, odd))[1])
    assert list(lines)[3:] == ["_void", r"$\bad$", "日本", "n" * 23 + "…", *(f"k{index}" for index in range(8))]
    looks = {(str(line.get_color()), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == 15
    axes = plot(history_of(2, (*odd, "one more")))[1]
    assert list(named(axes))[3:] == ["13 classes"]
    assert [line.get_color() for line in axes.lines[:13]] == ["#a0a0a0"] * 13


def test_classes_have_their_colours_of_the_panels_and_the_means_are_black(plot):
    history = history_of(2, ("sky", "car"))
    colours = {name: line.get_color() for name, line in named(plot(history, ("sky", "road", "car"))[1]).items()}
    means = dict.fromkeys(("pixel Dice", "image Dice", "IoU"), "#202020")
    assert colours == means | {"sky": "#3020d0", "car": "#40a0ff"}
    assert named(plot(history)[1])["car"].get_color() == "#ff4040"  # the second of those in the history
    history = history_of(2, ("background", "car"))
    assert named(plot(history, ("background", "car"))[1])["background"].get_color() == "#a0a0a0"
    assert named(plot(history_of(2))[1])["pixel Dice"].get_color() == "#0072B2"


def test_a_new_metric_has_a_curve_and_a_figure_of_the_whole_set_has_none(plot, monkeypatch):
    monkeypatch.setitem(METRICS, "recall", Metric(label="recall", of_class=lambda images: 0.5))
    lines = named(plot(history_of(2, recall=0.3, accuracy=0.9))[1])
    assert list(lines) == ["pixel Dice", "image Dice", "IoU", "recall"]
    assert lines["recall"].get_color() == "#CC79A7"


def test_the_best_epoch_by_the_validation_loss_has_the_star(plot):
    losses = (0.5, 0.125, 0.25)
    _, metrics, _ = plot(history_of(3, pixel_dice=1.0, val_loss=lambda epoch: losses[epoch - 1]))
    assert metrics.get_title() == "validation: best loss 0.125 in epoch 2"
    (star,) = (line for line in metrics.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[2, 1]]


def test_the_points_of_one_epoch_stand_side_by_side_with_their_values(plot):
    """They would lie on one another, and a class's line of one point shows nothing."""
    figures = {"pixel_dice": 0.6, "image_dice": 0.6, "iou": 0.95, "pixel_dice car": 0.25}
    loss, metrics, rate = plot(history_of(1, ("car",), **figures), ("road", "car"))
    assert [[text.get_text() for text in axes.texts] for axes in (loss, rate)] == [["0.5"], ["0.001"]]
    assert [line.get_marker() for line in metrics.lines] == ["o", "o", "s", "^"]
    points = {text.get_text(): text.xy for text in metrics.texts}
    assert {line.get_markersize() for line in (*loss.lines, *metrics.lines)} == {8}
    assert [line.get_xdata()[0] for line in metrics.lines] == pytest.approx([0.6, 0.6 + 0.8 / 3, 1.4 - 0.8 / 3, 1.4])
    assert points["0.95"] == (pytest.approx(1.4), 0.95)
    assert [(text.get_text(), text.get_va()) for text in metrics.texts] == [
        *(("0.25", "bottom"), ("0.6", "bottom"), ("0.6", "bottom"), ("0.95", "top"))
    ]
    _, metrics, _ = plot(history_of(1, tuple(f"k{index}" for index in range(8))))
    assert (len(metrics.lines), len(metrics.texts)) == (11, 0)
