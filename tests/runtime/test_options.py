"""Options: what is refused, and what ONNX Runtime is told."""

import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest
from devices import provider_chain

from runtime.card import ModuleConfig
from runtime.devices import session as module
from runtime.devices.cuda import cuda_options
from runtime.devices.device import CPU_DEVICE, Device
from runtime.devices.profiles import profile_of
from runtime.devices.session import session_options
from runtime.devices.tensorrt import cache_options, tensorrt_options
from runtime.errors import ConfigError
from runtime.model_file.reader import read_model
from runtime.options import FIELD_OF, RESERVED, ProviderOptions

GPU, TRT = Device(kind="cuda", index=1), Device(kind="tensorrt", index=2)
FP16 = Path(__file__).parents[1] / "data" / "v0.1" / "models" / "fp16.onnx"
PLAIN = ProviderOptions()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_batch", 0, "an integer from 1 to 1024"),
        ("max_batch", True, "an integer from 1 to 1024"),
        ("max_batch", 8.0, "an integer from 1 to 1024"),
        ("workspace", 5, "an integer from 1048576 to 1099511627776 bytes"),
        ("gpu_mem_limit", "2GB", "an integer from 1048576 to 1099511627776 bytes"),
        ("builder_optimization_level", 6, "an integer from 0 to 5"),
        ("bucket", 0, "an integer from 1 to 32768"),
        ("max_size", (160,), "(height, width), each from 1 to 32768, or None"),
        ("max_size", [160, 240], "(height, width), each from 1 to 32768, or None"),
        ("min_size", (0, 240), "(height, width), each from 1 to 32768, or None"),
        ("tf32", 1, "one of True, False"),
        ("background", "yes", "one of True, False"),
        ("arena", None, "one of True, False"),
        ("cudnn_heuristics", "fast", "one of mode_a, mode_b, fallback"),
        ("engine_folder", 5, "a path or None"),
        ("extra", ["a"], "a mapping of names to texts"),
        ("extra", ("ab", "c"), "a mapping of names to texts"),
    ],
)
def test_value_out_of_bounds_is_refused_by_name(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        ProviderOptions(**{field: value})
    assert str(caught.value) == f"{field}: found {value!r}, expected {expected}"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_extra_may_not_set_what_the_library_sets(name):
    with pytest.raises(ConfigError) as caught:
        ProviderOptions(extra={name: "1"})
    field = FIELD_OF[name]
    advice = "the library sets itself; leave it out" if field is None else f"has a field; give {field}=..."
    assert str(caught.value) == f"extra: found {name!r}, which {advice}"


def test_the_field_that_is_named_in_place_of_an_option_exists():
    assert {name for name in FIELD_OF.values() if name} <= {item.name for item in fields(ProviderOptions)}
    with pytest.raises(ConfigError, match=r"^extra: found 'use_tf32', which has a field; give tf32=\.\.\.$"):
        ProviderOptions(extra={"use_tf32": "0"})


@pytest.mark.parametrize("smallest", [(161, 240), (160, 241)])
def test_a_smallest_size_above_the_largest_is_refused(smallest):
    with pytest.raises(ConfigError) as caught:
        ProviderOptions(min_size=smallest, max_size=(160, 240))
    assert str(caught.value) == f"min_size: found {smallest}, expected at most max_size (160, 240)"
    assert ProviderOptions(min_size=(160, 240), max_size=(160, 240)).max_size == (160, 240)


@pytest.mark.parametrize("extra", [{"prefer_nhwc": 1}, {1: "x"}])
def test_extra_holds_texts(extra):
    with pytest.raises(ConfigError, match="expected names and values that are texts"):
        ProviderOptions(extra=extra)


def test_everything_that_is_set_is_reserved(make_card):
    """So `extra` never overrides a field, silently."""
    card = make_card()
    full = ProviderOptions(gpu_mem_limit=2**30)
    told = cuda_options(GPU, card, full).keys() | tensorrt_options(TRT, card, full, profile_of(card, full)).keys()
    assert told | cache_options(Path("x"), timing=True).keys() <= RESERVED


def test_options_travel_between_processes():
    options = ProviderOptions(max_size=(640, 960), extra={"prefer_nhwc": "1"})
    assert pickle.loads(pickle.dumps(options)) == options


def test_options_are_keys_and_nobody_changes_them_later():
    extra = {"b": "2", "a": "1"}
    options = ProviderOptions(extra=extra)
    extra["user_compute_stream"] = "7"
    assert options.extra == (("a", "1"), ("b", "2"))
    assert {options: "found"}[ProviderOptions(extra={"a": "1", "b": "2"})] == "found"
    assert replace(options, max_batch=2).extra == options.extra


def test_cuda_is_told(make_card):
    card = make_card(size=(160, 240), fit="stretch")
    assert cuda_options(GPU, card, PLAIN) == {
        "device_id": "1",
        "use_tf32": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
    }
    other = ProviderOptions(
        gpu_mem_limit=2**31,
        tf32=False,
        cuda_graphs=True,
        cudnn_heuristics="fallback",
        extra={"prefer_nhwc": "1", "trt_sparsity_enable": "1"},
    )
    assert cuda_options(GPU, card, other) == {
        "device_id": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "DEFAULT",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
        "gpu_mem_limit": "2147483648",
        "prefer_nhwc": "1",
    }


def test_mode_b_is_what_onnx_runtime_calls_exhaustive(make_card):
    asked = ProviderOptions(cudnn_heuristics="mode_b")
    assert cuda_options(GPU, make_card(), asked)["cudnn_conv_algo_search"] == "EXHAUSTIVE"


@pytest.mark.parametrize(
    ("changes", "kept", "told"),
    [
        ({"precision": "fp32", "proof": None}, (), "0"),
        ({"precision": "int8"}, (), "0"),
        ({"proof": None}, (), "0"),
        ({}, ("final_conv",), "0"),
        ({"architecture": ModuleConfig(in_channels=3, classes=1, name="net.Net")}, (), "0"),  # may multiply elsewhere
        ({}, (), "1"),
    ],
)
def test_tf32_is_kept_from_files_that_may_have_it(changes, kept, told):
    """ONNX Runtime without TF32 takes the tensor cores from fp16, too."""
    card = read_model(FP16)[0]
    card = replace(card, proof=replace(card.proof, gate=replace(card.proof.gate, kept=kept)))
    card = replace(card, **changes)
    assert cuda_options(GPU, card, ProviderOptions(tf32=False))["use_tf32"] == told
    assert cuda_options(GPU, card, PLAIN)["use_tf32"] == "1"


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"), [("fp32", "False", "False"), ("fp16", "True", "False"), ("int8", "False", "True")]
)
def test_tensorrt_is_told_the_precision_of_the_file(make_card, precision, fp16, int8):
    card = replace(make_card(size=(160, 240), fit="stretch"), precision=precision)
    options = ProviderOptions(max_batch=4, workspace=2**30, extra={"trt_sparsity_enable": "1", "prefer_nhwc": "1"})
    assert tensorrt_options(TRT, card, options, profile_of(card, options)) == {
        "device_id": "2",
        "trt_fp16_enable": fp16,
        "trt_int8_enable": int8,
        "trt_max_workspace_size": "1073741824",
        "trt_builder_optimization_level": "3",
        "trt_profile_min_shapes": "image:1x56x88x3",
        "trt_profile_opt_shapes": "image:1x160x240x3",
        "trt_profile_max_shapes": "image:4x160x240x3",
        "trt_sparsity_enable": "1",
    }


def test_cache_is_told_with_its_folder():
    assert cache_options(Path("/x"), timing=False) == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/x",
        "trt_engine_cache_prefix": "unet",
    }
    assert cache_options(Path("/x"), timing=True) == cache_options(Path("/x"), timing=False) | {
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/x",
    }


def test_providers_follow_each_other_on_the_same_gpu(make_card):
    card = make_card()
    chain = provider_chain(TRT, card, ProviderOptions(cuda_graphs=True), cache={"trt_engine_cache_enable": "1"})
    names, told = zip(*chain, strict=True)
    assert names == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert [options.get("device_id") for options in told] == ["2", "2", None]
    assert told[0]["trt_engine_cache_enable"] == "1"
    assert told[1]["enable_cuda_graph"] == "0"  # not of the nodes that TensorRT leaves
    assert [name for name, _ in provider_chain(GPU, card, PLAIN)] == list(names[1:])
    assert provider_chain(CPU_DEVICE, card, PLAIN) == [("CPUExecutionProvider", {})]


def test_bucket_is_a_multiple_of_the_stride(make_card):
    card = make_card(stride=4)
    assert PLAIN.bucket_of(card) == 4
    assert ProviderOptions(bucket=64).bucket_of(card) == 64
    with pytest.raises(ConfigError, match="bucket: found 6, expected a multiple of the network's stride 4"):
        ProviderOptions(bucket=6).bucket_of(card)


@pytest.mark.parametrize("value", [True, False])
def test_session_is_quiet_takes_the_threads_and_keeps_no_memory_patterns(value):
    options = session_options(3, ProviderOptions(arena=value, spinning=value))
    assert options.intra_op_num_threads == 3
    assert options.log_severity_level == 4
    assert options.enable_mem_pattern is False
    assert options.enable_cpu_mem_arena is value
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(value))


@pytest.mark.parametrize(
    ("cores", "threads", "pinned", "places"),
    [
        ([0, 1], 2, True, "2"),
        ([3, 5, 6], 3, True, "6;7"),
        ([0, 1], 2, False, None),
        ([0, 1, 2], 2, True, None),
        ([0], 1, True, None),
        ([], 2, True, None),
    ],
)
def test_threads_are_pinned_where_each_has_a_core_of_its_own(monkeypatch, cores, threads, pinned, places):
    monkeypatch.setattr(module, "allowed_cores", lambda: cores)
    options = session_options(threads, ProviderOptions(pinned=pinned))
    name = "session.intra_op_thread_affinities"
    if places is not None:
        assert options.get_session_config_entry(name) == places
    else:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            options.get_session_config_entry(name)


def test_sizes_may_be_written_as_people_do():
    options = ProviderOptions(max_size="960x640", min_size="32x16")
    assert (options.max_size, options.min_size) == ((640, 960), (16, 32))
    with pytest.raises(ConfigError, match=r"^max_size: found '960', expected \(height, width\)"):
        ProviderOptions(max_size="960")
