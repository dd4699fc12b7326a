"""unet-train and unet-evaluate: the same as `python -m unet_core.train` and `.evaluate`, and kind without PyTorch."""

import sys
from importlib import import_module

from runtime.console import INTERRUPTED, exit_without


def train() -> None:
    """unet-train."""
    _start("unet_core.train")


def evaluate() -> None:
    """unet-evaluate."""
    _start("unet_core.evaluate")


def _start(module: str) -> None:
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        exit_without(error, extra="train")
    except KeyboardInterrupt:  # importing PyTorch takes seconds
        sys.exit(INTERRUPTED)
    main()
