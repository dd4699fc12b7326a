"""Out of memory on a GPU: the messages that say so, and batches that run in ever smaller parts until these fit."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.devices.device import Device
from runtime.devices.profiles import parts
from runtime.devices.session import BatchOutput
from runtime.errors import DeviceError

OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|smaller than requested|alloc_failed|cuda failure 2\b", re.IGNORECASE
)
"""Words by which the arena, CUDA, cuBLAS and cuDNN say that the GPU is full."""


class FittingParts:
    """Runs batches in parts of at most `max_batch` images.

    When the GPU is out of memory the part is halved, down to single images, and later parts are not made larger again.
    Parts of a file of one shape hold `fixed_batch` images each and are never halved.
    """

    def __init__(self, device: Device, max_batch: int, fixed_batch: int | None = None) -> None:
        self._device, self._max_batch, self._least = device, fixed_batch or max_batch, fixed_batch or 1
        self._most_pixels: int | None = None

    def run(
        self, batch: NDArray[np.uint8], run_part: Callable[[NDArray[np.uint8]], BatchOutput], shrink: Callable[[], None]
    ) -> BatchOutput:
        """Run a batch uint8 [n, height, width, channels] by `run_part`; `shrink` gives idle memory back.

        Raises:
            DeviceError: the GPU has too little memory for one image. What else `run_part` raises is raised here.
        """
        outputs: list[BatchOutput] = []
        done = 0
        while done < len(batch):
            most = self._max_batch
            if self._most_pixels is not None:  # it may fall on the way
                most = max(1, min(most, self._most_pixels // (batch.shape[1] * batch.shape[2])))
            part = next(parts(len(batch) - done, most))
            outputs.append(self._run_or_halve(batch[done : done + part.stop], run_part, shrink))
            done += part.stop
        return BatchOutput.joined(outputs, len(batch))

    def _run_or_halve(
        self, part: NDArray[np.uint8], run_part: Callable[[NDArray[np.uint8]], BatchOutput], shrink: Callable[[], None]
    ) -> BatchOutput:
        height, width = part.shape[1:3]
        try:
            return run_part(part)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not OUT_OF_MEMORY.search(str(error)):
                raise
            if len(part) == self._least:
                images = "one image" if len(part) == 1 else f"the {len(part)} images that the file takes at once"
                raise DeviceError(
                    f"device {self._device}: has too little memory for {images} of {width}x{height}; "
                    "predict it in tiles or smaller, or free memory on the GPU (see nvidia-smi)"
                ) from error
        self._most_pixels = len(part) // 2 * height * width  # after the error, which held memory
        shrink()
        return self.run(part, run_part, shrink)
