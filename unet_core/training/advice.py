"""Advice on settings: notes on those that have less effect than expected, and what to change after an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch

from runtime.errors import UnetError
from unet_core.config import TrainConfig, flag
from unet_core.data.pairs import has_validation

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
