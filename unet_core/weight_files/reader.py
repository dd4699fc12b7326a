"""Reading a file of weights without executing anything that is in it."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runtime.errors import CheckpointError
from unet_core.weight_files.integrity import check_content, check_file
from unet_core.weight_files.pickle_check import RefusedError
from unet_core.weight_files.plain_types import PLAIN_TYPES
from unet_core.weight_files.presence import require_weights
from unet_core.weight_files.refusals import kind_of, other_types

SAFETENSORS = ".safetensors"


def read_content(path: Path) -> dict[str, Any]:
    """Read a file of PyTorch or safetensors without executing anything in it.

    Besides tensors it may hold Python's own types and those of `PLAIN_TYPES`. The checksums in a zip archive are
    compared, and a file that would take far more memory or time than its size is refused before it is read.

    Raises:
        CheckpointError: the file is missing, empty, damaged or of another kind, or holds more than that; the message
            says what it is and how to get at its weights.
    """
    require_weights(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint such as {path / 'model.pth'}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path}: is empty (0 bytes), expected a checkpoint")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file, expected the checkpoint that it was exported from")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    # A safetensors file begins with the length of its header, which is JSON.
    has_header = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size
    safetensors = has_header or path.suffix.lower() == SAFETENSORS
    try:
        if not safetensors:
            check_file(path, head)
        content = read_safetensors(path) if safetensors else read_plain(path)
        check_content(content if isinstance(content, dict) else {}, path.stat().st_size)
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and safetensors raise many types on damaged files
        expected = "safetensors file" if safetensors else "PyTorch checkpoint"
        reason = kind_of(path, head) or (str(error) if isinstance(error, RefusedError) else "")
        if not reason and isinstance(error, pickle.UnpicklingError):
            reason = other_types(path)
        reason = reason or f"is damaged, truncated or not a {expected}; copy or save it again"
        raise CheckpointError(f"{path}: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def read_plain(path: Path) -> Any:
    """Read a file of PyTorch: as it is by default, and if that is refused with `PLAIN_TYPES` too.

    Raises:
        pickle.UnpicklingError: it holds other types.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
        forget_sparse()
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            forget_sparse()
            with torch.serialization.safe_globals(list(PLAIN_TYPES)):
                return torch.load(path, map_location="cpu", weights_only=True)


def forget_sparse() -> None:
    """Empty PyTorch's list of sparse tensors to check: after an error it would refuse the next file because of them."""
    waiting = getattr(torch._utils, "_get_sparse_tensors_to_validate", None)
    if waiting is not None:
        waiting().clear()


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file, in which a tensor that several names share is stored under one of them."""
    with safe_open(path, "pt") as file:
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        shared = {name: kept for name, kept in (file.metadata() or {}).items() if kept in tensors}
    return tensors | {name: tensors[kept] for name, kept in shared.items() if name not in tensors}
