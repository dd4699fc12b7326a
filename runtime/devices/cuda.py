"""Sessions on NVIDIA GPUs: buffers that stay on the device, buckets, out-of-memory, CUDA graphs, TensorRT's engines.

ONNX Runtime 1.31 offers no pinned host memory in Python for its CUDA provider (`get_ep_devices` lists the CPU alone),
so batches travel from and to ordinary memory.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.buffers import IDLE_BUFFERS, IDLE_BYTES, Buffers, Pool
from runtime.devices.device import Device
from runtime.devices.profiles import bucketed, cropped, padded, parts
from runtime.devices.session import COPIES, Session, run_value
from runtime.errors import DeviceError
from runtime.options import ProviderOptions, Size

MAX_GRAPHS = 8
"""Shapes whose kernels are kept as a CUDA graph; each holds its memory."""

NO_GRAPH = -1
"""The `gpu_graph_id` of a run that is neither captured nor replayed."""

OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|smaller than requested|alloc_failed|cuda failure 2\b", re.IGNORECASE
)
"""How the arena, CUDA, cuBLAS and cuDNN say that the GPU is full."""


T = TypeVar("T")


class Engine:
    """An `onnxruntime.InferenceSession` with its buffers and CUDA graphs.

    With graphs everything runs in one thread: ONNX Runtime captures them for each thread anew, and a capture breaks
    when another thread calls CUDA.
    """

    def __init__(self, inference: Any, place: tuple[str, int], classes: int, graphs: int) -> None:

        def make(shape: tuple[int, ...]) -> Buffers:  # not a method: a cycle would hold the memory after `close`
            return Buffers(inference, place, shape, classes)

        self.inference = inference
        self._index, self._make = place[1], make
        self._pool: Pool[tuple[int, ...], Buffers] = Pool(make, IDLE_BUFFERS, IDLE_BYTES)
        self._allowed = graphs
        self._graphs: dict[tuple[int, ...], tuple[int, Buffers]] = {}
        self._graph_ids = count(1)
        self._thread = ThreadPoolExecutor(1, "unet-cuda-graphs") if graphs else None

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch as it is, as a CUDA graph if there is one for its shape, or room for another."""
        return self._in_thread(self._run, batch)

    def run_value(self, value: Any) -> Any:
        """Run an OrtValue where it is; never as a graph, whose addresses would have to stay."""
        return self._in_thread(run_value, self.inference, value, self._index, self._options(NO_GRAPH))

    def shrink(self) -> None:
        """Give idle buffers back."""
        self._in_thread(self._pool.clear)

    def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        if self._thread is None:
            return function(*arguments)

        def timed() -> tuple[T, float]:
            before = COPIES.seconds
            return function(*arguments), COPIES.seconds - before

        answer, copying = self._thread.submit(timed).result()
        COPIES.seconds += copying
        return answer

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if batch.shape in self._graphs or len(self._graphs) < self._allowed:
            return self._replay(batch)
        with self._pool.lend(batch.shape) as buffers:
            return buffers.run(batch, self._options(NO_GRAPH))

    def _replay(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        number, buffers = self._graphs.get(batch.shape) or (next(self._graph_ids), self._make(batch.shape))
        answer = buffers.run(batch, self._options(number))
        self._graphs[batch.shape] = number, buffers
        return answer

    def _options(self, graph: int) -> Any:
        if not self._allowed:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class CudaSession(Session):
    """Runs on a GPU by ONNX Runtime's CUDA provider; larger batches than `max_batch` run in parts.

    When the GPU is full the batch is halved, down to single images, and later ones are not made larger again.
    `memory` is where buffers are: "cuda", or "cpu" to run the same code without a GPU.
    """

    def __init__(
        self, inference: Any, device: Device, card: ModelCard, options: ProviderOptions, *, memory: str = "cuda"
    ) -> None:
        super().__init__(inference, device, card)
        self._step = options.bucket_of(card)
        self._max_batch = options.max_batch
        self._most_pixels: int | None = None
        place = (memory, device.index)
        graphs = MAX_GRAPHS if options.cuda_graphs and device.kind == "cuda" else 0
        self._engine: Engine | None = Engine(inference, place, card.architecture.classes, graphs)

    def close(self) -> None:
        """As `Session.close`."""
        super().close()
        self._engine = None

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers: list[NDArray[np.float32]] = []
        done = 0
        while done < len(batch):  # the limit may fall on the way
            part = next(parts(len(batch) - done, self._limit(batch)))
            answers.append(self._run_halving_on_oom(batch[done : done + part.stop]))
            done += part.stop
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _run_value(self, value: Any) -> Any:
        return self._opened().run_value(value)

    def _limit(self, batch: NDArray[np.uint8]) -> int:
        if self._most_pixels is None:
            return self._max_batch
        fits: int = self._most_pixels // (batch.shape[1] * batch.shape[2])
        return max(1, min(self._max_batch, fits))

    def _run_halving_on_oom(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            return self._once(batch)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not OUT_OF_MEMORY.search(str(error)):
                raise
            if len(batch) == 1:
                raise DeviceError(
                    f"device {self.device}: has too little memory for one image of {batch.shape[1]}x{batch.shape[2]}; "
                    "predict it in tiles or smaller, or free memory on the GPU (see nvidia-smi)"
                ) from error
        self._most_pixels = len(batch) // 2 * batch.shape[1] * batch.shape[2]  # after the error, which held memory
        self._opened().shrink()
        return self._run(batch)

    def _once(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = batch.shape[1], batch.shape[2]
        return cropped(self._opened().run(padded(batch, self._fitted(size))), size)

    def _fitted(self, size: Size) -> Size:
        """The size at which an image of `size` is shown to the GPU."""
        return bucketed(size, self._step)

    def _opened(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise DeviceError(f"device {self.device}: the session is closed; open another one")
        return engine
