import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import make_card, make_network

from export import graph
from export.graph import OPSET, build_graph, set_metadata
from runtime.errors import ModelError
from unet_core.model import Segmenter


def build(**config):
    network = make_network(**config)
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    return segmenter, build_graph(segmenter, card)


@pytest.fixture(scope="module")
def built():
    return build()


def answer(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"image": image})[0]


def test_signature(built):
    _, model = built
    (image,), (probability,) = model.graph.input, model.graph.output
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, probability)]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (probability.name, probability.type.tensor_type.elem_type) == ("probability", onnx.TensorProto.FLOAT)
    assert sizes == [["batch", "height", "width", 3], ["batch", 1, "height", "width"]]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]


@pytest.mark.parametrize(
    "config",
    [
        {"widths": (3, 5, 9), "up": "bilinear", "classes": 2},
        {"widths": (5,), "in_channels": 1, "classes": 3},
    ],
    ids=str,
)
def test_every_architecture_answers_as_pytorch_at_any_size(config):
    segmenter, model = build(**config)
    random = np.random.default_rng(0)
    for shape in [(1, 1, 1), (2, 1, 9), (3, 13, 7), (1, 32, 48)]:
        image = random.integers(0, 256, (*shape, config.get("in_channels", 3))).astype(np.uint8)
        with torch.inference_mode():
            expected = segmenter(torch.from_numpy(image)).numpy()
        assert expected.shape == (shape[0], config.get("classes", 1), *shape[1:])
        assert np.abs(answer(model, image) - expected).max() < 2e-6


def test_only_a_cast_reads_the_image(built):
    """TensorRT refuses uint8 anywhere else."""
    readers = [node.op_type for node in built[1].graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_batchnorm_is_folded(built):
    assert "BatchNormalization" not in {node.op_type for node in built[1].graph.node}


def test_nothing_of_the_exporting_machine_is_left(built):
    content = built[1].SerializeToString()
    for trace in (b"File ", b".py", b"site-packages", b"stack_trace", b"namespace"):
        assert trace not in content


def test_no_external_data(built):
    assert all(not tensor.external_data for tensor in built[1].graph.initializer)


def test_weights_above_what_one_file_holds_are_refused(network, card, monkeypatch):
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"weights of \d+ bytes: expected at most 1000, what one ONNX file can hold"):
        build_graph(Segmenter(network, card), card)


def test_metadata_is_replaced(built):
    model = onnx.ModelProto()
    model.CopyFrom(built[1])
    set_metadata(model, {"b": "1", "a": "2"})
    set_metadata(model, {"c": "3", "a": "4"})
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "4"), ("c", "3")]
