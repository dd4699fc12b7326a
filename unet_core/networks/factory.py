"""Makes a network by its author's code, which a user names: FILE.py:NAME or package.module:NAME."""

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from runtime.errors import ConfigError, one_line

OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable by which packages that download weights from a hub do not."""

ANOTHER = "_of_network"
"""Ending of the name of a module if another one of its name is imported already."""

SHOWN = 300
"""Maximum length of an error of the author's code in a message, in characters."""


def make_network(source: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Import a class or function by "FILE.py:NAME" or "package.module:NAME", and call it with keyword arguments.

    This runs the code of that file or package, which sees no arguments of a command line. It can import from the folder
    of FILE.py, or else the current one.

    Raises:
        ConfigError: there is no such file, module or name; it raises, or ends the program; or it
            returns no `torch.nn.Module`.
    """
    place, colon, name = source.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ConfigError(f"--network {source}: expected FILE.py:NAME or package.module:NAME")
    is_file = place.endswith(".py")
    file = Path(place)
    if is_file and not file.is_file():
        raise ConfigError(f"--network {source}: {place}: no such file")
    call = f"{name}({_written(arguments)})"
    with _as_a_program(place, file.resolve().parent if is_file else Path.cwd()):
        module = _imported(source, place, file)
        make = getattr(module, name, None)
        if make is None:
            raise ConfigError(f"--network {source}: {place} has no {name}; found {_names_in(module, name)}")
        if not callable(make):
            raise ConfigError(f"--network {source}: {name} is a {type(make).__name__}, expected a class or a function")
        try:
            network = make(**(arguments or {}))
        except SystemExit as error:
            raise ConfigError(f"--network {source}: {call} ends the program, expected a torch.nn.Module") from error
        except Exception as error:  # of any type: it is the author's code
            advice = "; give its arguments by --network-arg NAME=VALUE" if isinstance(error, TypeError) else ""
            if isinstance(error, OSError) or type(error).__module__.startswith("huggingface_hub"):
                advice = (
                    "; if it downloads weights, which the checkpoint's replace, switch that off, as by --network-arg "
                    "encoder_weights=None (segmentation_models_pytorch) or weights=None (torchvision)"
                )
            raise ConfigError(f"--network {source}: {call} raises {_told(error)}{advice}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"--network {source}: {call} returns {type(network).__name__}, expected a torch.nn.Module")
    return network


def _imported(source: str, place: str, file: Path) -> ModuleType:
    """Import the file, or the module `place` if that is none."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        name = file.stem if file.stem not in sys.modules else f"{file.stem}{ANOTHER}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    except SystemExit as error:
        raise ConfigError(
            f"--network {source}: {place} ends the program when it is imported; put that under "
            '`if __name__ == "__main__"`'
        ) from error
    except Exception as error:  # of any type: it is the author's code
        is_missing = isinstance(error, ModuleNotFoundError)
        raise ConfigError(
            f"--network {source}: {place} cannot be imported: it raises {_told(error)}"
            f"{'; install what is missing where unet-export is installed' * is_missing}"
        ) from error


@contextmanager
def _as_a_program(place: str, folder: Path) -> Iterator[None]:
    """Let imports look into a folder first, and code that reads its command line find that of a program alone.

    Weights that a network would start with are replaced, so none are downloaded from a hub unless the user's
    environment says so. Deprecations within packages are not shown.
    """
    path, arguments, offline = str(folder), sys.argv, os.environ.get(OFFLINE)
    sys.path.insert(0, path)
    sys.argv = [place]
    os.environ.setdefault(OFFLINE, "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        sys.argv = arguments
        if offline is None:
            del os.environ[OFFLINE]
        if path in sys.path:  # else the author's code took it out
            sys.path.remove(path)


def _names_in(module: ModuleType, name: str) -> str:
    """List networks, and classes and functions that a module defines itself, those like `name` first; or "none"."""
    own = [
        one
        for one, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        or (inspect.isclass(value) and issubclass(value, nn.Module))
    ]
    return ", ".join(list(dict.fromkeys((*get_close_matches(name, own), *own)))[:10]) or "none"


def _written(arguments: Mapping[str, Any] | None) -> str:
    """Write keyword arguments as in Python."""
    return ", ".join(f"{name}={value!r}" for name, value in (arguments or {}).items())


def _told(error: Exception) -> str:
    """Write an error of the author's code on one line."""
    return f"{type(error).__name__}: {one_line(str(error))[:SHOWN]}"
