"""CUDA: sessions on NVIDIA GPUs, one run at a time, with buckets of sizes and CUDA graphs.

ONNX Runtime 1.31 offers no pinned host memory in Python for its CUDA provider (`get_ep_devices` lists the CPU alone),
so batches travel from and to ordinary memory. Options after onnxruntime.ai, execution providers, CUDA.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard, UNetConfig
from runtime.devices.backend import Backend, ProviderChain, SessionRequest
from runtime.devices.cpu import CPU_CHAIN
from runtime.devices.device import Device
from runtime.devices.nvidia import nvidia_problem
from runtime.devices.out_of_memory import FittingParts, Recovery
from runtime.devices.profiles import Shape, bucketed, cropped, full_batches, padded, shape_unlike
from runtime.devices.session import CLOSED, BatchOutput, Session, owned, run_copied, run_value
from runtime.devices.shape_changes import SteadyBatch, Turns
from runtime.errors import ClosedError
from runtime.options import Heuristics, ProviderOptions, Size
from runtime.support.concurrency import join_nobody

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


class Buffers:
    """Input and output of one shape in a device's memory, at addresses that stay, bound to a session."""

    def __init__(self, inference: Any, place: tuple[str, int], shape: tuple[int, ...], classes: int) -> None:
        batch, height, width, _ = shape
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
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
        return BatchOutput(owned(self._output.numpy()), copied - start + time.perf_counter() - done)


class CudaRunner:
    """An `onnxruntime.InferenceSession` that runs one batch at a time, with CUDA graphs if wanted.

    One at a time, because a run that fails for want of memory leaves a convolution with the plan of another shape: a
    run beside it could answer by that plan. Every failed run is followed by `recovery` before anybody else runs, or
    before the next run if it fails too.

    With graphs everything runs in one thread: ONNX Runtime captures them for each thread anew, and a capture breaks
    when another thread calls CUDA.

    Args:
        place: where the model runs, ("cuda", index).
        classes: planes of an answer.
        recovery: the run that follows a failed one.
        steady: is told of every run.
        graphs: number of shapes that may be kept as CUDA graphs.
    """

    def __init__(
        self,
        inference: Any,
        place: tuple[str, int],
        classes: int,
        recovery: Recovery,
        *,
        steady: SteadyBatch | None = None,
        graphs: int = 0,
    ) -> None:
        self.inference = inference
        self._place, self._classes, self._recovery, self._steady = place, classes, recovery, steady
        self._turns = Turns()
        self._allowed = graphs
        self._graphs: dict[tuple[int, ...], tuple[int, Buffers]] = {}
        self._graph_ids = count(1)
        self._thread = ThreadPoolExecutor(1, "unet-cuda-graphs", join_nobody) if graphs else None

    def run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Run one batch, as a CUDA graph if there is one for its shape, or room for another."""
        return self._in_turn(batch.shape, self._run, batch)

    def run_value(self, value: Any) -> Any:
        """Run an OrtValue where it is; never as a graph, whose addresses would have to stay."""
        return self._in_turn(value.shape(), self._attempt, self._run_value, value.shape(), value)

    def _in_turn(self, shape: Sequence[int], function: Callable[..., T], *arguments: object) -> T:
        with self._turns.take((shape[1], shape[2])):
            if self._thread is None:
                return function(*arguments)
            return self._thread.submit(function, *arguments).result()

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        graph = batch.shape in self._graphs or len(self._graphs) < self._allowed
        return self._attempt(self._run_graph if graph else self._run_copied, batch.shape, batch)

    def _attempt(self, run: Callable[[Any], T], shape: Sequence[int], argument: Any) -> T:
        start = time.perf_counter()
        options = {} if self._thread is None else {"gpu_graph_id": str(NO_GRAPH)}
        answer = self._recovery.run(shape_of(shape), partial(run, argument), self._prepare_small_run, options)
        if self._steady is not None:
            self._steady.ran(shape_of(shape), time.perf_counter() - start)
        return answer

    def _prepare_small_run(self, full: bool) -> bool:
        """Return True if the arena may shrink. That takes away the memory of CUDA graphs, so they are dropped.

        They are kept after an error that does not say that the GPU is `full`.
        """
        if self._steady is not None:
            self._steady.forget()
        if self._graphs and not full:
            return False
        self._allowed -= len(self._graphs)  # ONNX Runtime frees a graph only with its session
        self._graphs.clear()
        return True

    def _run_copied(self, batch: NDArray[np.uint8]) -> BatchOutput:
        return run_copied(self.inference, self._place, batch, self._options(NO_GRAPH))

    def _run_graph(self, batch: NDArray[np.uint8]) -> BatchOutput:
        number, buffers = self._graphs.get(batch.shape) or (
            next(self._graph_ids),
            Buffers(self.inference, self._place, batch.shape, self._classes),
        )
        output = buffers.run(batch, self._options(number))
        self._graphs[batch.shape] = number, buffers  # kept only after a run that did not fail
        return output

    def _run_value(self, value: Any) -> Any:
        if self._thread is None:
            return run_value(self.inference, value, self._place[1])
        # CUDA graphs write to the arena's memory whenever they are replayed, so the answer must not be there.
        batch, height, width, _ = value.shape()
        answer = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            (batch, self._classes, height, width), np.float32, *self._place
        )
        return run_value(self.inference, value, self._place[1], self._options(NO_GRAPH), answer)

    def _options(self, graph: int) -> Any:
        if self._thread is None:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


def shape_of(sides: Sequence[int]) -> Shape:
    """Return (images, height, width) of the four sides of a batch."""
    return sides[0], sides[1], sides[2]


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
        self._steady: SteadyBatch | None = None
        self._runner: CudaRunner | None = self._make_runner(inference, (memory, device.index), options)

    def _make_runner(self, inference: Any, place: tuple[str, int], options: ProviderOptions) -> CudaRunner:
        spec, fixed = self._card.input, self._card.input.fixed_shape
        small = partial(shape_unlike, least=spec.min_size, stride=spec.stride) if fixed is None else lambda _: fixed
        recovery = Recovery(
            inference, place, self.device, self._card.architecture.in_channels, small, one_shape=fixed is not None
        )
        classes = self._card.architecture.classes
        if options.cuda_graphs:
            return CudaRunner(inference, place, classes, recovery, graphs=MAX_GRAPHS)
        self._steady = SteadyBatch(options.max_batch)
        return CudaRunner(inference, place, classes, recovery, steady=self._steady)

    def run_steady(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Answer a batch, which may be padded with its last image; see `Session.run_steady`."""
        if self._steady is None:
            return self.run(batch)
        count, size = len(batch), self._padded_size((batch.shape[1], batch.shape[2]))
        images = self._steady.images((count, *size))
        output = self.run(next(full_batches(batch, images)))
        self._steady.wasted((images, *size), count)
        return output if images == count else output._replace(probability=output.probability[:count])

    def close(self) -> None:
        """Give the memory back, as `Session.close` does."""
        super().close()
        self._runner = None

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        size = self._padded_size((batch.shape[1], batch.shape[2]))
        before = 0 if self._steady is None else self._steady.before((len(batch), *size))
        return self._parts.run(batch, self._run_part, before)

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
