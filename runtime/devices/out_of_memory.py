"""Out of memory on a GPU: messages that say so, what follows a failed run, and batches in ever smaller parts.

Seen with ONNX Runtime 1.31.1 on a stand-in for CUDA, after a run that fails because memory cannot be allocated:

- Its buffers stay in the arena, and runs of other shapes cannot use them, so half the batch fails too.
- The convolution that failed remembers the shape, but has no plan for it. The next run of that shape answers by the
  plan of another one, without an error; if there is none yet, the process crashes.

A small run of another shape builds all plans anew, and at the end of it the arena can be shrunk.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.devices.device import Device
from runtime.devices.profiles import Shape, full_batches, part_size
from runtime.devices.session import BatchOutput, reason_of, run_copied
from runtime.errors import DeviceError, UnetError

OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|smaller than requested|alloc_failed|cuda failure 2\b", re.IGNORECASE
)
"""Words by which the arena, CUDA, cuBLAS and cuDNN say that the GPU is full."""

NO_CONTEXT = re.compile(r"create context|execution context", re.IGNORECASE)
"""Words by which ONNX Runtime's TensorRT provider says that an engine, which was loaded, gets no execution context or
cannot run in it ("enqueue failed"). It gives no reason. Both take memory, so a full GPU is the likely one."""

SHRINK = "memory.enable_memory_arena_shrinkage"
"""Run option: the arenas whose unused memory is given back at the end of the run, also of one that fails."""

RESERVE_BYTES = 2**24
"""Memory that has to be free before a small run is tried again. It holds the activations of one, many times over."""

MAX_ATTEMPTS = 8
"""Number of small runs that may fail one after another. Each has to be larger than the one before it."""

T = TypeVar("T")


def is_out_of_memory(text: str) -> bool:
    """Return True if ONNX Runtime's message says that the GPU is full, or that it most likely is."""
    return OUT_OF_MEMORY.search(text) is not None or NO_CONTEXT.search(text) is not None


class Recovery:
    """Runs that a session is brought back after if they fail; one at a time, see `CudaRunner`.

    Args:
        inference: an `onnxruntime.InferenceSession`.
        place: where it runs, ("cuda", index).
        device: its name in messages.
        channels: of a batch.
        small: chooses the shape of the small run, after runs of these shapes have failed.
        builds_plans: the small run builds cuDNN's plans anew, so the session must not be used until one has succeeded.
            Otherwise it only gives memory back, which it does even if it fails.
        one_shape: the model takes one shape, so nothing builds the plans anew after its first run failed.
    """

    def __init__(
        self,
        inference: Any,
        place: tuple[str, int],
        device: Device,
        channels: int,
        small: Callable[[Sequence[Shape]], Shape],
        *,
        builds_plans: bool = True,
        one_shape: bool = False,
    ) -> None:
        self._inference, self._place, self._device, self._channels = inference, place, device, channels
        self._small, self._builds_plans, self._one_shape = small, builds_plans, one_shape
        self._failed: list[Shape] = []
        self._attempts = 0
        self._proven = self._full = False

    def run(self, shape: Shape, run: Callable[[], T], prepare: Callable[[bool], bool], options: Mapping[str, str]) -> T:
        """Run a batch of this shape, and return what `run` returns.

        If it fails, its error is raised, after a small run. If that fails too, it is tried again before the next run.

        Args:
            prepare: is called before a small run, with True if the GPU is full. Returns True if the arena may shrink.
            options: run options of the small run.

        Raises:
            DeviceError: a run failed before this one, and the small run fails. What else `run` raises is raised here.
        """
        if self._failed:
            self._recover(prepare, options)
        self._failed.append(shape)  # until it is done, wherever it is interrupted
        try:
            answer = run()
        except Exception as error:
            self._full = is_out_of_memory(str(error))
            with suppress(Exception):
                self._recover(prepare, options)
            raise
        self._failed.clear()
        self._proven = True
        return answer

    def _recover(self, prepare: Callable[[bool], bool], options: Mapping[str, str]) -> None:
        lost = self._one_shape and not self._proven
        if lost or self._attempts >= MAX_ATTEMPTS:
            why = "its first run failed" if lost else f"a run failed, and {MAX_ATTEMPTS} small ones after it"
            raise DeviceError(f"device {self._device}: {why}, which leaves the model without kernels; open it again")
        shrinks = prepare(self._full)
        shape = self._small(self._failed)
        try:
            if self._attempts:
                self._reserve()
            self._attempts += 1
            self._failed.append(shape)
            self._run_small(shape, shrinks, options)
        except Exception as error:  # ONNX Runtime's errors share no base class
            self._full = self._full or is_out_of_memory(str(error))
            if self._builds_plans and not self._one_shape:
                full = is_out_of_memory(str(error))
                advice = "free memory on the GPU (see nvidia-smi) and try again" if full else "open it again"
                raise DeviceError(
                    f"device {self._device}: a run failed, and so does one of {shape[2]}x{shape[1]} pixels after it "
                    f"({reason_of(error)}); {advice}"
                ) from error
        self._failed.clear()
        self._attempts, self._full = 0, False

    def _reserve(self) -> None:
        """Allocate memory and give it back, without a convolution that could fail for want of it."""
        binding = self._inference.io_binding()
        try:
            binding.bind_cpu_input("image", np.zeros((1, 1, RESERVE_BYTES // self._channels, self._channels), np.uint8))
        finally:
            binding.clear_binding_inputs()

    def _run_small(self, shape: Shape, shrinks: bool, options: Mapping[str, str]) -> None:
        told = onnxruntime.RunOptions()
        for name, value in options.items():
            told.add_run_config_entry(name, value)
        if shrinks:
            kind, index = self._place
            told.add_run_config_entry(SHRINK, f"{'gpu' if kind == 'cuda' else kind}:{index}")
        run_copied(self._inference, self._place, np.zeros((*shape, self._channels), np.uint8), told)


class FittingParts:
    """Runs batches in parts of at most `max_batch` images, all of one size; the last one is filled up.

    When the GPU is out of memory the part is halved, down to single images, and later parts are not made larger again.
    Parts of a file of one shape hold `fixed_batch` images each and are never halved.
    """

    def __init__(self, device: Device, max_batch: int, fixed_batch: int | None = None) -> None:
        self._device, self._max_batch, self._least = device, fixed_batch or max_batch, fixed_batch or 1
        self._most_pixels: int | None = None

    def run(
        self, batch: NDArray[np.uint8], run_part: Callable[[NDArray[np.uint8]], BatchOutput], before: int = 0
    ) -> BatchOutput:
        """Run a batch uint8 [n, height, width, channels] by `run_part`, which recovers after an error.

        Parts have the size of those `before`, if that makes no more of them.

        Raises:
            DeviceError: the GPU has too little memory for one image. What else `run_part` raises is raised here.
        """
        outputs: list[BatchOutput] = []
        done = size = 0
        while done < len(batch):
            most = self._max_batch
            if self._most_pixels is not None:  # it may fall on the way
                most = max(1, min(most, self._most_pixels // (batch.shape[1] * batch.shape[2])))
            size = size if 0 < size <= most else part_size(len(batch) - done, most, before)
            outputs.append(self._run_or_halve(next(full_batches(batch[done:], size)), run_part))
            done += size
        return BatchOutput.joined(outputs, len(batch))

    def _run_or_halve(
        self, part: NDArray[np.uint8], run_part: Callable[[NDArray[np.uint8]], BatchOutput]
    ) -> BatchOutput:
        height, width = part.shape[1:3]
        try:
            return run_part(part)
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not is_out_of_memory(str(error)):
                raise
            if len(part) == self._least:
                images = "one image" if len(part) == 1 else f"the {len(part)} images that the file takes at once"
                sure = "" if OUT_OF_MEMORY.search(str(error)) else f", it seems ({reason_of(error)})"
                raise DeviceError(
                    f"device {self._device}: has too little memory for {images} of {width}x{height}{sure}; "
                    "predict it in tiles or smaller, or free memory on the GPU (see nvidia-smi)"
                ) from error
        self._most_pixels = len(part) // 2 * height * width
        return self.run(part, run_part)
