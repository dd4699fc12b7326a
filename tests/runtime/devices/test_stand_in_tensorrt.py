"""ONNX Runtime's TensorRT provider on the stand-in: options, profiles, flags of the builder, its timings.

Engines themselves are tested in test_stand_in_engines.py.
"""

import json
from dataclasses import replace

import onnxruntime
import pytest

from runtime.card import CARD_KEY

pytestmark = pytest.mark.stub

OPEN = """
import json, sys
from on_stand_in import mark, open_on
given = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[2]).items()}
device, said = given.pop("device", "tensorrt"), []
for number in range(2):
    mark(f"open {number}")
    try:
        said.append(open_on(sys.argv[1], device, **given).placement())
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
mark("end")
print(json.dumps(said))
"""

EXTRA = {
    "trt_max_partition_iterations": "1000",
    "trt_min_subgraph_size": "1",
    "trt_dla_enable": "False",
    "trt_dla_core": "0",
    "trt_dump_subgraphs": "False",
    "trt_context_memory_sharing_enable": "True",
    "trt_layer_norm_fp32_fallback": "True",
    "trt_force_sequential_engine_build": "False",
    "trt_build_heuristics_enable": "False",
    "trt_sparsity_enable": "False",
    "trt_auxiliary_streams": "-1",
    "trt_tactic_sources": "-CUDNN,+CUBLAS",
    "trt_detailed_build_log": "False",
    "trt_force_timing_cache": "False",
    "trt_engine_hw_compatible": "False",
    "trt_op_types_to_exclude": "",
}

FP16, INT8 = "tensorrt flag 0", "tensorrt flag 1"
"""BuilderFlag::kFP16 and kINT8 of NvInfer.h. Networks have no flag: they are weakly typed."""

ENVIRONMENT = {
    "ORT_TENSORRT_FP16_ENABLE": "1",
    "ORT_TENSORRT_INT8_ENABLE": "1",
    "ORT_TENSORRT_MAX_WORKSPACE_SIZE": "1000",
    "ORT_TENSORRT_BUILDER_OPTIMIZATION_LEVEL": "1",
}
"""The provider reads such variables where it is given no options."""


@pytest.fixture
def opened(stand_in, write_model, make_card, tmp_path):
    """Open a model of a precision twice on the stand-in, and return what the program did."""

    def open_model(precision="fp32", environment=None, **options):
        card = replace(make_card("conv"), precision=precision)
        model = write_model("conv", metadata={CARD_KEY: card.to_json()})
        given = {"engine_folder": str(tmp_path / "engines")} | options
        return stand_in.run(OPEN, model, json.dumps(given), tensorrt=True, **(environment or {}))

    return open_model


def calls_of(ran, number):
    """The calls to TensorRT of one opening."""
    return [call for call in ran.part(f"open {number}") if call.startswith("tensorrt")]


@pytest.mark.parametrize(
    ("precision", "options", "profile", "expected"),
    [
        ("fp32", {"extra": EXTRA}, ("1x4x4", "1x8x12", "8x56x88"), []),
        (
            "fp16",
            {"max_size": [64, 96], "min_size": [4, 4], "max_batch": 4},
            ("1x4x4", "1x8x12", "4x64x96"),
            [FP16],
        ),
        (
            "int8",
            {"workspace": 2**28, "builder_optimization_level": 5},
            ("1x4x4", "1x8x12", "8x56x88"),
            [INT8, "tensorrt level 5"],
        ),
    ],
)
def test_the_builder_is_told_shapes_and_precision_and_all_nodes_are_tensorrt_s(
    opened, precision, options, profile, expected
):
    ran = opened(precision, ENVIRONMENT, **options)
    assert [list(one) for one in ran.answer] == [["TensorrtExecutionProvider"]] * 2
    low, best, high = profile
    asked = [
        "tensorrt network 0",  # the parser is asked which nodes it takes
        "tensorrt network 0",
        f"tensorrt memory 0 {options.get('workspace', 2**31)}",
    ]
    assert calls_of(ran, 0) == [
        *asked,  # a session without an engine, to look where its nodes go
        *expected,
        *asked,
        f"tensorrt profile image min {low}x3",
        f"tensorrt profile image max {high}x3",
        f"tensorrt profile image opt {best}x3",
        *expected,
        "tensorrt timings 0",
        "tensorrt build",
        "tensorrt engine",
        "tensorrt context",
        "tensorrt close",
    ]
    assert ran.stderr == ""


def test_timings_serve_the_next_model_and_nothing_is_kept_unless_asked(opened, tmp_path):
    opened()
    assert "tensorrt timings 18" in calls_of(opened("fp16"), 0)
    kept = set((tmp_path / "engines").rglob("*"))
    ran = opened(engine_cache=False, timing_cache=False)
    assert [calls_of(ran, number).count("tensorrt build") for number in range(2)] == [1, 1]
    assert not any(call.startswith("tensorrt timings") for call in ran.calls)
    assert set((tmp_path / "engines").rglob("*")) == kept


def test_another_gpu_opens_in_silence(opened):
    ran = opened(device="tensorrt:1", environment={"STAND_IN_DEVICES": "2"})
    assert [list(one) for one in ran.answer] == [["TensorrtExecutionProvider"]] * 2
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"trt_nonsense": "1"}, "'trt_nonsense', which ONNX Runtime {version} does not know; leave it out"),
        (
            {"trt_dla_enable": "1"},
            "'trt_dla_enable' with the value '1', which ONNX Runtime {version} refuses; expected 'True' or 'False'",
        ),
    ],
)
def test_an_option_that_it_does_not_take_is_named(opened, extra, message):
    expected = f"ConfigError: extra: found {message.format(version=onnxruntime.__version__)}"
    assert opened(extra=extra).answer == [expected] * 2


PROFILE = """
import json, sys
import onnxruntime
from pathlib import Path
from runtime.devices.availability import candidates
from runtime.devices.profiles import profile_of
from runtime.devices.tensorrt import tensorrt_options
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions

card, _ = read_model(Path(sys.argv[1]))
options = ProviderOptions(max_batch=4, max_size=(64, 96), min_size=(8, 8))
own = tensorrt_options(candidates("tensorrt")[0], card, options, profile_of(card, options)) | json.loads(sys.argv[2])
own.pop("device_id")
onnxruntime.InferenceSession(sys.argv[1], providers=[("TensorrtExecutionProvider", own)], enable_fallback=0)
"""


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, ""),
        (
            {"trt_profile_min_shapes": "image=1x8x8x3"},
            "The format of provider option 'trt_profile_min_shapes' is wrong",
        ),
        ({"trt_profile_min_shapes": "picture:1x8x8x3"}, "Profile shapes validation failed"),
    ],
)
def test_the_profile_is_read_without_a_warning(stand_in, models, change, warning):
    ran = stand_in.run(PROFILE, models["conv"], json.dumps(change), tensorrt=True, fails=True)
    assert warning in ran.stderr if warning else ran.stderr == ""
