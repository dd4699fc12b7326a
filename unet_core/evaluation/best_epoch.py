"""The best epoch of a run: the figure that decides, and the number of epochs since."""

import math
from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, float]]
"""The figures of each epoch, as in `metrics.csv`."""


VALIDATION_LOSS = "val_loss"
"""Name of the validation loss in a history; it is measured where Dice tells nothing."""


def score(row: Mapping[str, float]) -> float:
    """The figure that the best epoch is chosen by, the higher the better: pixel Dice.

    Image Dice would reward finding nothing if most images are empty. Where all validation masks hold one label, the
    epoch has a validation loss, which is then the figure (negative): any Dice would reward answering that label
    everywhere. NaN counts as -inf, since it compares false with every figure.
    """
    value = -row[VALIDATION_LOSS] if VALIDATION_LOSS in row else row["pixel_dice"]
    return -math.inf if math.isnan(value) else value


def is_best(history: History) -> bool:
    """Return True if the last epoch is better than all before it."""
    *past, last = map(score, history)
    return last > max(past, default=-math.inf)


def epochs_without_progress(history: History) -> int:
    """Count the epochs since the best one."""
    if not history:
        return 0
    scores = [score(row) for row in history]
    return len(scores) - 1 - scores.index(max(scores))


def reductions(history: History, patience: int) -> int:
    """Count the plateaus: `patience` epochs in a row without a better one, after which counting starts again."""
    best, waited, count = -math.inf, 0, 0
    for row in history:
        if score(row) > best:
            best, waited = score(row), 0
        else:
            waited += 1
            if waited == patience:
                waited, count = 0, count + 1
    return count
