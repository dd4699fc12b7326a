"""Sessions on NVIDIA GPUs: buffers that stay on the device, buckets, out-of-memory, CUDA graphs, TensorRT's engines.

ONNX Runtime 1.31 offers no pinned host memory in Python for its CUDA provider (`get_ep_devices` lists the CPU alone),
so batches travel from and to ordinary memory.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.engines import DamagedError, EngineCache, engine_key, timing_key
from runtime.errors import DeviceError, one_line
from runtime.options import ProviderOptions, cache_options, provider_chain, tensorrt_options
from runtime.providers import Device, gpu_facts
from runtime.session import COPIES, Check, Note, Session, run_value, telling
from runtime.shapes import Profile, Shape, Size, bucketed, cropped, padded, parts

IDLE_BUFFERS = 8
"""Sets of buffers that are kept between runs: one for each thread at one size, or several sizes in one thread."""

IDLE_BYTES = 2**28
"""Bytes that they hold together; the last used one is kept whatever its size."""

MAX_GRAPHS = 8
"""Shapes whose kernels are kept as a CUDA graph; each holds its memory."""

NO_GRAPH = -1
"""The `gpu_graph_id` of a run that is neither captured nor replayed."""

OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|smaller than requested|alloc_failed|cuda failure 2\b", re.IGNORECASE
)
"""How the arena, CUDA, cuBLAS and cuDNN say that the GPU is full."""

ABOUT_THE_ENGINE = re.compile(r"\bengine\b|deseriali[sz]|create context|execution context|golden sample", re.IGNORECASE)
"""How ONNX Runtime's TensorRT library says that an engine is not taken, and `check` that it answers wrongly."""

K = TypeVar("K")
T = TypeVar("T")


class HoldsBytes(Protocol):
    """Something that holds so many bytes."""

    nbytes: int


V = TypeVar("V", bound=HoldsBytes)


class Pool(Generic[K, V]):
    """Things for reuse: each is lent to one user at a time; the longest unused go when too many or too large."""

    def __init__(self, make: Callable[[K], V], limit: int, max_bytes: int) -> None:
        self._make, self._limit, self._max_bytes = make, limit, max_bytes
        self._idle: list[tuple[K, V]] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, key: K) -> Iterator[V]:
        """One that was made for `key`, or a new one; what a failed user had is thrown away."""
        item = self._take(key)
        if item is None:
            item = self._make(key)
        yield item
        with self._lock:
            self._idle.append((key, item))
            del self._idle[: -self._limit]
            while len(self._idle) > 1 and sum(idle.nbytes for _, idle in self._idle) > self._max_bytes:
                del self._idle[0]

    def _take(self, key: K) -> V | None:
        with self._lock:
            for place in range(len(self._idle) - 1, -1, -1):
                if self._idle[place][0] == key:
                    return self._idle.pop(place)[1]
        return None

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

    def run(self, batch: NDArray[np.uint8], options: Any) -> NDArray[np.float32]:
        """Copy the batch in, run, and copy the answer out."""
        start = time.perf_counter()
        self._input.update_inplace(batch)
        copied = time.perf_counter()
        self._inference.run_with_iobinding(self._binding, options)
        done = time.perf_counter()
        answer: NDArray[np.float32] = self._output.numpy()
        answer = answer if answer.flags.owndata else answer.copy()  # on the CPU it is the buffer itself
        COPIES.seconds += copied - start + time.perf_counter() - done
        return answer


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
            answers.append(self._piece(batch[done : done + part.stop]))
            done += part.stop
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _run_value(self, value: Any) -> Any:
        return self._opened().run_value(value)

    def _limit(self, batch: NDArray[np.uint8]) -> int:
        if self._most_pixels is None:
            return self._max_batch
        fits: int = self._most_pixels // (batch.shape[1] * batch.shape[2])
        return max(1, min(self._max_batch, fits))

    def _piece(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
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


class TensorRtSession(CudaSession):
    """Runs on a GPU by TensorRT, on an engine for the shapes of one profile; others are refused, or built for.

    `reopen` gives a session for a wider profile.
    """

    def __init__(
        self,
        inference: Any,
        device: Device,
        card: ModelCard,
        options: ProviderOptions,
        profile: Profile,
        reopen: Callable[[Profile], "TensorRtSession"],
        *,
        memory: str = "cuda",
    ) -> None:
        super().__init__(inference, device, card, options, memory=memory)
        self.profile = profile
        self._reopen, self._rebuilds = reopen, options.allow_rebuild
        self._stride = card.input.stride
        self._rebuilding, self._closing = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """As `Session.close`; an engine that is being built is not taken any more."""
        with self._closing:
            super().close()

    def takes(self, shape: Shape) -> bool:
        """As `Session.takes`; a larger batch is run in parts."""
        return self._rebuilds or self.profile.inside((1, *self._fitted((shape[1], shape[2]))))

    def takes_whole(self, shape: Shape) -> bool:
        """As `Session.takes_whole`."""
        return self._rebuilds or self.profile.inside(shape)

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._make_fit((1, *self._fitted((batch.shape[1], batch.shape[2]))))
        return super()._run(batch)

    def _run_value(self, value: Any) -> Any:
        shape = value.shape()
        self._make_fit((shape[0], shape[1], shape[2]))
        return super()._run_value(value)

    def _fitted(self, size: Size) -> Size:
        return self.profile.grown(size, self._stride)

    def _make_fit(self, shape: Shape) -> None:
        if not self._rebuilds:
            self.profile.check(shape)
        if self.profile.inside(shape):
            return
        with self._rebuilding:
            if self.profile.inside(shape):
                return
            self._opened()  # it may have been closed while another thread built
            wider = self._reopen(self.profile.widened(shape))
            with self._closing:
                self._opened()
                # the engine first: between these lines it takes all that the old profile allows
                self._inference, self._engine, self.nodes = wider._inference, wider._engine, wider.nodes
                self.profile = wider.profile


def open_tensorrt(
    path: Path,
    device: Device,
    card: ModelCard,
    options: ProviderOptions,
    infer: Callable[[list[tuple[str, dict[str, str]]]], Any],
    note: Note,
    check: Check | None,
) -> TensorRtSession:
    """Load the engine, or build it and tell of it; `infer` opens ONNX Runtime's session on providers with options.

    Raises:
        DeviceError: the engine's folder is not safe; and what `infer` and `check` raise for a new engine.
    """

    def open_for(profile: Profile) -> TensorRtSession:
        def opened(cache: Mapping[str, str]) -> TensorRtSession:
            inference = infer(provider_chain(device, card, options, profile=profile, cache=cache))
            session = TensorRtSession(inference, device, card, options, profile, open_for)
            if check is not None:
                check(session.run)
            return session

        def built(cache: Mapping[str, str]) -> TensorRtSession:
            with telling(f"device {device}: building the TensorRT engine of {path.name}", note):
                return opened(cache)

        def load(folder: Path, building: bool) -> TensorRtSession:
            cache = cache_options(folder, timing=building and options.timing_cache)
            if building:
                return built(cache)
            try:
                return opened(cache)
            except Exception as error:  # ONNX Runtime's errors share no base class
                if OUT_OF_MEMORY.search(str(error)) or not ABOUT_THE_ENGINE.search(str(error)):
                    raise
                raise DamagedError(f"is not taken ({one_line(str(error))[:200]})") from error

        if not options.engine_cache:
            return built({})
        key, facts = _key(path, device, card, options, profile)
        about = {"model": path.name, "device": str(device), **facts, **profile.options()}
        timing = timing_key(facts) if options.timing_cache else ""
        return EngineCache(options.engine_folder).open(key, about, load, note, timing=timing)

    return open_for(options.profile(card))


def is_built(path: Path, device: Device, card: ModelCard, options: ProviderOptions) -> bool:
    """Whether there is an engine for this model here; True also where that cannot be told: opening it will tell."""
    if not options.engine_cache:
        return False
    try:
        key, _ = _key(path, device, card, options, options.profile(card))
        return key in EngineCache(options.engine_folder)
    except (DeviceError, OSError):
        return True


def _key(
    path: Path, device: Device, card: ModelCard, options: ProviderOptions, profile: Profile
) -> tuple[str, dict[str, str]]:
    facts = gpu_facts(device.index)
    return engine_key(path, facts, tensorrt_options(device, card, options, profile)), facts
