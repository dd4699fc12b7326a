import numpy as np
import onnx
import pytest
from networks import make_card, make_network
from onnx import numpy_helper

from export.graph import build_graph
from export.proof import MAX_ERROR, make_golden, network_run, parity, proof_shapes, prove, worst
from runtime.card import OutputSpec, Parity
from runtime.errors import ProofError
from unet_core.model import Segmenter

BINARY = OutputSpec()
THREE = OutputSpec(classes=("a", "b", "c"), activation="softmax")


def plane(*values):
    return np.array([[values]], np.float32)[0]


def test_parity_of_equals():
    assert parity(plane(0.1, 0.9), plane(0.1, 0.9), BINARY) == Parity(
        max_abs_error=0, flipped=0, iou=1, flip_distance=0
    )


def test_parity_by_hand():
    found = parity(plane(0.2, 0.6, 0.9, 0.9), plane(0.2, 0.4, 0.9, 0.7), BINARY)
    assert found.max_abs_error == pytest.approx(0.2)
    assert found.flipped == 0.25
    assert found.iou == pytest.approx(2 / 3)
    assert found.flip_distance == pytest.approx(0.1)


def test_parity_of_several_classes_by_hand():
    reference = np.array([[0.5, 0.1, 0.2], [0.4, 0.8, 0.3], [0.1, 0.1, 0.5]], np.float32)[:, None]  # a b c
    answer = np.array([[0.45, 0.1, 0.2], [0.45001, 0.8, 0.3], [0.1, 0.1, 0.5]], np.float32)[:, None]  # b b c
    found = parity(answer, reference, THREE)
    assert found.flipped == pytest.approx(1 / 3)
    assert found.iou == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert found.flip_distance == pytest.approx(0.1)


def test_both_masks_empty_agree():
    assert parity(plane(0.1), plane(0.2), BINARY).iou == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_the_worst_there_is(bad):
    assert parity(plane(0.1, bad), plane(0.1, 0.2), BINARY) == Parity(
        max_abs_error=1, flipped=1, iou=0, flip_distance=1
    )


def test_worst_takes_each_figure_on_its_own():
    one = Parity(max_abs_error=0.1, flipped=0.0, iou=1.0, flip_distance=0.3)
    two = Parity(max_abs_error=0.2, flipped=0.1, iou=0.9, flip_distance=0.0)
    assert worst([one, two]) == Parity(max_abs_error=0.2, flipped=0.1, iou=0.9, flip_distance=0.3)


@pytest.mark.parametrize("size", [(160, 240), (1280, 1920), (4, 8)])
def test_eight_shapes_with_one_pixel_odd_sides_batch_three_and_the_trained_size(network, size):
    shapes = proof_shapes(make_card(network, size))
    assert len(shapes) >= 8
    assert {(1, 1, 1), (1, *size)} <= set(shapes)
    assert any(batch == 3 for batch, _, _ in shapes)
    assert any(height % 2 and width % 2 and height != width for _, height, width in shapes)
    assert all(batch * height * width <= max(size[0] * size[1], 3 * 256 * 256) for batch, height, width in shapes)


@pytest.fixture(scope="module")
def built():
    network = make_network()
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    return segmenter, build_graph(segmenter, card), card


def test_proof_of_an_honest_export(built):
    _, _, card = built
    proof = prove(*built)
    assert [row.shape for row in proof.rows] == proof_shapes(card)
    assert 0 < proof.max_abs_error < 2e-6
    assert proof.provider == "CPUExecutionProvider"
    assert set(proof.versions) == {"torch", "onnx", "onnxruntime"}


def changed(model, change):
    """A copy whose first convolution's weights went through `change`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name = next(node.input[1] for node in copy.graph.node if node.op_type == "Conv")
    tensor = next(item for item in copy.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return copy


@pytest.mark.parametrize("factor", [1.01, -1.0, np.nan])
def test_a_graph_with_other_weights_is_refused(built, factor):
    segmenter, model, card = built
    model = changed(model, lambda weights: weights * np.float32(factor))
    with pytest.raises(
        ProofError, match=r"the exported graph is not the network: at \(batch, height, width\)"
    ) as caught:
        prove(segmenter, model, card)
    assert f"expected at most {MAX_ERROR:g}" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_broken_graph_is_refused(built):
    segmenter, honest, card = built
    model = onnx.ModelProto()
    model.CopyFrom(honest)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ProofError, match="the exported graph cannot be loaded"):
        prove(segmenter, model, card)


def test_golden_is_pytorchs_answer():
    network = make_network(in_channels=1, classes=3)
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    golden = make_golden(segmenter, card)
    assert golden.image.shape == (56, 88, 1)
    assert golden.probability.shape == (3, 56, 88)
    assert golden.error(network_run(segmenter)) < 1e-6
    assert golden.error(lambda image: network_run(segmenter)(255 - image)) > 1e-3
