"""Folders that `save_pretrained` writes: weights, and the arguments of the network's class in config.json."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError

CONFIG = "config.json"

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files that hold a folder's weights."""

WITHOUT_DOWNLOADS: Mapping[str, Any] = {"encoder_weights": None, "pretrained": False}
"""Arguments that would make a class fetch other weights, and their values for a class that gets the folder's."""

SMP = "segmentation_models_pytorch"
MODEL_CLASS = "_model_class"
"""Entry in which this package keeps the name of the class."""


def refuse_folder(path: Path) -> None:
    """Refuse a folder of `save_pretrained`: its class is code, which only the user can name.

    Raises:
        CheckpointError: the path is such a folder; the message has the command that takes it.
    """
    if weight_file(path) is None:
        return
    config = read_config(path)
    # A name that anybody may have written goes into a command to paste, so it has to be a name.
    kind = str(config.get(MODEL_CLASS))
    source = f"{SMP}:{kind if kind.isidentifier() else 'NAME'}" if MODEL_CLASS in config else "package.module:NAME"
    whose = f"of {SMP}, " if MODEL_CLASS in config else ""
    raise CheckpointError(
        f"{path}: is a folder {whose}as save_pretrained writes it; name its class, which takes its arguments from "
        f"{CONFIG}: unet-export {shlex.quote(str(path))} --network {shlex.quote(source)}"
    )


def open_folder(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights in a folder, and the arguments of the network's class; a file has no arguments.

    Raises:
        CheckpointError: the folder holds no such file, or its config.json is damaged.
    """
    if not path.is_dir():
        return path, {}
    file = weight_file(path)
    if file is None:
        raise CheckpointError(f"{path}: is a folder without {' and '.join(WEIGHT_FILES)}; give a file of weights")
    config = read_config(path)
    if "model_type" in config or "architectures" in config:  # of Transformers, whose classes take no such arguments
        return file, {}
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    return file, {name: WITHOUT_DOWNLOADS.get(name, value) for name, value in arguments.items()}


def weight_file(path: Path) -> Path | None:
    """Return the file of weights in a folder of `save_pretrained`; None for all other paths."""
    return next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's config.json; one that is not there is empty."""
    file = path / CONFIG
    try:
        config = json.loads(file.read_bytes()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not JSON ({error}); save the folder again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds a {type(config).__name__}, expected names and values; save it again")
    return config
