"""Sessions on NVIDIA GPUs by TensorRT: profiles, and engines that are built once."""

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.cuda import OUT_OF_MEMORY, CudaSession
from runtime.devices.device import Device
from runtime.devices.engine_cache import DamagedError, EngineCache, engine_key, timing_key
from runtime.devices.nvidia import gpu_facts
from runtime.devices.profiles import Profile, Shape, profile_of
from runtime.devices.provider_options import cache_options, provider_chain, tensorrt_options
from runtime.devices.session import Check, Note, telling
from runtime.errors import DeviceError, one_line
from runtime.options import ProviderOptions, Size

ABOUT_THE_ENGINE = re.compile(r"\bengine\b|deseriali[sz]|create context|execution context|golden sample", re.IGNORECASE)
"""How ONNX Runtime's TensorRT library says that an engine is not taken, and `check` that it answers wrongly."""


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

    return open_for(profile_of(card, options))


def is_built(path: Path, device: Device, card: ModelCard, options: ProviderOptions) -> bool:
    """Whether there is an engine for this model here; True also where that cannot be told: opening it will tell."""
    if not options.engine_cache:
        return False
    try:
        key, _ = _key(path, device, card, options, profile_of(card, options))
        return key in EngineCache(options.engine_folder)
    except (DeviceError, OSError):
        return True


def _key(
    path: Path, device: Device, card: ModelCard, options: ProviderOptions, profile: Profile
) -> tuple[str, dict[str, str]]:
    facts = gpu_facts(device.index)
    return engine_key(path, facts, tensorrt_options(device, card, options, profile)), facts
