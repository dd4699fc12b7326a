"""The curves of a run: training loss, validation metrics, learning rate."""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from runtime.support.files import replacing
from unet_core.evaluation.metrics import LABELS
from unet_core.reporting.panels import class_colours, plain_label, printable

History = Sequence[Mapping[str, float | None]]

METRICS = (
    ("pixel_dice", "#0072B2", "-", "o"),
    ("image_dice", "#D55E00", "--", "s"),  # the two Dices often coincide
    ("iou", "#009E73", "-.", "^"),
)
"""Key in the history, colour, style and marker of each curve."""

INK, GREY = "#202020", "#a0a0a0"
"""Colours of the means where classes have theirs, and of classes that have none."""

CLASS_PREFIX = "pixel_dice "
"""In the history, what the name of a class follows."""

NAMED_CLASSES = 12
"""Most classes that the legend of the curves names; the lines of more are all grey."""

NAME_LENGTH = 24
"""Most characters of a class's name in the legend of the curves."""

RATE_DECADES = 4
"""Most decades of the learning rate that are shown: a cosine ends near 0."""

MARKED_EPOCHS = 30
"""Most epochs whose figures are marked one by one."""


def save_curves(path: str | os.PathLike[str], history: History, classes: tuple[str, ...] = ()) -> None:
    """Plot the training loss, the validation metrics and, where it is known, the learning rate of every epoch.

    Args:
        path: a PNG file, written atomically.
        history: one mapping per epoch with `epoch`, `train_loss`, `pixel_dice`, `image_dice` and `iou`, perhaps `lr`
            and, for each class, "pixel_dice NAME". A figure that is None, NaN or missing leaves a gap.
        classes: the names of all classes, so that each has its colour of the panels.

    Raises:
        OutputError: the file cannot be written.
    """
    epochs, rate = _series(history, "epoch"), _series(history, "lr")
    widths = [1.0, 1.5, 1.0] if np.isfinite(rate).any() else [1.0, 1.5]
    figure = Figure(figsize=(4 * sum(widths), 3.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    plots = figure.subplots(1, len(widths), width_ratios=widths)
    _plot_line(plots[0], epochs, _series(history, "train_loss"), "training loss")
    _plot_metrics(plots[1], epochs, history, classes)
    if len(plots) == 3:
        _plot_line(plots[2], epochs, rate, "learning rate", RATE_DECADES)
    for axes in plots:
        _tidy(axes, epochs)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # or a class's name in a script that the font lacks warns
        figure.savefig(temporary, format="png", dpi=110)


def _series(history: History, key: str) -> NDArray[np.float64]:
    """The figure of every epoch, float64 [epochs]; NaN where it is undefined."""
    return np.array([row.get(key) for row in history], np.float64)


def _plot_line(
    axes: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64], title: str, most: float = math.inf
) -> None:
    """Plot one quantity, on a logarithmic scale of at most `most` decades if it spans more than one."""
    axes.plot(epochs, values, color="#404040", linewidth=1.6, marker=_marker(epochs, "o"), markersize=4)
    axes.set_title(title)
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    decades = math.log10(positive.max() / positive.min()) if positive.size else 0.0
    if decades <= 1:
        axes.set_ylim(bottom=finite.min(initial=0.0), top=1.1 * positive.max() if positive.size else None)
    else:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if decades > most:
            axes.set_ylim(bottom=positive.max() / 10**most)


def _plot_metrics(axes: Axes, epochs: NDArray[np.float64], history: History, classes: tuple[str, ...]) -> None:
    lines = _plot_classes(axes, epochs, history, classes)
    means = []
    for key, own, style, shape in METRICS:
        values, marker, colour = _series(history, key), _marker(epochs, shape), INK if lines else own
        means += axes.plot(epochs, values, style, label=LABELS[key], color=colour, marker=marker, markersize=4)
    lines = [*means, *lines]
    axes.set_ylim(_floor(axes.lines), 1.01)
    axes.set_title("validation")
    _mark_best(axes, epochs, _series(history, "pixel_dice"), str(means[0].get_color()))
    labels = [str(line.get_label()) for line in lines]  # named one by one: a label like _void would be left out
    legend = axes.legend(lines, labels, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x


def _plot_classes(axes: Axes, epochs: NDArray[np.float64], history: History, classes: tuple[str, ...]) -> list[Line2D]:
    """Thin lines of the classes' pixel Dice; returns those that the legend names."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(CLASS_PREFIX))
    names = [key.removeprefix(CLASS_PREFIX) for key in keys]
    named = len(names) <= NAMED_CLASSES
    lines: list[Line2D] = []
    for name in names:
        colour = _class_colour(name, classes or tuple(names)) if named else GREY
        lines += axes.plot(epochs, _series(history, f"{CLASS_PREFIX}{name}"), color=colour, linewidth=1.3)
        shown = printable(name)
        shown = shown if len(shown) <= NAME_LENGTH else shown[: NAME_LENGTH - 1] + "…"
        lines[-1].set_label(shown if named else f"{len(names)} classes")
    return lines if named else lines[:1]


def _class_colour(name: str, classes: tuple[str, ...]) -> str:
    """The class's colour in the panels; grey for the one that has no tint there."""
    label = classes.index(name)
    return GREY if label == plain_label(classes) else "#{:02x}{:02x}{:02x}".format(*class_colours()[label])


def _mark_best(axes: Axes, epochs: NDArray[np.float64], dice: NDArray[np.float64], colour: str) -> None:
    if not np.isfinite(dice).any():
        return
    best = int(np.nanargmax(dice))  # the first of equals: its weights are kept
    axes.axvline(epochs[best], color="#808080", linewidth=1, linestyle=":", zorder=1)
    (star,) = axes.plot(epochs[best], dice[best], "*", color=colour, markersize=14, markeredgecolor="white")
    star.set(zorder=4, clip_on=False)
    axes.set_title(f"validation: best pixel Dice {dice[best]:.3f} in epoch {epochs[best]:.0f}")


def _floor(lines: Iterable[Line2D]) -> float:
    """Where the axis starts: the tenth below the lowest figure, so that runs near 1 can be told apart."""
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in lines])
    lowest = float(np.nanmin(values, initial=0.9))
    return max(0.0, math.floor(lowest * 10 - 0.2) / 10)


def _marker(epochs: NDArray[np.float64], shape: str) -> str:
    return shape if len(epochs) <= MARKED_EPOCHS else ""


def _tidy(axes: Axes, epochs: NDArray[np.float64]) -> None:
    room = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    axes.set_xlim(epochs[0] - room, epochs[-1] + room)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)
