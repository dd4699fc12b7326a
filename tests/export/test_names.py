import re
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from graphs import ARCHITECTURES, DEEP, graph_of, raw_graph_of, segmenter_of
from networks import make_network
from onnx import TensorProto, helper, numpy_helper

from export.graph import build_graph, rename
from runtime.card import Up
from unet_core.model import Segmenter

CONVOLUTION = r"((downs\.\d|bottleneck|ups\.\d)\.conv\.[03]|ups\.\d|final_conv)"
NODE = rf"{CONVOLUTION}|(before|after|{CONVOLUTION})\.[a-z]+(_\d)?"
VALUE = rf"image|probability|logits|({NODE})|({NODE})\.constant(_\d)?|{CONVOLUTION}\.(weight|bias)"

GRAPHS = [(graph_of, config) for config in ARCHITECTURES] + [(raw_graph_of, {}), (raw_graph_of, ARCHITECTURES[1])]


@pytest.fixture(params=GRAPHS, ids=lambda graph: f"{graph[0].__name__}({graph[1]})")
def built(request):
    """A network and its graph."""
    build, config = request.param
    return segmenter_of(**config)[0].network, build(**config)


def convolutions(network):
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def test_every_node_and_value_has_a_readable_name_of_its_own(built):
    graph = built[1].graph
    nodes = [node.name for node in graph.node]
    values = ["image", *(name for node in graph.node for name in node.output), *(t.name for t in graph.initializer)]
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    assert [name for name in nodes if not re.fullmatch(NODE, name)] == []
    assert [name for name in values if not re.fullmatch(VALUE, name)] == []
    read = {name for node in graph.node for name in node.input if name}
    assert read <= set(values)


def test_a_convolution_has_the_name_of_its_module_and_its_value_too(built):
    network, model = built
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert [node.name for node in nodes] == list(convolutions(network))
    assert [node.output[0] for node in nodes[:-1]] == [node.name for node in nodes[:-1]]


@pytest.mark.parametrize("up", get_args(Up))
def test_the_number_of_convolutions_is_known_from_the_architecture(up):
    configs = [config for config in ARCHITECTURES if segmenter_of(**config)[1].architecture.up == up]
    assert configs
    for config in configs:
        nodes = [node for node in graph_of(**config).graph.node if node.op_type in ("Conv", "ConvTranspose")]
        assert segmenter_of(**config)[1].architecture.convolutions == len(nodes)


def test_weights_have_the_names_and_shapes_of_the_checkpoint(built):
    network, model = built
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, module in convolutions(network).items():
        assert weights[f"{name}.weight"].shape == tuple(module.weight.shape)
        assert weights[f"{name}.bias"].shape == (module.out_channels,)
        if ".conv." not in name:  # no BatchNorm was folded into it
            assert np.array_equal(weights[f"{name}.weight"], module.weight.detach().numpy())
            assert np.array_equal(weights[f"{name}.bias"], module.bias.detach().numpy())


def test_the_names_of_the_way_up_by_hand():
    """A Concat or Resize is named after the block that it begins, in a graph with five levels."""
    model = graph_of(**DEEP)
    gathered = {node.name: list(node.input) for node in model.graph.node if node.op_type == "Concat"}
    del gathered["before.concat"]
    assert gathered == {
        f"ups.{2 * step + 1}.concat": [f"downs.{4 - step}.conv.3.relu", f"ups.{2 * step}"] for step in range(5)
    }
    assert [node.name for node in model.graph.node][-4:] == [
        "final_conv",
        "after.slice",
        "after.slice_2",
        "after.softmax",
    ]


def test_an_upsampling_is_named_after_the_block_that_it_begins():
    model = graph_of(**ARCHITECTURES[1])
    resized = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Resize"}
    assert resized == {
        "ups.1.resize": "bottleneck.conv.3.relu",
        "ups.3.resize": "ups.1.conv.3.relu",
        "ups.5.resize": "ups.3.conv.3.relu",
    }


def test_further_outputs_of_a_node_and_shared_constants_are_told_apart():
    """No operator of a U-Net has two outputs in today's exporter."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["image", "val_1"], ["val_2"]),
            helper.make_node("Mul", ["val_2", "val_1"], ["val_3"]),
            helper.make_node("Conv", ["val_3", "network.final_conv.weight"], ["val_4"]),
            helper.make_node("Split", ["val_4"], ["a", "val_5"], axis=1, num_outputs=2),
            helper.make_node("Add", ["val_5", "a"], ["logits"]),
        ],
        "g",
        [value("image", TensorProto.FLOAT, [1, 1, 4, 4])],
        [value("logits", TensorProto.FLOAT, [1, 1, 4, 4])],
        [
            numpy_helper.from_array(np.float32(2), "val_1"),
            numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "network.final_conv.weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rename(model, ["final_conv"])
    onnx.checker.check_model(model, full_check=True)
    assert [(node.name, list(node.input), list(node.output)) for node in model.graph.node] == [
        ("before.mul", ["image", "before.mul.constant"], ["before.mul"]),
        ("before.mul_2", ["before.mul", "before.mul.constant"], ["before.mul_2"]),
        ("final_conv", ["before.mul_2", "final_conv.weight"], ["final_conv"]),
        ("after.split", ["final_conv"], ["after.split", "after.split.1"]),
        ("after.add", ["after.split.1", "after.split"], ["logits"]),
    ]


def test_layers_with_equal_weights_have_their_own(card):
    """The exporter makes one of them."""
    network = make_network()
    for name in ("downs.0.conv.3", "ups.3.conv.3"):
        torch.nn.init.zeros_(network.get_submodule(name).weight)
    graph = build_graph(Segmenter(network, card).eval(), card).graph
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert weights == [f"{name}.weight" for name in convolutions(network)]
    assert {"downs.0.conv.3.weight", "ups.3.conv.3.weight"} < {tensor.name for tensor in graph.initializer}
