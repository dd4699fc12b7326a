"""Curves of a run: training loss, validation metrics, learning rate."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from runtime.support.files import replacing
from unet_core.data.labels import LabelSpec
from unet_core.evaluation.best_epoch import VALIDATION_LOSS
from unet_core.evaluation.metrics import CLASS_PREFIX, METRICS
from unet_core.reporting.panels import class_colours, printable

History = Sequence[Mapping[str, float | None]]

STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),  # the two Dices often coincide
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", "-", "v"),
)
"""Colour, line style and marker of the curves, which the metrics take in their order."""

INK, GREY = "#202020", "#a0a0a0"
"""Colours of the means beside curves of classes, and of classes that have no colour."""

NAMED_CLASSES = 12
"""Maximum number of classes that the legend names; if there are more, all their lines are grey."""

NAME_LENGTH = 24
"""Maximum length of a class's name in the legend, in characters."""

RATE_DECADES = 4
"""Maximum number of decades shown of the learning rate, since a cosine schedule ends near 0."""

SPREAD = 0.4
"""Largest distance of a point from its epoch in the curves of one epoch, in epochs."""

VALUES = 10
"""Maximum number of points in the curves of one epoch that have their values beside them."""

MARKED_EPOCHS = 30
"""Maximum number of epochs whose figures have a marker each."""


def save_curves(path: str | os.PathLike[str], history: History, classes: tuple[str, ...] = ()) -> None:
    """Plot the training loss, the validation metrics and, if it is known, the learning rate of every epoch.

    Args:
        path: a PNG file, written atomically.
        history: one mapping per epoch with `epoch`, `train_loss`, the metrics and optionally `lr` and, for each class,
            "pixel_dice NAME". A figure that is None, NaN or missing leaves a gap.
        classes: the names of all classes, so that each has its colour of the panels.

    Raises:
        OutputError: the file cannot be written.
    """
    epochs, rate = series(history, "epoch"), series(history, "lr")
    widths = [1.0, 1.5, 1.0] if np.isfinite(rate).any() else [1.0, 1.5]
    figure = Figure(figsize=(4 * sum(widths), 3.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    plots = figure.subplots(1, len(widths), width_ratios=widths)
    plot_line(plots[0], epochs, series(history, "train_loss"), "training loss")
    plot_metrics(plots[1], epochs, history, classes)
    if len(plots) == 3:
        plot_line(plots[2], epochs, rate, "learning rate", RATE_DECADES)
    room = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    for axes in plots:
        axes.set_xlim(epochs[0] - room, epochs[-1] + room)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class may be named in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=110)


def series(history: History, key: str) -> NDArray[np.float64]:
    """One figure of every epoch, float64 [epochs]; NaN where it is missing."""
    return np.array([row.get(key) for row in history], np.float64)


def plot_line(
    axes: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64], title: str, most: float = math.inf
) -> None:
    """Plot one quantity, on a logarithmic scale of at most `most` decades if it spans more than one."""
    marker = "o" if len(epochs) <= MARKED_EPOCHS else ""
    axes.plot(epochs, values, color="#404040", linewidth=1.6, marker=marker, markersize=4)
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
    if len(epochs) == 1:
        spread_points(axes)


def plot_metrics(axes: Axes, epochs: NDArray[np.float64], history: History, classes: tuple[str, ...]) -> None:
    """Plot the metrics that are means over classes, the pixel Dice of each class, and a star at the best epoch."""
    lines = plot_classes(axes, epochs, history, classes)
    means: list[Line2D] = []
    names = [name for name, metric in METRICS.items() if metric.of_class is not None]
    for name, (colour, style, marker) in zip(names, cycle(STYLES), strict=False):
        means += axes.plot(epochs, series(history, name), style, label=METRICS[name].label, markersize=4)
        means[-1].set(color=INK if lines else colour, marker=marker if len(epochs) <= MARKED_EPOCHS else "")
    # The axis starts at the tenth below the lowest figure, so that runs near 1 can be told apart.
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    lowest = float(np.nanmin(values, initial=0.9))
    axes.set_ylim(max(0.0, math.floor(lowest * 10 - 0.2) / 10), 1.01)
    axes.set_title("validation")
    dice = series(history, "pixel_dice")
    if len(epochs) == 1:
        spread_points(axes)
    elif np.isfinite(dice).any():
        loss = series(history, VALIDATION_LOSS)
        by_loss = bool(np.isfinite(loss).any())
        best = int(np.nanargmin(loss) if by_loss else np.nanargmax(dice))  # the first of equals, whose weights are kept
        axes.axvline(epochs[best], color="#808080", linewidth=1, linestyle=":", zorder=1)
        (star,) = axes.plot(epochs[best], dice[best], "*", markersize=14, markeredgecolor="white")
        star.set(color=means[0].get_color(), zorder=4, clip_on=False)
        figure = f"loss {loss[best]:.3g}" if by_loss else f"pixel Dice {dice[best]:.3f}"
        axes.set_title(f"validation: best {figure} in epoch {epochs[best]:.0f}")
    lines = [*means, *lines]
    labels = [str(line.get_label()) for line in lines]  # given one by one: matplotlib leaves out labels like _void
    legend = axes.legend(lines, labels, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x


def spread_points(axes: Axes) -> None:
    """Move the points of one epoch side by side with their values: lines show nothing, and points would overlap."""
    count, top = len(axes.lines), axes.get_ylim()[1]
    for line, offset in zip(axes.lines, np.linspace(-SPREAD, SPREAD, count) if count > 1 else [0.0], strict=True):
        (epoch,), (value,) = (np.asarray(values, np.float64) for values in line.get_data())
        marker = line.get_marker()
        line.set(xdata=[epoch + offset], markersize=8, marker="o" if marker in ("", "None") else marker)
        if np.isfinite(value) and count <= VALUES:
            above = value < 0.9 * top
            axes.annotate(
                f"{value:.4g}",
                (epoch + offset, value),
                xytext=(0, 7 if above else -7),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                color=line.get_color(),
            )


def plot_classes(axes: Axes, epochs: NDArray[np.float64], history: History, classes: tuple[str, ...]) -> list[Line2D]:
    """Plot the pixel Dice of each class as a thin line, in its colour of the panels; returns the lines to name."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(CLASS_PREFIX))
    names = [key.removeprefix(CLASS_PREFIX) for key in keys]
    named = len(names) <= NAMED_CLASSES
    classes = classes or tuple(names)
    lines: list[Line2D] = []
    for name in names:
        label = classes.index(name) if named else None
        colour = GREY
        if label is not None and label != LabelSpec(classes=classes).background:
            colour = "#{:02x}{:02x}{:02x}".format(*class_colours()[label])
        lines += axes.plot(epochs, series(history, f"{CLASS_PREFIX}{name}"), color=colour, linewidth=1.3)
        shown = printable(name)
        shown = shown if len(shown) <= NAME_LENGTH else shown[: NAME_LENGTH - 1] + "…"
        lines[-1].set_label(shown if named else f"{len(names)} classes")
    return lines if named else lines[:1]
