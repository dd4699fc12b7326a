"""Entry points of commands: their modules are imported when they are run, here unet-predict's and unet-doctor's.

What this module imports is loaded before anybody guards against Ctrl-C, so it is next to nothing.
"""

import sys
from importlib import import_module
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count it."""


def exit_without(error: ModuleNotFoundError, extra: str) -> NoReturn:
    """End a command whose packages are not installed with one line that says which extra brings them."""
    print(f"error: {error.name} is not installed; install unet-deploy with its extra [{extra}]", file=sys.stderr)
    sys.exit(2)  # UnetError.exit_code


def start(module: str, name: str = "main", extra: str | None = None) -> None:
    """Import a command and run it; what imports it takes a while, and Ctrl-C meanwhile is no error.

    `extra` is the one that brings the packages which the module needs.
    """
    try:
        command = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        exit_without(error, extra)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command()


def predict() -> None:
    """unet-predict."""
    start("runtime.commands.predict", "predict")


def doctor() -> None:
    """unet-doctor."""
    start("runtime.commands.doctor")
