"""TensorRT: sessions on engines for the shapes of one profile, which are built once and kept on disk.

Options after onnxruntime.ai, execution providers, TensorRT.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.backend import Backend, ProviderChain, SessionRequest
from runtime.devices.cuda import CudaRunner, CudaSession, cuda_chain
from runtime.devices.device import Device
from runtime.devices.nvidia import nvidia_problem
from runtime.devices.out_of_memory import NO_CONTEXT, Recovery, is_out_of_memory
from runtime.devices.placement import node_placement
from runtime.devices.profiles import Profile, Shape, profile_of
from runtime.devices.session import BatchOutput, Note, reason_of
from runtime.errors import ConfigError, DeviceError, ModelError, UnetError
from runtime.options import ProviderOptions, Size

ABOUT_THE_ENGINE = re.compile(r"\bengine\b|deseriali[sz]|golden sample", re.IGNORECASE)
"""Words by which ONNX Runtime's TensorRT library refuses an engine, and `check` one that answers wrongly.

An engine that was loaded and gets no execution context is sound: see `runtime.devices.out_of_memory.NO_CONTEXT`.
"""

WRONG = "answers the golden sample wrongly"
"""Words by which `check` refuses a session."""

NOT_WHOLE = re.compile(r"no associated shape profiles provided: (\S+)")
"""Words by which it tells that a part of the graph begins at some other value than the model's input."""

BAD_TIMINGS = "could not create timing cache"
"""Words by which it tells that TensorRT does not take the times of kernels that were measured before."""

NOT_LOADED = re.compile(r"failed to deserialize engine for fused node")
"""Words by which it tells that TensorRT does not load what it has just built. It gives no reason; memory is likely."""


FP32_BIASES: Mapping[str, str] = {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}
"""Options of a session that leave the biases of an int8 file in fp32: TensorRT does not take int32 ones."""


class TensorRtSession(CudaSession):
    """A session on an engine for the shapes of one profile; other shapes are refused, or an engine is built for them.

    `reopen` opens a session for a wider profile.
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
        self.profile = profile
        super().__init__(inference, device, card, options, memory=memory)
        self._reopen, self._rebuilds = reopen, options.allow_rebuild
        self._stride = card.input.stride
        self._rebuilding, self._closing = threading.Lock(), threading.Lock()

    def _make_runner(self, inference: Any, place: tuple[str, int], options: ProviderOptions) -> CudaRunner:  # noqa: ARG002
        architecture, fixed, low = self._card.architecture, self._card.input.fixed_shape, self.profile.low
        # No convolution is left to CUDA, so a small run has no plans to build.
        recovery = Recovery(
            inference, place, self.device, architecture.in_channels, lambda _: fixed or low, builds_plans=False
        )
        return CudaRunner(inference, place, architecture.classes, recovery)

    def close(self) -> None:
        """Give the memory back, as `Session.close` does; an engine that is being built is not taken any more."""
        with self._closing:
            super().close()

    def takes(self, shape: Shape) -> bool:
        """Return True if one image of the batch fits the profile; a larger batch is run in parts."""
        return self._rebuilds or self.profile.inside((1, *self._padded_size((shape[1], shape[2]))))

    def takes_whole(self, shape: Shape) -> bool:
        """Return True if the whole batch fits the profile."""
        return self._rebuilds or self.profile.inside(shape)

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        self._make_fit((1, *self._padded_size((batch.shape[1], batch.shape[2]))))
        return super()._run(batch)

    def _run_value(self, value: Any) -> Any:
        batch, height, width, _ = value.shape()
        fitting = self._padded_size((height, width))
        if not self._rebuilds and fitting != (height, width):
            raise DeviceError(
                f"tensor: found images of {width}x{height}, and the TensorRT engine takes {fitting[1]}x{fitting[0]}; "
                "repeat their last row and column up to that, which does not change the answer, or give "
                "ProviderOptions(allow_rebuild=True)"
            )
        self._make_fit((batch, height, width))
        return super()._run_value(value)

    def _padded_size(self, size: Size) -> Size:
        return self.profile.grown(size, self._stride)

    def _make_fit(self, shape: Shape) -> None:
        if not self._rebuilds:
            self.profile.check(shape)
        if self.profile.inside(shape):
            return
        with self._rebuilding:
            if self.profile.inside(shape):
                return
            self._open_runner()  # it may have been closed while another thread built
            wider = self._reopen(self.profile.widened(shape))
            with self._closing:
                self._open_runner()
                # the engine first: between these lines it takes all that the old profile allows
                self._inference, self._runner, self.nodes = wider._inference, wider._runner, wider.nodes
                self.profile = wider.profile


def tensorrt_options(
    device: Device, card: ModelCard, options: ProviderOptions, profile: Profile | None
) -> dict[str, str]:
    """Make the options of ONNX Runtime's TensorRT provider on which the engine depends; see also `cache_options`.

    Without a profile the session opens, and its nodes are placed, without an engine: the first run would build one.

    Its Python interface takes "True" and "False" for what is on or off, where CUDA's takes "1" and "0".

    ONNX Runtime 1.31 makes weakly typed networks (no creation flag), whatever the file says: the flag of a precision
    lets TensorRT use it, for any layer. So TensorRT may compute in fp16 what an fp16 file keeps in fp32, and no option
    of the provider forbids it; the golden sample tells if the answers suffer.
    """
    return {
        "device_id": str(device.index),
        "trt_fp16_enable": str(card.precision == "fp16"),
        "trt_int8_enable": str(card.precision == "int8"),
        "trt_max_workspace_size": str(options.workspace),
        "trt_builder_optimization_level": str(options.builder_optimization_level),
        **(profile.options() if profile and card.input.fixed_batch is None else {}),  # one shape needs no profile
        **{name: value for name, value in dict(options.extra).items() if name.startswith("trt_")},
    }


def cache_options(folder: Path, *, timing: bool) -> dict[str, str]:
    """Make the options that let ONNX Runtime read and write an engine in a folder, and its timing cache if `timing`."""
    engine = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": "unet",
    }
    if not timing:
        return engine
    return engine | {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(folder)}


def tensorrt_chain(
    device: Device, card: ModelCard, options: ProviderOptions, profile: Profile | None, cache: Mapping[str, str]
) -> ProviderChain:
    """Return TensorRT and, for what it does not take, CUDA and the CPU; `cache` is `cache_options` or empty."""
    own = {**tensorrt_options(device, card, options, profile), **cache}
    return [(TENSORRT.provider, own), *cuda_chain(device, card, options)]


def _open(request: SessionRequest) -> TensorRtSession:
    """Load the engine, or build it and tell of it.

    Raises:
        DeviceError: the engine's folder is not safe, TensorRT takes a part of the graph only, or its engine finds no
            room; and what `open_inference` and `check` raise for a new engine.
    """
    from runtime.engine_store.engine_cache import WrongError

    def open_for(profile: Profile) -> TensorRtSession:
        try:
            return open_engine(request, profile, open_for)
        except UnetError:
            raise
        except WrongError as error:
            raise DeviceError(f"device {request.device}: {error}") from error
        except Exception as error:  # ONNX Runtime's errors share no base class
            if refused := refusal(str(error), reason_of(error)):
                raise DeviceError(f"device {request.device}: {refused}") from error
            raise

    return open_for(profile_of(request.card, request.options))


def open_engine(
    request: SessionRequest, profile: Profile, reopen: Callable[[Profile], TensorRtSession]
) -> TensorRtSession:
    """Open a session on the engine for a profile; `reopen` opens one for a wider profile. Raises as `_open`."""
    from runtime.devices.engine_facts import engine_key, gpu_facts, timing_key
    from runtime.engine_store.engine_cache import DamagedError, EngineCache, WrongError

    path, device, card, options = request.path, request.device, request.card, request.options

    def opened(cache: Mapping[str, str]) -> TensorRtSession:
        inference = request.open_inference(tensorrt_chain(device, card, options, profile, cache), FP32_BIASES)
        return request.checked(TensorRtSession(inference, device, card, options, profile, reopen))

    def built(cache: Mapping[str, str]) -> TensorRtSession:
        with telling(f"device {device}: building the TensorRT engine of {path.name}", request.note):
            if card.input.fixed_batch is None:  # refused in seconds, and not after minutes of building
                chain = tensorrt_chain(device, card, options, None, {})
                check_parts(device, request.open_inference(chain, FP32_BIASES))
            return opened(cache)

    def load(folder: Path, building: bool) -> TensorRtSession:
        cache = cache_options(folder, timing=building and options.timing_cache)
        try:
            return built(cache) if building else opened(cache)
        except Exception as error:  # ONNX Runtime's errors share no base class
            said = str(error)
            if WRONG in said:
                raise WrongError(said.removeprefix(f"device {device}: ")) from error
            about_engine = ABOUT_THE_ENGINE.search(said) and not is_out_of_memory(said)
            if not (BAD_TIMINGS in said if building else about_engine):
                raise
            raise DamagedError(f"is not taken ({reason_of(error)[:200]})") from error

    def is_sound(error: Exception) -> bool:
        return NO_CONTEXT.search(str(error)) is not None

    if not options.engine_cache:
        return built({})
    facts = gpu_facts(device.index)
    key = engine_key(request.model_digest(), path.name, facts, tensorrt_options(device, card, options, profile))
    about = {"model": path.name, "device": str(device), **facts, **profile.options()}
    timing = timing_key(facts) if options.timing_cache else ""
    return EngineCache(options.engine_folder).open(key, about, load, request.note, timing=timing, sound=is_sound)


def check_parts(device: Device, inference: Any) -> None:
    """Refuse a graph of which TensorRT takes several parts: only one that begins at the model's input has a profile.

    Raises:
        DeviceError: there are several.
    """
    parts = sum(part.ep_name == TENSORRT.provider for part in inference.get_provider_graph_assignment_info())
    if parts > 1:
        others = sorted({node.operator for node in node_placement(inference) if node.provider != TENSORRT.provider})
        raise DeviceError(
            f"device {device}: TensorRT takes the graph in {parts} parts, since it does not take {', '.join(others)}; "
            "give device='cuda', or leave out trt_op_types_to_exclude"
        )


def refusal(said: str, reason: str) -> str | None:
    """Return what to tell of a graph or an engine that TensorRT does not take; None if it is another error.

    `said` is ONNX Runtime's message, and `reason` what of it users are shown.
    """
    if split := NOT_WHOLE.search(said):
        return (
            f"TensorRT does not take the node that makes {split[1]!r}, so its engine would hold only a part of the "
            "model; give device='cuda', or leave out trt_op_types_to_exclude"
        )
    if is_out_of_memory(said) or NOT_LOADED.search(said):
        return (
            f"has too little memory for its TensorRT engine, it seems ({reason}); free memory on the GPU (see "
            "nvidia-smi), or give a smaller ProviderOptions(max_batch=..., max_size=...)"
        )
    return None


def _must_build(request: SessionRequest) -> bool:
    """Return True if there is no engine for this model; False where that cannot be told: opening it will tell.

    Raises:
        ConfigError: CUDA would serve by graphs meanwhile, and a build breaks their capture.
    """
    device, card, options = request.device, request.card, request.options
    if options.cuda_graphs and options.background:
        raise ConfigError(
            "cuda_graphs: found True with background=True, and building a TensorRT engine breaks the capture of CUDA "
            "graphs; give background=False, or device='cuda'"
        )
    if not options.engine_cache:
        return True
    from runtime.devices.engine_facts import engine_key, gpu_facts
    from runtime.engine_store.engine_cache import EngineCache

    try:
        wanted = tensorrt_options(device, card, options, profile_of(card, options))
        key = engine_key(request.model_digest(), request.path.name, gpu_facts(device.index), wanted)
        return key not in EngineCache(options.engine_folder)
    except (DeviceError, ModelError, OSError):
        return False


TENSORRT = Backend(
    kind="tensorrt",
    provider="TensorrtExecutionProvider",
    tolerance=2e-2,  # CUDA's
    one_profile=True,
    unavailable_reason=nvidia_problem,
    open=_open,
    must_build=_must_build,
)


PROGRESS_SECONDS = 15.0


@contextmanager
def telling(what: str, note: Note, every: float | None = None) -> Iterator[None]:
    """Tell when something long begins, how long it has taken every `every` seconds, and that it is done or failed."""
    start, ended = time.monotonic(), threading.Event()

    def seconds() -> str:
        return f"{time.monotonic() - start:.0f} s"

    def tick() -> None:
        while not ended.wait(every or PROGRESS_SECONDS):
            note(f"{what}: still working after {seconds()}")

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
