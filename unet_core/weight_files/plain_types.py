"""Plain types that may lie beside the weights: each is made by a class here, or by one that only holds values.

`torch.load(weights_only=True)` refuses a file that names anything but tensors and Python's containers. Programs store
more beside their weights: arguments, paths, NumPy's scalars, dates. Reading one calls what the file names with
arguments of the file's choice, so NumPy's own functions and paths that can touch the disk are replaced by the classes
below, which keep nothing but values.
"""

import argparse
import datetime
import types
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


class StoredValue:
    """An object of NumPy that was in a file: its arguments and its state, which nothing here interprets."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class StoredDict:
    """Stands for a subclass of dict: makes a plain dictionary."""

    def __new__(cls, *_: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class StoredList:
    """Stands for a deque: makes a plain list."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


PLAIN_TYPES: tuple[Callable[..., Any] | tuple[Callable[..., Any], str], ...] = (
    # These hold values under names.
    argparse.Namespace,
    (types.SimpleNamespace, "types.SimpleNamespace"),
    # Paths that cannot touch the disk, on every system and under the names of every version of Python.
    *(
        (kind, f"{module}.{name}")
        for kind, names in (
            (PurePosixPath, ("PosixPath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for module in ("pathlib", "pathlib._local")
        for name in names
    ),
    *(
        (StoredValue, name)
        for name in (
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
        )
    ),
    *(
        (StoredDict, name)
        for name in (
            "collections.defaultdict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
        )
    ),
    (StoredList, "collections.deque"),
    # Python's numbers and containers, as the default of a defaultdict say, and dates.
    *((kind, f"builtins.{kind.__name__}") for kind in (bool, int, float, str, list, dict, tuple, frozenset)),
    (str, "torch.torch_version.TorchVersion"),
    datetime.date,
    datetime.time,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
)
"""Types for `torch.serialization.safe_globals`, with the name under which a file asks for each."""
