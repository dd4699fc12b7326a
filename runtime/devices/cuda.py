"""CUDA: sessions on NVIDIA GPUs with buffers that stay on the device, buckets of sizes, CUDA graphs.

ONNX Runtime 1.31 offers no pinned host memory in Python for its CUDA provider (`get_ep_devices` lists the CPU alone),
so batches travel from and to ordinary memory. Options after onnxruntime.ai, execution providers, CUDA.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard, UNetConfig
from runtime.devices.backend import Backend, ProviderChain, SessionRequest
from runtime.devices.cpu import CPU_CHAIN
from runtime.devices.device import Device
from runtime.devices.nvidia import nvidia_problem
from runtime.devices.out_of_memory import FittingParts
from runtime.devices.profiles import bucketed, cropped, padded
from runtime.devices.session import CLOSED, BatchOutput, Session, run_value
from runtime.errors import ClosedError
from runtime.options import Heuristics, ProviderOptions, Size

MAX_GRAPHS = 8
"""Number of shapes whose kernels are kept as a CUDA graph; each holds its memory."""

NO_GRAPH = -1
"""The `gpu_graph_id` of a run that is neither captured nor replayed."""

CUDNN_SEARCH: Mapping[Heuristics, str] = {"mode_a": "HEURISTIC", "mode_b": "EXHAUSTIVE", "fallback": "DEFAULT"}
"""ONNX Runtime's names of cuDNN's heuristics, which say what they did before version 1.20 (its issue 22705)."""

WITHOUT_INTEGERS: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
"""Options of a session for an int8 file: weights and biases become fp32 when it is opened.

Otherwise ONNX Runtime makes int32 of the biases even where the file holds fp32, and has no kernel on the GPU that turns
them into fp32 again: each would come from the CPU in every run.
"""

T = TypeVar("T")


IDLE_BUFFERS = 8
"""Number of sets of buffers that are kept: one for each thread at one size, or several sizes in one thread."""

IDLE_BYTES = 2**28
"""Bytes that kept buffers hold together; the last used set is kept whatever its size."""

K = TypeVar("K")


class HoldsBytes(Protocol):
    """An item that holds `nbytes` bytes."""

    nbytes: int


V = TypeVar("V", bound=HoldsBytes)


class Pool(Generic[K, V]):
    """Items for reuse, each lent to one user at a time; the longest unused go when they are too many or too large."""

    def __init__(self, make: Callable[[K], V], limit: int, max_bytes: int) -> None:
        self._make, self._limit, self._max_bytes = make, limit, max_bytes
        self._idle: list[tuple[K, V]] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, key: K) -> Iterator[V]:
        """Lend an item that was made for `key`, or a new one; an item whose user fails is thrown away."""
        with self._lock:
            last = next((place for place in reversed(range(len(self._idle))) if self._idle[place][0] == key), None)
            idle = None if last is None else self._idle.pop(last)[1]
        item = self._make(key) if idle is None else idle
        yield item
        with self._lock:
            self._idle.append((key, item))
            del self._idle[: -self._limit]
            while len(self._idle) > 1 and sum(idle.nbytes for _, idle in self._idle) > self._max_bytes:
                del self._idle[0]

    def clear(self) -> None:
        """Throw the idle ones away."""
        with self._lock:
            self._idle.clear()


class Buffers:
    """Input and output of one shape in a device's memory, at addresses that stay, bound to a session."""

    def __init__(self, inference: Any, place: tuple[str, int], shape: tuple[int, ...], classes: int) -> None:
        batch, height, width, _ = shape
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self.nbytes = math.prod(shape) + 4 * batch * classes * height * width
        self._inference = inference
        self._input = make(shape, np.uint8, *place)
        self._output = make((batch, classes, height, width), np.float32, *place)
        self._binding = inference.io_binding()
        self._binding.bind_ortvalue_input("image", self._input)
        self._binding.bind_ortvalue_output("probability", self._output)

    def run(self, batch: NDArray[np.uint8], options: Any) -> BatchOutput:
        """Copy the batch in, run, and copy the answer out."""
        start = time.perf_counter()
        self._input.update_inplace(batch)
        copied = time.perf_counter()
        self._inference.run_with_iobinding(self._binding, options)
        done = time.perf_counter()
        answer: NDArray[np.float32] = self._output.numpy()
        answer = answer if answer.flags.owndata else answer.copy()  # on the CPU it is the buffer itself
        return BatchOutput(answer, copied - start + time.perf_counter() - done)


class CudaRunner:
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

    def run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Run one batch as it is, as a CUDA graph if there is one for its shape, or room for another."""
        return self._in_thread(self._run, batch)

    def run_value(self, value: Any) -> Any:
        """Run an OrtValue where it is; never as a graph, whose addresses would have to stay."""
        return self._in_thread(run_value, self.inference, value, self._index, self._options(NO_GRAPH))

    def shrink(self) -> None:
        """Give idle buffers back."""
        self._in_thread(self._pool.clear)

    def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments) if self._thread is None else self._thread.submit(function, *arguments).result()

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        if batch.shape not in self._graphs and len(self._graphs) >= self._allowed:
            with self._pool.lend(batch.shape) as buffers:
                return buffers.run(batch, self._options(NO_GRAPH))
        number, buffers = self._graphs.get(batch.shape) or (next(self._graph_ids), self._make(batch.shape))
        output = buffers.run(batch, self._options(number))
        self._graphs[batch.shape] = number, buffers  # kept only after a run that did not fail
        return output

    def _options(self, graph: int) -> Any:
        if not self._allowed:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class CudaSession(Session):
    """A session on a GPU by ONNX Runtime's CUDA provider; batches run in parts of at most `max_batch` images that fit.

    `memory` is where the buffers are: "cuda", or "cpu" to run the same code without a GPU.
    """

    def __init__(
        self, inference: Any, device: Device, card: ModelCard, options: ProviderOptions, *, memory: str = "cuda"
    ) -> None:
        super().__init__(inference, device, card)
        self._step = options.bucket_of(card)
        self._parts = FittingParts(device, options.max_batch, card.input.fixed_batch)
        place = (memory, device.index)
        graphs = MAX_GRAPHS if options.cuda_graphs and device.kind == "cuda" else 0
        self._runner: CudaRunner | None = CudaRunner(inference, place, card.architecture.classes, graphs)

    def close(self) -> None:
        """Give the memory back, as `Session.close` does."""
        super().close()
        self._runner = None

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        return self._parts.run(batch, self._run_part, lambda: self._open_runner().shrink())

    def _run_value(self, value: Any) -> Any:
        return self._open_runner().run_value(value)

    def _run_part(self, part: NDArray[np.uint8]) -> BatchOutput:
        size = part.shape[1], part.shape[2]
        output = self._open_runner().run(padded(part, self._padded_size(size)))
        return output._replace(probability=cropped(output.probability, size))

    def _padded_size(self, size: Size) -> Size:
        """Return the (height, width) at which an image of `size` is shown to the GPU."""
        return bucketed(size, self._step)

    def _open_runner(self) -> CudaRunner:
        runner = self._runner
        if runner is None:
            raise ClosedError(CLOSED)
        return runner


def multiplies_only_fp16(card: ModelCard) -> bool:
    """Return True if all layers of a file are known to be fp16, so that TF32 is in none of its products."""
    gate = card.proof.gate if card.proof is not None else None
    ours = isinstance(card.architecture, UNetConfig)  # an author's network may multiply outside of convolutions
    return card.precision == "fp16" and ours and gate is not None and not gate.kept


def cuda_options(device: Device, card: ModelCard, options: ProviderOptions) -> dict[str, str]:
    """Make the options of ONNX Runtime's CUDA provider.

    The arena grows by what is asked for (`arena_extend_strategy`): doubling it each time wastes up to half of a GPU.
    """
    limit = {} if options.gpu_mem_limit is None else {"gpu_mem_limit": str(options.gpu_mem_limit)}
    return {
        "device_id": str(device.index),
        "use_tf32": str(int(options.tf32 or multiplies_only_fp16(card))),
        "cudnn_conv_algo_search": CUDNN_SEARCH[options.cudnn_heuristics],
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(options.cuda_graphs and device.kind == "cuda")),
        **limit,
        **{name: value for name, value in dict(options.extra).items() if not name.startswith("trt_")},
    }


def cuda_chain(device: Device, card: ModelCard, options: ProviderOptions) -> ProviderChain:
    """Return CUDA and, for what it does not take, the CPU."""
    return [(CUDA.provider, cuda_options(device, card, options)), *CPU_CHAIN]


def _open(request: SessionRequest) -> Session:
    device, card, options = request.device, request.card, request.options
    if card.precision == "int8":
        request.note(
            f"device {device}: computes the convolutions of this int8 file in fp32, with rounding between them, so it "
            "cannot be faster than an fp32 file; take a file of fp16 or fp32, or device tensorrt"
        )
    if card.precision == "fp16" and not options.tf32 and not multiplies_only_fp16(card):
        request.note(
            f"device {device}: tf32=False takes the tensor cores from all layers of this fp16 file, since ONNX Runtime "
            "knows no other way to keep TF32 from its fp32 layers; leave tf32 out if the time matters"
        )
    chain = cuda_chain(device, card, options)
    inference = request.open_inference(chain, WITHOUT_INTEGERS if card.precision == "int8" else {})
    return request.checked(CudaSession(inference, device, card, options))


CUDA = Backend(
    kind="cuda",
    provider="CUDAExecutionProvider",
    # TF32, the default, has 10 bits of mantissa. The limit is a guess until one has been measured, and a coarse one: it
    # shows a broken kernel or another model's engine, not a small error.
    tolerance=2e-2,
    unavailable_reason=nvidia_problem,
    open=_open,
)
