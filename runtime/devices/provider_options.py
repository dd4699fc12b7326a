"""`ProviderOptions` in ONNX Runtime's own words: options of sessions and execution providers.

After onnxruntime.ai, execution providers, CUDA and TensorRT, and the header of session options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from runtime.card import ModelCard
from runtime.devices.device import PROVIDER, Device, Kind
from runtime.devices.profiles import Profile, profile_of
from runtime.options import ProviderOptions
from runtime.support.cpu_count import allowed_cores

ERRORS_ONLY = 3
"""ONNX Runtime's log severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal."""


def cuda_options(device: Device, card: ModelCard, options: ProviderOptions) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    The arena grows by what is asked for (`arena_extend_strategy`): to double it each time wastes up to half of a GPU.
    """
    search = options.cudnn_search or ("heuristic" if card.input.fit == "native" else "exhaustive")
    limit = {} if options.gpu_mem_limit is None else {"gpu_mem_limit": str(options.gpu_mem_limit)}
    return {
        "device_id": str(device.index),
        "use_tf32": str(int(options.tf32)),
        "cudnn_conv_algo_search": search.upper(),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(options.cuda_graphs and device.kind == "cuda")),
        **limit,
        **{name: value for name, value in dict(options.extra).items() if not name.startswith("trt_")},
    }


def tensorrt_options(device: Device, card: ModelCard, options: ProviderOptions, profile: Profile) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider that make the engine what it is; the cache's are `cache_options`.

    TensorRT 10 builds weakly typed networks: without its flag it would compute an fp16 or int8 file in fp32.
    """
    return {
        "device_id": str(device.index),
        "trt_fp16_enable": str(int(card.precision == "fp16")),
        "trt_int8_enable": str(int(card.precision == "int8")),
        "trt_max_workspace_size": str(options.workspace),
        "trt_builder_optimization_level": str(options.builder_optimization_level),
        **profile.options(),
        **{name: value for name, value in dict(options.extra).items() if name.startswith("trt_")},
    }


def cache_options(folder: Path, *, timing: bool) -> dict[str, str]:
    """Options that let ONNX Runtime read and write an engine in a folder, and its timing cache while it builds one."""
    engine = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder), "trt_engine_cache_prefix": "unet"}
    if not timing:
        return engine
    return engine | {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)}


def provider_chain(
    device: Device,
    card: ModelCard,
    options: ProviderOptions,
    *,
    profile: Profile | None = None,
    cache: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """The providers to ask for, best first, with their options: below TensorRT is CUDA, below CUDA the CPU."""
    order: tuple[Kind, ...] = ("tensorrt", "cuda", "cpu")
    made: dict[Kind, dict[str, str]] = {
        "tensorrt": {**tensorrt_options(device, card, options, profile or profile_of(card, options)), **(cache or {})},
        "cuda": cuda_options(device, card, options),
        "cpu": {},
    }
    return [(PROVIDER[kind], made[kind]) for kind in order[order.index(device.kind) :]]


def session_options(threads: int, options: ProviderOptions | None = None) -> Any:
    """`onnxruntime.SessionOptions` for all devices; logs errors only and records which provider each node gets.

    No memory patterns: ONNX Runtime keeps one for each shape and lays out a block for it, so memory grows with varied
    shapes. A U-Net of 5 levels (2.8 M weights) after 500 sizes from 32 to 700: 404 MB and growing with them, 278 MB and
    flat without, for the same CPU time; 224 MB, peaks of 395 MB and 15 % more CPU time without the arena.
    """
    options = options or ProviderOptions()
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = ERRORS_ONLY
    made.enable_mem_pattern = False
    made.enable_cpu_mem_arena = options.arena
    made.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    cores = allowed_cores()
    if options.pinned and threads == len(cores) > 1:
        places = ";".join(str(core + 1) for core in cores[1:])  # numbered from 1; the first is left to who calls
        made.add_session_config_entry("session.intra_op_thread_affinities", places)
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return made
