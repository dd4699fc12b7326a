"""The figures of a run as text: metrics.csv of all epochs, the best epoch at the end, a table of classes."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from unet_core.config import TrainConfig
from unet_core.data.labels import BACKGROUND
from unet_core.evaluation.best_epoch import VALIDATION_LOSS, score
from unet_core.evaluation.metrics import CLASS_PREFIX, METRICS, Metrics, iou_of_dice, label_of

NOT_METRICS = frozenset({"epoch", "lr", "seconds", "train_seconds", "skipped_steps", "train_loss", VALIDATION_LOSS})
"""Figures of an epoch that do not measure the model."""

MAX_NAME = 200
"""Maximum length of a figure's name in a card, in characters."""

MOST_NAMED = 5
"""Maximum number of classes that `one_sided` names."""


def metrics_csv(history: list[dict[str, float]]) -> str:
    """Format the content of metrics.csv: a line per epoch; figures that are missing or NaN stay empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in history)
    return text.getvalue()


def card_figures(row: Mapping[str, float]) -> dict[str, float]:
    """Select the figures of an epoch that measure the model and that a card can hold."""
    figures = {name: float(value) for name, value in row.items() if name not in NOT_METRICS}
    return {name: value for name, value in figures.items() if math.isfinite(value) and len(name) <= MAX_NAME}


def figure_lines(row: Mapping[str, float]) -> str:
    """Format the figures of a whole set, such as `Metrics.summary`, one per line."""
    # A run that is resumed may have epochs from before a metric existed.
    figures = {label_of(name, row): row[name] for name in METRICS if name in row}
    width = max(map(len, figures))
    return "\n".join(f"  {label:<{width}}  {figure:.4f}" for label, figure in figures.items())


def four_digits(figure: float) -> str:
    """Write a figure in a table; "-" stands for the figure of a class that occurs nowhere."""
    return "-" if math.isnan(figure) else f"{figure:.4f}"


def class_table(metrics: Metrics) -> str:
    """Format the figures of every class as aligned lines of text, with the means of the set in the last line.

    "-" stands for the figures of a class that occurs nowhere; the share of pixels is that of the truth.
    """

    scores, all_pixels = metrics.per_class(), metrics.pixels
    names = [name for name, metric in METRICS.items() if metric.of_class is not None]
    rows: list[tuple[str, ...]] = [("class", *(METRICS[name].label for name in names), "pixels %")]
    for one in scores:
        share = f"{100 * one.pixels / all_pixels:.2f}" if all_pixels else "-"
        rows.append((one.name, *(four_digits(one.figures[name]) for name in names), share))
    background = len(scores) > 1 and BACKGROUND in metrics.classes
    means = (four_digits(metrics.figure(name)) for name in names)
    rows.append(("mean without background" if background else "mean", *means, ""))
    width = max(len(row[0]) for row in rows)
    return "\n".join((f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:])).rstrip() for row in rows)


def one_sided(metrics: Metrics) -> str | None:
    """Describe a model that predicts a class (nearly) everywhere, or one of the truth nowhere, if it does."""
    if metrics.always_predicted is not None:
        return f"every pixel of these images is predicted as {metrics.always_predicted}"
    if (nearly := metrics.nearly_always_predicted) is not None:
        name, found, there = nearly
        return f"{found:.1%} of the pixels of these images are predicted as {name}, and {there:.2%} are"
    missing = metrics.never_predicted
    if not missing:
        return None
    rest = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return f"no pixel of these images is predicted as {', '.join(missing[:MOST_NAMED])}{rest}"


def final_table(history: Sequence[Mapping[str, float]], config: TrainConfig) -> str:
    """Format the best epoch's figures, one per line; with several classes also pixel Dice and IoU of each class."""
    best = max(history, key=score)
    lines = [f"best epoch: {best['epoch']:.0f} of {len(history)}", figure_lines(best)]
    if VALIDATION_LOSS in best:
        lines[0] += f", with a validation loss of {best[VALIDATION_LOSS]:.4f}"
    if len(config.classes) > 1:
        width = max(map(len, config.classes))
        lines.append(f"    {'':<{width}}  pixel Dice     IoU")
        for name in config.classes:
            dice = best.get(f"{CLASS_PREFIX}{name}", float("nan"))
            lines.append(f"    {name:<{width}}  {four_digits(dice):>10}  {four_digits(iou_of_dice(dice)):>6}")
    return "\n".join(lines)
