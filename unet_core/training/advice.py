"""Notes on settings that have less effect than one might expect, shown before the first epoch."""

from dataclasses import fields

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
