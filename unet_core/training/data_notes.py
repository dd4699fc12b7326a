"""Notes on the data of a run, before the first epoch: labels that are missing, channels that are not used."""

from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np

from runtime.card import InputSpec
from runtime.errors import DataError, ImageError
from runtime.image import Limits, load_image
from runtime.support.sizes import size_text
from unet_core.config import TrainConfig
from unet_core.data.labels import BACKGROUND
from unet_core.data.pairs import Pair
from unet_core.data.records import Records
from unet_core.weight_files.finder import listed

WITH_MORE = (".png", ".apng", ".tif", ".tiff", ".geotiff", ".webp")
"""Suffixes of files that may have channels beside the colours."""

LOOKED_AT = 8
"""Maximum number of images that are looked at for channels that are not used."""


def check_masks(train: Records, val: Records, config: TrainConfig, masks: str) -> list[str]:
    """Return notes on masks that all hold one label.

    Args:
        train, val: the decoded records.
        config: the settings of the run.
        masks: the folder of the masks to train on, for the error.

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


def missing_classes(train: Records, val: Records) -> list[str]:
    """Return notes on classes that no mask has; small objects may have no pixel at the network's size."""
    notes = []
    for side, records in (("training", train), ("validation", val)):
        decoder = records.decoder
        fitted = not decoder.truth_at_original and decoder.input.fit != "native"
        at = f"at {size_text(decoder.input.size)} " * fitted
        notes.append(note_on_missing(side, records.labels, decoder.labels.classes, at))
    return notes


def note_on_missing(side: str, labels: Collection[int], classes: Sequence[str], at: str = "") -> str:
    """Return a note on classes that are not among the labels of a side's masks, else "".

    There is none with one class or one label, of which other notes tell.
    """
    missing = [name for label, name in enumerate(classes) if label not in labels and name != BACKGROUND]
    if len(classes) == 1 or len(labels) < 2 or not missing:
        return ""
    which = "this class" if len(missing) == 1 else "these classes"
    verb = "learned" if side == "training" else "measured"
    return f"{side}: {at}no mask has {listed(missing)}; {which} cannot be {verb}"


def only_label(records: Records, config: TrainConfig) -> str:
    """Describe masks that hold one label only."""
    if records.only_label == records.decoder.labels.background:
        return "no mask has any foreground"
    if len(config.classes) == 1:
        return "every pixel of every mask is foreground"
    return f"every pixel of every mask is {config.classes[records.only_label or 0]}"


def unused_channels(pairs: Sequence[Pair], spec: InputSpec, limits: Limits) -> str:
    """Return a note if images have a channel beside their colours that holds a picture and is not used, else ""."""
    if spec.channels == "raw":
        return ""
    files = [pair for pair in pairs if pair.image.suffix.lower() in WITH_MORE]
    places = np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT)).round().astype(int)
    for pair in (files[place] for place in places):
        with suppress(ImageError):  # decoding tells
            load_image(pair.source(pair.image, limits), spec.channels, limits=limits, levels=spec.levels)
            image = load_image(pair.source(pair.image, limits), "raw", limits=limits, levels=spec.levels)
            count = image.shape[2]
            used = 1 if count == 2 else 3
            if count > used and image[:, :, used:].min() != image[:, :, used:].max():
                which, verb = f"channels {used + 1} to {count}", "are"
                if count == used + 1:
                    which, verb = f"channel {count}", "is"
                return (
                    f"training: {which} of {pair.place(pair.image)} {verb} not used, since --channels is "
                    f"{spec.channels}; give --channels {count} to train on all {count}"
                )
    return ""
