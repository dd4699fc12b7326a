"""What a run tells of its epochs: a line after each, a table of all, the best one at the end."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from unet_core.config import TrainConfig
from unet_core.evaluation.metrics import LABELS, Metrics, score

NOT_METRICS = frozenset({"epoch", "lr", "seconds", "train_seconds", "skipped_steps", "train_loss"})
"""Figures of an epoch that do not say how good the model is."""

MAX_NAME = 200
"""Characters of a figure's name in a card."""

MOST_NAMED = 5
"""Most classes that `one_sided` names."""


def metrics_csv(history: list[dict[str, float]]) -> str:
    """metrics.csv: a line for each epoch; figures that do not exist are empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in history)
    return text.getvalue()


def card_figures(row: Mapping[str, float]) -> dict[str, float]:
    """What of an epoch's figures says how good its weights are, as far as a card can hold it."""
    figures = {name: float(value) for name, value in row.items() if name not in NOT_METRICS}
    return {name: value for name, value in figures.items() if math.isfinite(value) and len(name) <= MAX_NAME}


def epoch_line(row: Mapping[str, float], epochs: int, best: bool) -> str:
    """An epoch in one line."""
    skipped = f"  {row['skipped_steps']:.0f} steps skipped" if row.get("skipped_steps") else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['accuracy']:.4f}  "
        f"image Dice {row['image_dice']:.4f}  pixel Dice {row['pixel_dice']:.4f}  IoU {row['iou']:.4f}  "
        f"{row['seconds']:.1f} s{skipped}" + ("  best" if best else "")
    )


def figure_lines(row: Mapping[str, float]) -> str:
    """The figures of a whole set, such as `Metrics.summary`, one to a line."""
    return "\n".join(f"  {label:<12}{row[name]:.4f}" for name, label in LABELS.items())


def one_sided(metrics: Metrics) -> str | None:
    """A line where every pixel is predicted as one class, or none as a class that is there; None otherwise."""
    if metrics.always_predicted is not None:
        return f"every pixel of these images is predicted as {metrics.always_predicted}"
    missing = metrics.never_predicted
    if not missing:
        return None
    rest = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return f"no pixel of these images is predicted as {', '.join(missing[:MOST_NAMED])}{rest}"


def final_table(history: Sequence[Mapping[str, float]], config: TrainConfig) -> str:
    """The best epoch's figures, one to a line, with several classes each class's pixel Dice too."""
    best = max(history, key=score)
    lines = [f"best epoch: {best['epoch']:.0f} of {len(history)}", figure_lines(best)]
    if len(config.classes) > 1:
        width = max(map(len, config.classes))
        lines.append("  pixel Dice of each class")
        for name in config.classes:
            value = best.get(f"pixel_dice {name}", float("nan"))
            lines.append(f"    {name:<{width}}  " + ("-" if value != value else f"{value:.4f}"))
    return "\n".join(lines)
