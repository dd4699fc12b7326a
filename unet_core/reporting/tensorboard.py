"""Scalars and pictures for TensorBoard."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OutputError


class TensorBoardWriter:
    """Writes event files in a folder, or nothing if `folder` is None. Events from `epoch` on replace older ones.

    Raises:
        OutputError: a file cannot be written; every method may raise it.
    """

    def __init__(self, folder: Path | None, epoch: int) -> None:
        self._folder = folder
        self._writer: Any = None
        if folder is not None:
            with warnings.catch_warnings(), self._writing():
                warnings.simplefilter("ignore")  # TensorBoard's own deprecations
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder), purge_step=epoch)

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            with self._writing() if kind is None else suppress(OSError):  # the first error is the one to report
                self._writer.close()

    def scalars(self, row: Mapping[str, float]) -> None:
        """Write the figures of an epoch; those of the classes are grouped by metric."""
        if self._writer is None:
            return
        with self._writing():
            for name, value in row.items():
                if name != "epoch" and math.isfinite(value):
                    metric, _, of_class = name.partition(" ")
                    self._writer.add_scalar(f"{metric}/{of_class}" if of_class else name, value, int(row["epoch"]))
            self._writer.flush()

    def picture(self, name: str, picture: NDArray[np.uint8], epoch: int) -> None:
        """Write a picture, uint8 [height, width, 3]."""
        if self._writer is None:
            return
        with self._writing():
            self._writer.add_image(name, picture, epoch, dataformats="HWC")
            self._writer.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an OSError into an OutputError that names the folder."""
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(
                f"{self._folder}: cannot be written ({reason}); fix that, or train with --no-tensorboard"
            ) from error
