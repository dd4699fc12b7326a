"""The page docs/commands.md, made of the commands themselves: `make reference` writes it, a test compares it."""

from importlib import import_module
from pathlib import Path

import click

COMMANDS = {
    "unet-train": ("unet_core.train", "main"),
    "unet-export": ("export.cli", "main"),
    "unet-predict": ("runtime.commands.predict", "predict"),
    "unet-evaluate": ("unet_core.evaluate", "main"),
    "unet-doctor": ("runtime.commands.doctor", "main"),
    "unet-bench run": ("benchmarks.cli", "run"),
    "unet-bench compare": ("benchmarks.cli", "compare_runs"),
    "python -m unet_core.turntable": ("unet_core.turntable", "main"),
    "python -m benchmarks.precision": ("benchmarks.precision", "main"),
    "python -m benchmarks.training": ("benchmarks.training", "main"),
    "python -m benchmarks.networks": ("benchmarks.networks", "main"),
    "python -m benchmarks.first_gpu_run": ("benchmarks.first_gpu_run", "main"),
}
"""Module and name of each command, by the words that start it."""

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def commands() -> dict[str, click.Command]:
    """Import all commands, by the words that start them."""
    return {words: getattr(import_module(module), name) for words, (module, name) in COMMANDS.items()}
