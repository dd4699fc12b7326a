"""Session: what runs a batch on one device, and the one that serves on CUDA while TensorRT's engine is built.

What only a GPU needs is in `runtime.gpu` and loaded where there is one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.errors import ConfigError, DeviceError, ImageError, ModelError, UnetError, one_line
from runtime.options import ProviderOptions, provider_chain, session_options
from runtime.providers import PROVIDER, Device, Node, available_threads, node_placement, placement, strays_of
from runtime.shapes import Shape
from runtime.threads import Worker

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [batch, height, width, channels] -> probability float32 [batch, classes, height, width]; thread-safe."""

Note = Callable[[str], None]
Check = Callable[[Run], None]
"""Replays the golden sample; raises where the answer is wrong."""


class Copies(threading.local):
    """Seconds that this thread has spent copying to and from a GPU."""

    seconds = 0.0


COPIES = Copies()

SIGNATURE = [("image", "tensor(uint8)", 4), ("probability", "tensor(float)", 4)]
"""Name, type and number of axes of what a graph takes and gives."""

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


class AutoSession(Session):
    """The best session there is, and another one for what it does not take; the best may come later.

    Until `build` has given a session, and for shapes that the best one does not take, `other` serves: it is opened when
    it is first needed, and kept, since TensorRT takes the shapes of its profile only.
    """

    def __init__(self, *, best: Session | None = None, other: Session | None = None, open_other: Callable[[], Session]):
        self._best, self._other, self._open_other = best, other, open_other
        self._lock = threading.Lock()
        self._builder: Worker | None = None
        self._closed = False

    @property
    def device(self) -> Device:  # type: ignore[override]
        """Where most runs go now."""
        return self._now().device

    @property
    def nodes(self) -> tuple[Node, ...]:  # type: ignore[override]
        """Of the session that serves now."""
        return self._now().nodes

    def build(self, open_best: Callable[[], Session], done: Callable[[Session | None, str], None]) -> None:
        """Open the best session in another thread and switch to it.

        `done` is called there when it serves, with "", or when it failed, with None and the reason. Nothing is raised.
        The end of the program waits for it: a build cannot be stopped, and Python must not be taken down around it.
        """

        def work() -> None:
            try:
                best = open_best()
            except Exception as error:  # a build that fails must never harm the predictions
                if not self._closed:
                    done(None, one_line(str(error)))
                return
            with self._lock:
                closed = self._closed
                if not closed:
                    self._best = best
            if closed:
                best.close()
            else:
                done(best, "")

        self._builder = Worker("unet-tensorrt-build", work, stop=lambda: None)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Session.run`."""
        return self._for((batch.shape[0], batch.shape[1], batch.shape[2])).run(batch)

    def run_dlpack(self, tensor: Any) -> Any:
        """As `Session.run_dlpack`."""
        value = self._now()._imported(tensor)
        batch, height, width, _ = value.shape()
        best = self._best
        if best is not None and best.takes_whole((batch, height, width)):
            return best.run_dlpack(value)
        return self._opened_other().run_dlpack(value)

    def prepare(self) -> None:
        """Wait for the build, if there is one, and run one batch."""
        if self._builder is not None:
            self._builder.join()
        self._now().prepare()

    def close(self) -> None:
        """Close both; an engine that is still being built is closed when it is done."""
        with self._lock:
            self._closed = True
            opened = self._best, self._other
        for session in opened:
            if session is not None:
                session.close()

    def _now(self) -> Session:
        return self._best or self._opened_other()

    def _for(self, shape: Shape) -> Session:
        best = self._best
        return best if best is not None and best.takes(shape) else self._opened_other()

    def _opened_other(self) -> Session:
        with self._lock:
            if self._closed:
                raise DeviceError("device auto: the session is closed; open another one")
            self._other = self._other or self._open_other()
            return self._other


def open_session(
    path: Path,
    device: Device,
    card: ModelCard,
    options: ProviderOptions,
    *,
    note: Note,
    threads: int | None = None,
    check: Check | None = None,
) -> Session:
    """Open a model on a device and, with `check`, replay its golden sample there; `note` is told of builds.

    Raises:
        DeviceError: it would run somewhere else, in whole or in a part that matters, or its engine cannot be kept.
        ConfigError: the options do not fit the model.
        Exception: what `check` or ONNX Runtime raises.
    """
    threads = threads or available_threads()

    def infer(chain: list[tuple[str, dict[str, str]]]) -> Any:
        return open_inference(path, device, chain, session_options(threads, options))

    if device.kind == "tensorrt":
        from runtime.gpu import open_tensorrt

        return open_tensorrt(path, device, card, options, infer, note, check)
    if device.kind == "cuda":
        from runtime.gpu import CudaSession

        session: Session = CudaSession(infer(provider_chain(device, card, options)), device, card, options)
    else:
        session = Session(infer(provider_chain(device, card, options)), device, card)
    if check is not None:
        check(session.run)
    return session


def open_inference(path: Path, device: Device, chain: list[tuple[str, dict[str, str]]], options: Any) -> Any:
    """An `onnxruntime.InferenceSession` that runs on `device`, and is known to.

    Raises:
        DeviceError: it would run somewhere else, in whole or in a part that matters.
        ModelError: its inputs and outputs are not those of `unet-export`.
    """
    chosen = PROVIDER[device.kind]
    inference = onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
    if chosen not in inference.get_providers():
        raise DeviceError(f"device {device}: ONNX Runtime opened the model on {inference.get_providers()[0]} instead")
    found = [(item.name, item.type, len(item.shape)) for item in (*inference.get_inputs(), *inference.get_outputs())]
    if found != SIGNATURE:
        raise ModelError(f"{path}: found the inputs and outputs {found}, expected {SIGNATURE}; export it again")
    strays = strays_of(node_placement(inference), chosen)
    if strays:
        raise DeviceError(f"device {device}: {sum(strays.values())} nodes would run elsewhere: {dict(strays)}")
    return inference


def must_build(path: Path, device: Device, card: ModelCard, options: ProviderOptions) -> bool:
    """Whether opening this device takes minutes, for a TensorRT engine that nobody has built yet.

    Raises:
        ConfigError: another device would serve by CUDA graphs meanwhile, and a build breaks their capture.
    """
    if device.kind != "tensorrt":
        return False
    if options.cuda_graphs and options.background:
        raise ConfigError(
            "cuda_graphs: found True with background=True, and building a TensorRT engine breaks the capture of CUDA "
            "graphs; give background=False, or device='cuda'"
        )
    from runtime.gpu import is_built

    return not is_built(path, device, card, options)


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
