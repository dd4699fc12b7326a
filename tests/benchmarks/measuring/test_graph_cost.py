"""Counts of small graphs against numbers worked out by hand, and of exported ones against each other."""

import numpy as np
import onnx
import pytest
from graphs import ARCHITECTURES, graph_of, segmenter_of
from onnx import TensorProto, helper, numpy_helper
from onnx_files import int8_graph

from benchmarks.measuring.graph_cost import NodeWork, count_work
from export.precision.fp16 import to_half
from export.winograd.transform import rewritable, rewrite
from runtime.errors import ModelError


def graph(*nodes, weights=(), answer=TensorProto.FLOAT, image=TensorProto.FLOAT, channels=3):
    """A model from `image` [batch, height, width, channels] to `answer`; weights are pairs of name and array."""
    inputs = [helper.make_tensor_value_info("image", image, ["b", "h", "w", channels])]
    outputs = [helper.make_tensor_value_info("answer", answer, ["b", "c", "y", "x"])]
    constants = [numpy_helper.from_array(value, name) for name, value in weights]
    made = helper.make_graph(list(nodes), "test", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=operator.lower(), **attributes)


TO_PLANES = node("Transpose", "image", "planes", perm=[0, 3, 1, 2])


def test_a_convolution_by_hand():
    weight = np.zeros((8, 3, 3, 3), np.float32)
    bias = np.zeros(8, np.float32)
    model = graph(
        TO_PLANES,
        node("Conv", "planes weight bias", "answer", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        weights=[("weight", weight), ("bias", bias)],
    )
    work = count_work(model, 2, 10, 20)
    pixels = 2 * 10 * 20
    assert work.nodes == (
        NodeWork(name="transpose", operator="Transpose", gflop=0.0, mb_moved=pixels * (3 + 3) * 4 / 1e6),
        NodeWork(name="conv", operator="Conv", gflop=2 * 27 * 8 * pixels / 1e9, mb_moved=pixels * (3 + 8) * 4 / 1e6),
    )
    assert work.gflop == 2 * 27 * 8 * pixels / 1e9
    assert work.weights_mb == (8 * 27 + 8) * 4 / 1e6
    assert work.activations_mb == pytest.approx(pixels * 17 * 4 / 1e6)
    assert work.least_mb == pytest.approx(work.weights_mb + pixels * 11 * 4 / 1e6)
    assert work.peak_mb == pytest.approx(work.weights_mb + pixels * 11 * 4 / 1e6)  # planes and answer
    assert work.by_operator() == {"Conv": work.gflop, "Transpose": 0.0}


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "products"),
    [
        ("Conv", (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}, 8 * 8 * 6 * 2 * 9),
        ("Conv", (5, 4, 2, 2), {"strides": [2, 2]}, 4 * 4 * 5 * 4 * 4),
        ("Conv", (5, 4, 3, 3), {"dilations": [2, 2]}, 4 * 4 * 5 * 4 * 9),
        ("ConvTranspose", (4, 5, 2, 2), {"strides": [2, 2]}, 8 * 8 * 4 * 5 * 4),
        ("ConvTranspose", (4, 3, 2, 2), {"strides": [2, 2], "group": 2}, 8 * 8 * 4 * 3 * 4),
    ],
)
def test_products_of_convolutions(operator, shape, attributes, products):
    weight = np.zeros(shape, np.float32)
    model = graph(TO_PLANES, node(operator, "planes w", "answer", **attributes), weights=[("w", weight)], channels=4)
    assert count_work(model, 1, 8, 8).gflop == 2 * products / 1e9


def test_products_of_matrices():
    weight = np.zeros((3, 7), np.float32)
    by_hand = 2 * (2 * 4 * 5 * 7) * 3
    assert (
        count_work(graph(node("MatMul", "image w", "answer"), weights=[("w", weight)]), 2, 4, 5).gflop == by_hand / 1e9
    )
    flat = [node("Flatten", "image", "flat", axis=3), node("Gemm", "flat w", "rows")]
    model = graph(*flat, node("Unsqueeze", "rows axes", "answer"), weights=[("w", weight), ("axes", np.array([0, 1]))])
    assert count_work(model, 2, 4, 5).gflop == by_hand / 1e9
    turned = [flat[0], node("Transpose", "flat", "columns", perm=[1, 0]), node("Gemm", "columns w", "rows", transA=1)]
    model = graph(
        *turned, node("Unsqueeze", "rows axes", "answer"), weights=[("w", weight), ("axes", np.array([0, 1]))]
    )
    assert count_work(model, 2, 4, 5).gflop == by_hand / 1e9


@pytest.mark.parametrize(
    ("operator", "attributes", "operations"),
    [
        ("Relu", {}, 3 * 8 * 8),
        ("Sigmoid", {}, 3 * 8 * 8),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, 3 * 8 * 8),
        ("Identity", {}, 0),
    ],
)
def test_operations_of_others(operator, attributes, operations):
    work = count_work(graph(TO_PLANES, node(operator, "planes", "answer", **attributes)), 1, 8, 8)
    assert work.gflop == operations / 1e9
    assert (work.nodes[1].mb_moved == 0) == (operator == "Identity")


def test_memory_is_held_from_writer_to_last_reader():
    """planes (3 channels) are held until the concatenation; the two copies of them are 3 each, the answer is 9."""
    model = graph(
        TO_PLANES,
        node("Relu", "planes", "one"),
        node("Sigmoid", "one", "two"),
        node("Concat", "planes one two", "answer", axis=1),
    )
    pixel = 10 * 10 * 4 / 1e6
    assert count_work(model, 1, 10, 10).peak_mb == pytest.approx((3 + 3 + 3 + 9) * pixel)
    alone = graph(TO_PLANES, node("Relu", "planes", "one"), node("Sigmoid", "one", "answer"))
    assert count_work(alone, 1, 10, 10).peak_mb == pytest.approx((3 + 3) * pixel)


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_an_exported_graph_is_counted_as_pytorch_counts_its_network(config):
    """Products only: fvcore's and torch's rule; sides off the stride are padded before them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    segmenter, card = segmenter_of(**config)
    stride = card.input.stride
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        segmenter(torch.zeros(2, stride + 3, 2 * stride - 1, card.architecture.in_channels, dtype=torch.uint8))
    work = count_work(graph_of(**config), 2, stride + 3, 2 * stride - 1)
    products = {operator: gflop for operator, gflop in work.by_operator().items() if "Conv" in operator}
    assert sum(products.values()) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)


def test_work_grows_with_the_batch_and_weights_do_not():
    one, four = count_work(graph_of(), 1, 30, 40), count_work(graph_of(), 4, 30, 40)
    assert four.gflop == pytest.approx(4 * one.gflop)
    assert four.activations_mb == pytest.approx(4 * one.activations_mb)
    stored = sum(numpy_helper.to_array(item).nbytes for item in graph_of().graph.initializer)
    assert four.weights_mb == one.weights_mb == pytest.approx(stored / 1e6)


def test_half_precision_moves_less_and_int8_counts_the_same_products():
    exact = graph_of()
    half = to_half(exact)
    assert count_work(half, 1, 32, 48).weights_mb < 0.6 * count_work(exact, 1, 32, 48).weights_mb
    whole = int8_graph("u8")
    for operator in ("Conv", "ConvTranspose"):
        assert (
            count_work(whole, 1, 32, 48).by_operator()[operator] == count_work(exact, 1, 32, 48).by_operator()[operator]
        )


def test_a_file_is_read(tmp_path):
    onnx.save(graph_of(), tmp_path / "model.onnx")
    assert count_work(tmp_path / "model.onnx", 1, 16, 16) == count_work(graph_of(), 1, 16, 16)


def test_what_cannot_be_sized_is_refused():
    named = graph(TO_PLANES, node("NonZero", "planes", "places"), node("Cast", "places", "answer", to=1))
    with pytest.raises(ModelError) as error:
        count_work(named, 1, 8, 8)
    assert str(error.value) == "places: its size at 1 of 8x8 is unknown, so its work cannot be counted"
    flat = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2])
    model = helper.make_model(helper.make_graph([node("Relu", "image", "answer")], "flat", [flat], [flat]))
    with pytest.raises(ModelError) as error:
        count_work(model, 1, 8, 8)
    assert str(error.value) == (
        "graph: found no input of 4 axes, expected [batch, height, width, channels]; export it again"
    )
    broken = graph(TO_PLANES, node("Concat", "planes image", "answer", axis=1))
    with pytest.raises(ModelError) as error:
        count_work(broken, 1, 8, 8)
    assert str(error.value).startswith("graph: its sizes cannot be inferred (")
    assert "\n" not in str(error.value)


def test_graphs_for_cpus_are_refused_by_name():
    model = graph_of()
    rewritten = rewrite(model, {rewritable(model)[1]: "f4"})
    assert count_work(model, 1, 32, 48).gflop > 0
    with pytest.raises(
        ModelError, match="was exported with --target cpu; measure the file that is exported without it"
    ):
        count_work(rewritten, 1, 32, 48)
