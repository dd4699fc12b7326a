"""The names nearest to one that does not exist: options, settings and commands, also as other programs call them."""

import difflib
from collections.abc import Collection, Mapping

NEAR = 0.75
"""Least likeness (0..1, as of `difflib`) of a name that was mistyped."""

OTHER_NAMES: Mapping[str, str] = {
    "amp": "precision mixed-precision autocast",
    "amp bf16": "bf16",
    "amp fp16": "fp16 half",
    "augment": "aug augmentation augmentations",
    "batch-size": "batch bs",
    "channels": "in-channels",
    "classes": "class-name class-names names",
    "device": "gpus accelerator",
    "device cpu": "cpu no-cuda no-gpu",
    "device cuda": "cuda",
    "device gpu": "gpu",
    "epochs": "max-epochs num-epochs",
    "format": "output-format save-format",
    "init-from": "weights pretrained checkpoint load finetune",
    "lr": "learning-rate lr0 base-lr",
    "out": "output output-dir out-dir save-dir project",
    "precision": "dtype",
    "precision fp16": "fp16 half",
    "precision int8": "int8 quantize quantise",
    "schedule": "scheduler lr-scheduler lr-schedule",
    "seed": "random-seed",
    "size": "height width img-size image-size imgsz img-sz input-size input-shape resolution",
    "skip-existing": "resume",
    "submission": "out output",
    "threads": "num-threads workers num-workers jobs",
    "threshold": "conf confidence conf-thres mask-threshold",
    "tile": "tile-size patch patch-size window-size",
    "val-share": "val validation val-split val-percent validation-split",
    "weight-decay": "wd l2",
    "widths": "features filters base-channels",
    "workers": "num-workers jobs",
}
"""Our names, with a value if that belongs to it, and the names that other programs have for the same."""


def nearest(name: str, known: Collection[str]) -> list[str]:
    """Return the names, of those `known`, that a user may have meant: none, one, or two that are alike.

    Names are without "--", and underscores count as hyphens. One may be followed by a value: "device gpu".
    """
    name = name.lower().replace("_", "-")
    if name in known:
        return [name]
    meant = [ours for ours, theirs in OTHER_NAMES.items() if name in theirs.split() and ours.split()[0] in known]
    if meant:
        return meant[:2]
    longer = [one for one in known if len(name) >= 3 and (one.startswith(name) or name in one.split("-"))]
    if longer:
        return longer[:2]
    return difflib.get_close_matches(name, known, n=2, cutoff=NEAR)


def did_you_mean(names: Collection[str]) -> str:
    """Return " Did you mean --a or --b?", or "" without names."""
    return f" Did you mean {' or '.join(names)}?" if names else ""
