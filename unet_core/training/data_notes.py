"""Notes on the masks of a run, before the first epoch: sets that hold one label only."""

from runtime.errors import DataError
from unet_core.config import TrainConfig
from unet_core.data.records import Records


def check_masks(train: Records, val: Records, config: TrainConfig, masks: str) -> list[str]:
    """Return notes on masks that all hold one label; `masks` is the folder of those to train on.

    Raises:
        DataError: no training mask has any foreground, or no pixel of a validation mask counts.
    """
    if not train.has_foreground:
        raise DataError(f"{masks}: no mask has any foreground, so there is nothing to learn")
    if not val.counted:
        raise DataError(
            f"validation: no pixel of any mask counts (all are {config.ignore_index}, the value of --ignore-index), so "
            "there is nothing to validate on"
        )
    notes = []
    if train.only_label is not None:
        what = only_label(train, config)
        notes.append(f"training: {what}, so the network learns to answer that everywhere; add images with other pixels")
    if val.only_label is not None:
        what = only_label(val, config)
        notes.append(
            f"validation: {what}, so Dice tells little and the best epoch is chosen by the validation loss; add images "
            "with other pixels"
        )
    return notes


def only_label(records: Records, config: TrainConfig) -> str:
    """Describe masks that hold one label only."""
    if records.only_label == records.decoder.labels.background:
        return "no mask has any foreground"
    if len(config.classes) == 1:
        return "every pixel of every mask is foreground"
    return f"every pixel of every mask is {config.classes[records.only_label or 0]}"
