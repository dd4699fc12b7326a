"""Options of the execution providers: typed, checked, and turned into ONNX Runtime's own.

After onnxruntime.ai, execution providers, CUDA and TensorRT, and the header of session options.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from runtime.card import MAX_SIDE, ModelCard
from runtime.errors import ConfigError

Size = tuple[int, int]
"""(height, width) in pixels."""

Search = Literal["exhaustive", "heuristic", "default"]

MAX_BATCH = 1_024
GIB = 2**30


RESERVED = frozenset(
    {
        "device_id",
        "gpu_mem_limit",
        "use_tf32",
        "cudnn_conv_algo_search",
        "arena_extend_strategy",
        "enable_cuda_graph",
        "has_user_compute_stream",
        "user_compute_stream",
        "trt_cuda_graph_enable",
        "trt_max_workspace_size",
        "trt_builder_optimization_level",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_bf16_enable",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_engine_cache_prefix",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_profile_max_shapes",
    }
)
"""What `extra` may not set: the library sets it, has a field for it, or its engine cache stands on it."""


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """How a model runs on a device; the defaults are for U-Nets, and none of those for a GPU has been measured yet.

    GPU
        max_batch: images in one run, 1 to `MAX_BATCH`; larger batches are run in parts. Upper end of TensorRT's
            profile. Activations of U-Nets are large, so a GPU is full with few images.
        max_size: (height, width) that TensorRT's profile reaches up to; None: the card's. Others are refused.
        min_size: (height, width) that it reaches down to; None: the smaller of the card's and the golden sample's.
        gpu_mem_limit: bytes of ONNX Runtime's arena on the GPU (`gpu_mem_limit`); None: no limit. TensorRT's own memory
            and cuDNN's come on top.
        tf32: multiply in TF32 where the GPU can (`use_tf32`; for TensorRT the CUDA nodes only). 10 bits of mantissa are
            enough for a mask; False for numbers nearer to the CPU's.

    CUDA
        cudnn_search: how cuDNN chooses its kernels (`cudnn_conv_algo_search`). Each new shape costs a search, so None
            is "heuristic" for cards with fit "native" and "exhaustive", once, where images are all brought to one size.
        cuda_graphs: replay the kernels of a shape as one graph (`enable_cuda_graph`, `gpu_graph_id`). It saves
            launches, which are little of a U-Net's time, holds the memory of every shape, and runs one batch at a time,
            in a thread of its own. Other CUDA work of the process may break a capture, so with device="auto" and
            TensorRT it is refused unless `background` is False.
        bucket: sides are padded to multiples of this before the GPU sees them, so that fewer shapes cost a search.
            None is the network's stride, which does not change answers; a multiple of it does near right and bottom.

    TensorRT
        allow_rebuild: build another engine, for minutes, inside predict when a shape is outside the profile.
        workspace: bytes that a kernel may use for itself (`trt_max_workspace_size`).
        builder_optimization_level: 0 to 5, how long to look for kernels (`trt_builder_optimization_level`).
        timing_cache: keep measured kernels, so that a retrained model builds faster (`trt_timing_cache_enable`).
        engine_cache: keep engines (`trt_engine_cache_enable`), found by content; see `runtime.devices.engine_cache`.
        engine_folder: where; None is engines/ in the user's cache folder.
        background: with device="auto", predict on CUDA while an engine builds, then switch.

    CPU
        arena: keep freed memory for the next run (`enable_cpu_mem_arena`). False gives it back after each run, and
            takes longer to get it.
        spinning: idle threads wait busily (`session.intra_op.allow_spinning`). It may save a little time alone on a
            machine; with pauses of 10 ms between images it cost 70 ms of CPU time an image instead of 40, for the same
            latency beside other work.
        pinned: each thread of ONNX Runtime's stays on a core of its own (`session.intra_op_thread_affinities`), where
            there are as many threads as cores that this process may use. After a pause of 20 ms a call of a thin
            network took 7.6 ms instead of 9.5; two predictors at once got 10 % less done, and one of them much less.

    extra: other options, a mapping by ONNX Runtime's name; those beginning with trt_ go to TensorRT, others to CUDA. It
        is kept as pairs in the order of names, so that options can be keys of a dict and nobody changes them later.

    Raises:
        ConfigError: a value is out of its bounds, or `extra` sets what a field sets.
    """

    max_batch: int = 8
    max_size: Size | None = None
    min_size: Size | None = None
    gpu_mem_limit: int | None = None
    tf32: bool = True
    cudnn_search: Search | None = None
    cuda_graphs: bool = False
    bucket: int | None = None
    allow_rebuild: bool = False
    workspace: int = 2 * GIB
    builder_optimization_level: int = 3
    timing_cache: bool = True
    engine_cache: bool = True
    engine_folder: str | os.PathLike[str] | None = None
    background: bool = True
    arena: bool = True
    spinning: bool = False
    pinned: bool = False
    extra: Mapping[str, str] | tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _integer("max_batch", self.max_batch, 1, MAX_BATCH)
        _integer("workspace", self.workspace, 2**20, 2**40)
        _integer("builder_optimization_level", self.builder_optimization_level, 0, 5)
        if self.gpu_mem_limit is not None:
            _integer("gpu_mem_limit", self.gpu_mem_limit, 2**20, 2**40)
        if self.bucket is not None:
            _integer("bucket", self.bucket, 1, MAX_SIDE)
        for name in ("max_size", "min_size"):
            _size(name, getattr(self, name))
        for name in ("tf32", "cuda_graphs", "allow_rebuild", "timing_cache", "engine_cache", "background"):
            _choice(name, getattr(self, name), (True, False))
        for name in ("arena", "spinning", "pinned"):
            _choice(name, getattr(self, name), (True, False))
        _choice("cudnn_search", self.cudnn_search, (*get_args(Search), None))
        if self.engine_folder is not None and not isinstance(self.engine_folder, str | os.PathLike):
            raise _refusal("engine_folder", self.engine_folder, "a path or None")
        self._check_extra()

    def _check_extra(self) -> None:
        """Check the mapping, or the pairs that `dataclasses.replace` hands on, and keep it as pairs."""
        pairs = tuple(self.extra.items()) if isinstance(self.extra, Mapping) else self.extra
        if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise _refusal("extra", self.extra, "a mapping of names to texts")
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str):
                raise _refusal("extra", {name: value}, "names and values that are texts")
            if name in RESERVED:
                raise ConfigError(f"extra: found {name!r}, which ProviderOptions sets itself; use its field")
        object.__setattr__(self, "extra", tuple(sorted(pairs)))

    def bucket_of(self, card: ModelCard) -> int:
        """The step of the buckets for a model.

        Raises:
            ConfigError: it is no multiple of the network's stride.
        """
        step = self.bucket or card.input.stride
        if step % card.input.stride:
            raise ConfigError(f"bucket: found {step}, expected a multiple of the network's stride {card.input.stride}")
        return step


def _refusal(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}: found {found!r}, expected {expected}")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _refusal(name, value, f"an integer from {low} to {high}")


def _choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        raise _refusal(name, value, "one of " + ", ".join(map(str, choices)))


def _size(name: str, value: object) -> None:
    if value is None:
        return
    sides = value if isinstance(value, tuple) and len(value) == 2 else ()
    if not sides or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise _refusal(name, value, f"(height, width), each from 1 to {MAX_SIDE}, or None")
