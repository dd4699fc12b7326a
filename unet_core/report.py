"""What a run tells of its epochs: a line after each, a table of all, the best one at the end."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from unet_core.config import TrainConfig
from unet_core.optim import score


def metrics_csv(history: list[dict[str, float]]) -> str:
    """metrics.csv: a line for each epoch; figures that do not exist are empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in history)
    return text.getvalue()


def epoch_line(row: Mapping[str, float], epochs: int, best: bool) -> str:
    """An epoch in one line."""
    skipped = f"  {row['skipped_steps']:.0f} steps skipped" if row.get("skipped_steps") else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['accuracy']:.4f}  "
        f"image Dice {row['image_dice']:.4f}  pixel Dice {row['pixel_dice']:.4f}  IoU {row['iou']:.4f}  "
        f"{row['seconds']:.1f} s{skipped}" + ("  best" if best else "")
    )


def final_table(history: Sequence[Mapping[str, float]], config: TrainConfig) -> str:
    """The best epoch's figures, one to a line, with several classes each class's pixel Dice too."""
    best = max(history, key=score)
    names = {"pixel_dice": "pixel Dice", "image_dice": "image Dice", "iou": "IoU", "accuracy": "accuracy"}
    lines = [f"best epoch: {best['epoch']:.0f} of {len(history)}"]
    lines += [f"  {label:<12}{best[name]:.4f}" for name, label in names.items()]
    if len(config.classes) > 1:
        width = max(map(len, config.classes))
        lines.append("  pixel Dice of each class")
        for name in config.classes:
            value = best.get(f"pixel_dice {name}", float("nan"))
            lines.append(f"    {name:<{width}}  " + ("-" if value != value else f"{value:.4f}"))
    return "\n".join(lines)
