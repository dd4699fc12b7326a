"""The options of ONNX Runtime's TensorRT provider, on a stand-in that ends the program when it is asked to build."""

import json
from dataclasses import replace

import onnxruntime
import pytest

from runtime.card import CARD_KEY

pytestmark = pytest.mark.stub

BUILDER_ASKED = 42
"""Exit status of a program on the stand-in that got as far as building an engine."""

OPEN = """
import json, sys
from on_stand_in import open_on
given = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[2]).items()}
try:
    open_on(sys.argv[1], "tensorrt", **given)
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
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


@pytest.fixture
def opened(stand_in, write_model, make_card, tmp_path):
    """Open a model of a precision on the stand-in, and return its exit status and answer."""

    def open_model(precision="fp32", *, tensorrt=True, **options):
        card = replace(make_card("conv"), precision=precision)
        model = write_model("conv", metadata={CARD_KEY: card.to_json()})
        given = {"engine_folder": str(tmp_path / "engines")} | options
        return stand_in.run(OPEN, model, json.dumps(given), tensorrt=tensorrt, fails=True)

    return open_model


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp32", {"extra": EXTRA}),
        ("fp16", {"max_size": [64, 96], "min_size": [8, 8], "max_batch": 4}),
        ("int8", {"workspace": 2**28, "builder_optimization_level": 5}),
        ("fp32", {"engine_cache": False, "timing_cache": False}),
    ],
)
def test_all_options_are_taken_up_to_the_build(opened, precision, options):
    ran = opened(precision, **options)
    assert ran.returncode == BUILDER_ASKED, ran.stdout
    assert ran.calls[-1].startswith("createInferBuilder 10")


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
    assert opened(extra=extra).answer == expected


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
    assert ran.returncode == BUILDER_ASKED
    assert warning in ran.stderr if warning else ran.stderr == ""
