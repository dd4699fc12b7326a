"""Entry points of commands, which import a command's module when it is run; here unet-predict's, unet-doctor's and
unet-serve's.

This module imports next to nothing, since Ctrl-C is not handled yet while it is imported.
"""

import sys
from importlib import import_module
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count it."""


def missing_text(error: ModuleNotFoundError, extra: str | None) -> str:
    """Name the missing package and the extra that installs it; None: no extra does."""
    name = str(error.name).partition(".")[0]
    way = f"install unet-deploy with its extra [{extra}]" if extra else f"pip install {name}"
    return f"{name} is not installed; {way}"


def exit_without(error: ModuleNotFoundError, extra: str) -> NoReturn:
    """End a command whose packages are missing; one line names the extra that installs them."""
    print(f"error: {missing_text(error, extra)}", file=sys.stderr)
    sys.exit(2)  # UnetError.exit_code


def start(module: str, name: str = "main", extra: str | None = None) -> None:
    """Import a command and run it. The import takes a while; Ctrl-C during it is not an error.

    `extra` is the extra that installs the module's packages.
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


def serve() -> None:
    """unet-serve."""
    start("runtime.commands.serve", "serve")
