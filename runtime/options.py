"""ProviderOptions: how a model runs on a device.

Sources: the pages of onnxruntime.ai about the CUDA and TensorRT execution providers, and the header of its session
options.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import gt
from typing import Literal, get_args

from runtime.card import MAX_SIDE, NEVER_PADDED, ModelCard
from runtime.errors import ConfigError
from runtime.support.sizes import batch_text, parse_size
from runtime.support.validation import FieldChecks, make_integers_plain

Size = tuple[int, int]
"""(height, width) in pixels."""

Heuristics = Literal["mode_a", "mode_b", "fallback"]
"""cuDNN's heuristics that choose the kernel of a convolution, by cuDNN's own names."""

MAX_BATCH = 1_024
MAX_FIXED = 4
GIB = 2**30

CHECK = FieldChecks(ConfigError)

FIELD_OF: Mapping[str, str | None] = {
    "device_id": None,
    "gpu_mem_limit": "gpu_mem_limit",
    "use_tf32": "tf32",
    "cudnn_conv_algo_search": "cudnn_heuristics",
    "arena_extend_strategy": None,
    "enable_cuda_graph": "cuda_graphs",
    "has_user_compute_stream": None,
    "user_compute_stream": None,
    "trt_cuda_graph_enable": None,
    "trt_max_workspace_size": "workspace",
    "trt_builder_optimization_level": "builder_optimization_level",
    "trt_fp16_enable": None,
    "trt_int8_enable": None,
    "trt_bf16_enable": None,
    "trt_engine_cache_enable": "engine_cache",
    "trt_engine_cache_path": "engine_folder",
    "trt_engine_cache_prefix": None,
    "trt_timing_cache_enable": "timing_cache",
    "trt_timing_cache_path": "engine_folder",
    "trt_profile_min_shapes": "min_size",
    "trt_profile_opt_shapes": None,
    "trt_profile_max_shapes": "max_size",
}
"""Field that sets an option of ONNX Runtime, or None where the device, the model's file or the library alone does."""

RESERVED = frozenset(FIELD_OF)
"""Options that `extra` may not set: the library or one of its fields sets them, or its engine cache depends on them."""


def is_size(value: object) -> bool:
    """Return True for (height, width) of pixels."""
    sides = value if isinstance(value, tuple) and len(value) == 2 else ()
    return bool(sides) and all(type(one) is int and 1 <= one <= MAX_SIDE for one in sides)


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """Options of a model on its device. The defaults suit U-Nets; those for GPUs have not been measured yet.

    GPU
        max_batch: maximum number of images in one run, 1 to `MAX_BATCH`. Larger batches are split. It is the upper end
            of TensorRT's profile. A U-Net's activations are large, so few images fill a GPU.
        max_size: (height, width), upper end of TensorRT's profile. Larger images raise an error. None: the card's size.
        min_size: (height, width), lower end of the profile. None: the smaller of the card's and the golden sample's.
        gpu_mem_limit: maximum size of ONNX Runtime's arena on the GPU, in bytes (`gpu_mem_limit`). None: no limit. It
            holds weights, batches, activations, answers and cuDNN's workspaces. The memory of the driver, the
            libraries, TensorRT's engines and the buffers of CUDA graphs is not part of it.
        tf32: multiply in TF32 where the GPU can (`use_tf32`). With TensorRT it concerns the CUDA nodes only. A mantissa
            of 10 bits is enough for a mask; False gives numbers that are closer to the CPU's. False takes the tensor
            cores from fp16 layers too, so it is not passed on for an fp16 file that has no other layers.

    CUDA
        cudnn_heuristics: cuDNN's choice of a kernel for each convolution (`cudnn_conv_algo_search`), at every change of
            shape. None of the three measures anything. "mode_a" is quick (ONNX Runtime's HEURISTIC). "mode_b" is meant
            to choose better and takes several times as long (EXHAUSTIVE). "fallback" takes any kernel that works, and
            may be extremely slow (DEFAULT).
        cuda_graphs: replay the kernels of a shape as one graph (`enable_cuda_graph`, `gpu_graph_id`). It saves kernel
            launches, which are a small part of a U-Net's time. It keeps the memory of every shape, and runs in a thread
            of its own. Other CUDA work of the process may break a capture. So device="auto" with TensorRT refuses it
            unless `background` is False. A model whose runs copy values between the GPU and the CPU is refused when it
            is opened.
        bucket: pad height and width to multiples of this, so that the shape changes less often. None: the network's
            stride, which does not change answers. A larger multiple changes them near the right and bottom edges. A
            network that looks at the whole picture at once takes none.

    TensorRT
        allow_rebuild: build another engine inside predict, which takes minutes, for a shape outside the profile.
        workspace: maximum memory of one kernel, in bytes (`trt_max_workspace_size`).
        builder_optimization_level: effort of the search for kernels, 0 to 5 (`trt_builder_optimization_level`).
        timing_cache: keep timings of kernels, so that a retrained model builds faster (`trt_timing_cache_enable`).
        engine_cache: keep engines on disk (`trt_engine_cache_enable`), by content; see `runtime.engines`.
        engine_folder: folder of the engines. None: engines/ in the user's cache folder.
        background: with device="auto", predict on CUDA while an engine builds, then switch.

    OpenVINO
        fixed_sizes: up to four (height, width) or "WxH", beside the card's size, for which a model of their own is
            compiled at the first image of such a size, which takes up to a second. It is faster,
            by up to a half for int8.
        bf16: compute in bf16 where the file's card permits that, on CPUs that are faster so (with AMX, or AMD's with
            AVX512-BF16); `Report.arithmetic` says what runs. False: in float32, as all other files.

    CPU
        arena: keep freed memory for the next run (`enable_cpu_mem_arena`). False returns it to the system after each
            run, which makes runs slower.
        spinning: let idle threads wait actively (`session.intra_op.allow_spinning`). It may save a little time on a
            machine with no other work. With pauses of 10 ms between images, it took 70 ms of CPU time per image instead
            of 40 ms, for the same latency beside other work.
        pinned: keep each thread of ONNX Runtime on its own core (`session.intra_op_thread_affinities`), if there are as
            many threads as cores for this process. After a pause of 20 ms, a call of a thin network took 7.6 ms instead
            of 9.5 ms. Two predictors at once did 10 % less work, one of them much less than the other.

    extra: further options, a mapping from ONNX Runtime's names to values. Names that begin with trt_ go to TensorRT,
        others to CUDA. It is stored as sorted pairs, so that options are hashable and nobody changes them later.

    Raises:
        ConfigError: a value is out of bounds, or `extra` sets an option of `RESERVED`.
    """

    max_batch: int = 8
    max_size: Size | None = None
    min_size: Size | None = None
    gpu_mem_limit: int | None = None
    tf32: bool = True
    cudnn_heuristics: Heuristics = "mode_a"
    cuda_graphs: bool = False
    bucket: int | None = None
    allow_rebuild: bool = False
    workspace: int = 2 * GIB
    builder_optimization_level: int = 3
    timing_cache: bool = True
    engine_cache: bool = True
    engine_folder: str | os.PathLike[str] | None = None
    background: bool = True
    fixed_sizes: tuple[Size, ...] = ()
    bf16: bool = True
    arena: bool = True
    spinning: bool = False
    pinned: bool = False
    extra: Mapping[str, str] | tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        make_integers_plain(self)
        CHECK.integer("max_batch", self.max_batch, 1, MAX_BATCH)
        CHECK.integer("workspace", self.workspace, 2**20, 2**40, "bytes")
        CHECK.integer("builder_optimization_level", self.builder_optimization_level, 0, 5)
        if self.gpu_mem_limit is not None:
            CHECK.integer("gpu_mem_limit", self.gpu_mem_limit, 2**20, 2**40, "bytes")
        if self.bucket is not None:
            CHECK.integer("bucket", self.bucket, 1, MAX_SIDE)
        for name in ("max_size", "min_size"):
            value = parse_size(getattr(self, name))
            object.__setattr__(self, name, value)
            if value is not None and not is_size(value):
                raise CHECK.refusal(name, value, f"(height, width), each from 1 to {MAX_SIDE}, or None")
        given = self.fixed_sizes
        sizes = tuple(map(parse_size, given)) if isinstance(given, tuple | list) else (None,)
        if len(sizes) > MAX_FIXED or not all(map(is_size, sizes)):
            expected = f"a tuple of at most {MAX_FIXED} (height, width) or 'WxH', each from 1 to {MAX_SIDE}"
            raise CHECK.refusal("fixed_sizes", given, expected)
        object.__setattr__(self, "fixed_sizes", sizes)
        if self.min_size and self.max_size and any(map(gt, self.min_size, self.max_size)):
            raise CHECK.refusal("min_size", self.min_size, f"at most max_size {self.max_size}")
        for item in fields(self):
            if item.type is bool:
                CHECK.choice(item.name, getattr(self, item.name), (True, False))
        CHECK.choice("cudnn_heuristics", self.cudnn_heuristics, get_args(Heuristics))
        if self.engine_folder is not None and not isinstance(self.engine_folder, str | os.PathLike):
            raise CHECK.refusal("engine_folder", self.engine_folder, "a path or None")
        # `extra` is a mapping, or the pairs that `dataclasses.replace` hands on.
        pairs = tuple(self.extra.items()) if isinstance(self.extra, Mapping) else self.extra
        if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise CHECK.refusal("extra", self.extra, "a mapping of names to texts")
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str):
                raise CHECK.refusal("extra", {name: value}, "names and values that are texts")
            if name in RESERVED:
                field = FIELD_OF[name]
                raise ConfigError(
                    f"extra: found {name!r}, which "
                    + ("the library sets itself; leave it out" if field is None else f"has a field; give {field}=...")
                )
        object.__setattr__(self, "extra", tuple(sorted(pairs)))

    def bucket_of(self, card: ModelCard) -> int:
        """Return the bucket for a model, in pixels; 1 for a file of one shape, whose images are never padded.

        Raises:
            ConfigError: it is not a multiple of the network's stride, the network's pictures are never padded, or an
                option is given that a file of one shape leaves no choice of.
        """
        if card.input.fixed_shape is not None:
            for name in ("bucket", "min_size", "max_size"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name}: found {getattr(self, name)}, the file takes batches of "
                        f"{batch_text(card.input.fixed_shape)} (width x height) only; leave it out"
                    )
            return 1
        if self.bucket is not None and not card.input.padded:
            raise ConfigError(f"bucket: found {self.bucket}, expected None, {NEVER_PADDED}")
        step = self.bucket or card.input.stride
        if step % card.input.stride:
            raise ConfigError(f"bucket: found {step}, expected a multiple of the network's stride {card.input.stride}")
        return step
