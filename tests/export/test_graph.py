import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import ARCHITECTURES, copy_of, graph_of, raw_graph_of, segmenter_of

from export import graph
from export.graph import build_graph, build_raw_graph
from export.options import OPSET, OPSETS
from runtime.errors import ConfigError, ModelError

ROOT = Path(__file__).parents[2]
SMALL = {"widths": (3,)}


def answer(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"image": image})[0]


def assert_answers_as_pytorch(segmenter, model, shapes, channels, classes):
    random = np.random.default_rng(0)
    for shape in shapes:
        image = random.integers(0, 256, (*shape, channels)).astype(np.uint8)
        with torch.inference_mode():
            expected = segmenter(torch.from_numpy(image)).numpy()
        assert expected.shape == (shape[0], classes, *shape[1:])
        assert np.abs(answer(model, image) - expected).max() < 2e-6


def test_signature():
    (image,), (probability,) = graph_of().graph.input, graph_of().graph.output
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, probability)]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (probability.name, probability.type.tensor_type.elem_type) == ("probability", onnx.TensorProto.FLOAT)
    assert sizes == [["batch", "height", "width", 3], ["batch", 1, "height", "width"]]
    assert [(opset.domain, opset.version) for opset in graph_of().opset_import] == [("", OPSET)]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=str)
def test_every_architecture_answers_as_pytorch_at_any_size(config):
    shapes = [(1, 1, 1), (2, 1, 9), (3, 13, 7), (1, 32, 48), (2, 33, 31)]
    segmenter, _ = segmenter_of(**config)
    model = graph_of(**config)
    assert_answers_as_pytorch(segmenter, model, shapes, config.get("in_channels", 3), config.get("classes", 1))


@pytest.mark.parametrize("opset", range(OPSETS[0], OPSETS[1] + 1))
def test_every_opset_that_can_be_asked_for_answers_as_pytorch(opset):
    up, classes = ("transpose", 1) if opset % 2 else ("bilinear", 2)
    segmenter, card = segmenter_of(**SMALL, up=up, classes=classes)
    model = build_graph(segmenter, card, opset)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert model.ir_version == {18: 8, 19: 9, 20: 9}.get(opset, 10)  # ONNX Runtime 1.17 reads 9 at most
    assert_answers_as_pytorch(segmenter, model, [(1, 1, 1), (2, 13, 8)], 3, classes)


@pytest.mark.parametrize("build", [build_graph, build_raw_graph])
@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[1] + 1, 0, -1])
def test_other_opsets_are_refused(build, opset):
    with pytest.raises(ConfigError) as caught:
        build(*segmenter_of(**SMALL), opset)
    assert str(caught.value) == f"--opset {opset}: expected 18 to 23"


def test_only_a_cast_reads_the_image():
    """TensorRT refuses uint8 anywhere else."""
    readers = [node.op_type for node in graph_of().graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_batchnorm_is_folded():
    assert "BatchNormalization" not in {node.op_type for node in graph_of().graph.node}


@pytest.mark.parametrize("model_of", [graph_of, raw_graph_of])
def test_nothing_of_the_exporting_machine_is_left(model_of):
    model = copy_of(model_of())
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    content = str(model)
    assert "downs.0.conv.0.weight" in content
    for trace in ("/", "File ", ".py", "stack_trace", "namespace", "metadata_props", "doc_string", "value_info"):
        assert trace not in content


HASHES = """
import hashlib
from graphs import graph_of, raw_graph_of
for build in (graph_of, raw_graph_of):
    print(hashlib.sha256(build().SerializeToString(deterministic=True)).hexdigest())
"""


def test_another_process_builds_the_same_bytes():
    """Names, order and constants depend on nothing but the network: not on Python's hashes or on earlier exports."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", HASHES], env=environment, capture_output=True, text=True, check=True)
    here = [build().SerializeToString(deterministic=True) for build in (graph_of, raw_graph_of)]
    assert done.stdout.split() == [hashlib.sha256(content).hexdigest() for content in here]


@pytest.mark.parametrize("model_of", [graph_of, raw_graph_of])
def test_no_external_data(model_of):
    assert all(not tensor.external_data for tensor in model_of().graph.initializer)


@pytest.mark.parametrize("build", [build_graph, build_raw_graph])
def test_weights_above_what_one_file_holds_are_refused(monkeypatch, build):
    monkeypatch.setattr(graph, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ModelError, match=r"^weights of \d+ bytes: expected at most 1000, what one ONNX file can hold$"):
        build(*segmenter_of())
