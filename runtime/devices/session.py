"""Session: what runs a batch on one device, and the one that serves on CUDA while TensorRT's engine is built.

What only a GPU needs is in `runtime.devices.cuda` and loaded where there is one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.device import Device
from runtime.devices.placement import Node, node_placement, placement
from runtime.devices.profiles import Shape
from runtime.errors import DeviceError, ImageError, UnetError, one_line
from runtime.model_file.golden import NetworkFunction

Note = Callable[[str], None]
Check = Callable[[NetworkFunction], None]
"""Replays the golden sample; raises where the answer is wrong."""


class Copies(threading.local):
    """Seconds that this thread has spent copying to and from a GPU."""

    seconds = 0.0


COPIES = Copies()


DLPACK_CPU, DLPACK_CUDA = 1, 2
"""Of DLDeviceType in dlpack.h."""


class Session:
    """A model on one device, by ONNX Runtime; this class as it is serves the CPU.

    Attributes:
        device: where it runs.
        nodes: where ONNX Runtime put each node of the graph.
    """

    def __init__(self, inference: Any, device: Device, card: ModelCard) -> None:
        self.device = device
        self.nodes: tuple[Node, ...] = node_placement(inference)
        self._card = card
        self._inference: Any = inference

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probability float32 [batch, classes, h, w] of uint8 [batch, h, w, channels]; any number of threads may.

        Raises:
            DeviceError: the device gives up on it, most likely for want of memory, or the session is closed.
        """
        self._opened_inference()
        try:
            return self._run(batch)
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._failure(list(batch.shape), error) from error

    def run_dlpack(self, tensor: Any) -> Any:
        """Like `run`, on the device's own memory and without a copy, for tensors of any library that speaks DLPack.

        Args:
            tensor: uint8 [batch, height, width, channels], contiguous, writable, on this session's device: a torch or
                CuPy array on the GPU, a numpy array on the CPU. On a GPU it must be ready: synchronise the stream that
                wrote it first.

        Returns:
            `onnxruntime.OrtValue` float32 [batch, classes, height, width] on the same device, for `from_dlpack` of that
            library. Batches are neither split nor padded, so a new shape may cost a search for kernels.

        Raises:
            ImageError: another type, shape, layout or device.
            DeviceError: as `run`.
        """
        self._opened_inference()
        value = self._imported(tensor)
        try:
            return self._run_value(value)
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._failure(value.shape(), error) from error

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002 - TensorRT's is choosy
        """Whether a batch of (batch, height, width) can run here."""
        return True

    def takes_whole(self, shape: Shape) -> bool:  # noqa: ARG002 - as above
        """Whether it can run in one part and without padding, as `run_dlpack` does."""
        return True

    def placement(self) -> Mapping[str, int]:
        """Number of graph nodes by execution provider."""
        return placement(self.nodes)

    def prepare(self) -> None:
        """Run one batch of the trained size, so that the first user does not wait for what happens once."""
        self.run(np.zeros((1, *self._card.input.size, self._card.architecture.in_channels), np.uint8))

    def close(self) -> None:
        """Give the model's memory back, as soon as runs in other threads have ended; running it again raises."""
        self._inference = None

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = self._opened_inference().run(["probability"], {"image": batch})[0]
        return answer

    def _run_value(self, value: Any) -> Any:
        return run_value(self._opened_inference(), value, self.device.index)

    def _imported(self, tensor: Any) -> Any:
        expected = f"uint8 [batch, height, width, {self._card.architecture.in_channels}] on {self.device}"
        try:
            value = onnxruntime.OrtValue.from_dlpack(tensor)
        except Exception as error:  # each library has its own
            found = f"{type(tensor).__name__} {getattr(tensor, 'dtype', '')} {list(getattr(tensor, 'shape', ()))}"
            raise ImageError(
                f"tensor: found {found}, which DLPack does not take, expected a contiguous, writable {expected}"
            ) from error
        shape, kind, place = value.shape(), value.data_type(), tuple(value.__dlpack_device__())
        here = (DLPACK_CPU, 0) if self.device.kind == "cpu" else (DLPACK_CUDA, self.device.index)
        channels = self._card.architecture.in_channels
        if kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != channels or 0 in shape or place != here:
            raise ImageError(f"tensor: found {kind} {shape} on {value.device_name()}, expected {expected}")
        return value

    def _opened_inference(self) -> Any:
        inference = self._inference
        if inference is None:
            raise DeviceError(f"device {self.device}: the session is closed; open another one")
        return inference

    def _failure(self, shape: list[int], error: Exception) -> DeviceError:
        return DeviceError(
            f"device {self.device}: cannot run a batch of {shape} ({one_line(str(error))[:300]}); try a smaller one"
        )


def run_value(inference: Any, value: Any, index: int, options: Any = None) -> Any:
    """Run an OrtValue where it is, on the device `index` of its kind; the answer's OrtValue is there too."""
    binding = inference.io_binding()
    binding.bind_ortvalue_input("image", value)
    binding.bind_output("probability", value.device_name(), index)
    inference.run_with_iobinding(binding, options)
    return binding.get_outputs()[0]


PROGRESS_SECONDS = 15.0


@contextmanager
def telling(what: str, note: Note, every: float | None = None) -> Iterator[None]:
    """Tell when something long begins, how long it has taken every so many seconds, and that it is done or failed."""
    start, ended = time.monotonic(), threading.Event()

    def seconds() -> str:
        return f"{time.monotonic() - start:.0f} s"

    def tick() -> None:
        while not ended.wait(every or PROGRESS_SECONDS):
            note(f"{what}: still at it after {seconds()}")

    note(f"{what}: begins, and takes seconds to minutes")
    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    ticker.start()
    try:
        yield
    except BaseException:
        note(f"{what}: failed after {seconds()}")
        raise
    else:
        note(f"{what}: done in {seconds()}")
    finally:
        ended.set()
        ticker.join()
