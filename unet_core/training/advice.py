"""Advice on settings: notes on those that have less effect than expected, and what to change after an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch

from runtime.errors import UnetError
from unet_core.config import TrainConfig, flag
from unet_core.data.pairs import has_validation
from unet_core.evaluation.best_epoch import History, epochs_without_progress
from unet_core.losses import loss_names

FEW_STEPS = 300
"""Number of steps below which a network may have learned too little of anything."""

SPLIT_OFF = "data without val_images/"


def settings_without_effect(config: TrainConfig, images: int) -> list[str]:
    """Return a note for each changed setting that has no effect, or less than it says, on so many images."""
    step = config.batch_size * config.accumulate
    needs = {
        "momentum": (config.optimizer in ("sgd", "rmsprop"), "--optimizer sgd or rmsprop"),
        "plateau_epochs": (config.schedule == "plateau", "--schedule plateau"),
        "foreground_share": (config.fit == "native", "--fit native"),
        "val_share": (not has_validation(config.data), SPLIT_OFF),
        "group": (not has_validation(config.data), SPLIT_OFF),
        "cache_dir": (config.cache_gb > 0, "--cache-gb above 0"),
    }
    changed = {item.name for item in fields(config) if getattr(config, item.name) != item.default}
    notes = [
        f"{flag(name)} {getattr(config, name)}: has no effect; it needs {other}"
        for name, (met, other) in needs.items()
        if name in changed and not met
    ]
    if step > images:
        notes.append(
            f"a step takes {step} images, but there are only {images} to train on: each epoch is one step of {images}"
        )
    if config.warmup_epochs >= config.epochs:
        notes.append(f"--warmup-epochs {config.warmup_epochs:g}: --epochs is {config.epochs}, so --lr is never reached")
    return notes


def advice_on_one_sided(config: TrainConfig, images: int, history: History, rises: bool) -> str:
    """Say what to change after a run whose best weights answer one class everywhere, or one of the classes nowhere.

    `rises` is True if the loss rose from the first steps. More steps help only where there were few, or where the last
    epoch was still the best.
    """
    if rises:
        return f"start again with a lower --lr, such as {config.lr / 10:g}"
    per_epoch = -(-images // (config.batch_size * config.accumulate))
    steps = per_epoch * len(history)
    if steps < FEW_STEPS:
        smaller = " or a smaller --batch-size" if config.batch_size * config.accumulate > 1 else ""
        return f"it took only {steps} step{'s' * (steps > 1)}: give more --epochs{smaller}"
    if epochs_without_progress(history) == 0 and len(history) > 1:
        return "the last epoch was the best one: give more --epochs"
    plain = loss_names(len(config.classes))[0]
    if "dice" not in config.loss_name:
        return f"try --loss {plain}+dice, which counts a rare class as much as a frequent one, or another --lr"
    return "look at the masks in saved_images, and try another --lr"


@contextmanager
def explained_errors(config: TrainConfig) -> Iterator[None]:
    """Translate errors of PyTorch that other settings avoid."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "thinner --widths, or a smaller --height and --width"
        if config.batch_size > 1:
            advice = f"--batch-size {config.batch_size // 2} --accumulate {2 * config.accumulate}"
        raise UnetError(
            f"--batch-size {config.batch_size}: the device is out of memory; give {advice}, or --amp auto"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UnetError(
            f"--compile: PyTorch cannot compile here ({' '.join(str(error).split())[:200]}); leave it out"
        ) from error
