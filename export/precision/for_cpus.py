"""The fp32 graph as a CPU likes it before it is converted to int8 ("u8"): the same values, moved and made otherwise.

Pictures are turned to planes and padded as bytes, not as floats. Wide transposed convolutions become products.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.layers import has_attributes, layers_with_weights

PRODUCT_CHANNELS = 64
"""Number of output channels from which a transposed convolution becomes a product.

ONNX Runtime multiplies integers in products only, and is 1.2 times as fast for it on a network of 31 million weights.
OpenVINO does in both, and is 1.07 times as fast on widths 8 to 64 without the moving.
"""

SCALING = ("Div", "Sub")
"""Operators between the bytes of a picture and the network's input."""


def for_cpus(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes the same from bytes that are moved early, with products for wide upsampling."""
    changed = copy.deepcopy(model)
    _move_bytes(changed.graph)
    _make_products(changed)
    return changed


def range_of_pictures(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Return the value that holds the scaled picture, with its range over all bytes; nothing if there is none."""
    chain = _scaling(model.graph)
    if not chain:
        return {}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ends = np.array([0, 255], np.float32).reshape(2, 1, 1, 1)
    for node in chain:
        if node.op_type in SCALING:
            constant = constants[node.input[1]]
            ends = ends / constant if node.op_type == "Div" else ends - constant
    return {chain[-1].output[0]: (float(ends.min()), float(ends.max()))}


def _scaling(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes from the picture's bytes to the network's input, in order, or none.

    Each has a single reader, but for those that ask for the bytes' shape. What scales does so by constants, and what
    pads repeats the edge. A second Transpose is the network's own: the constants before it are made for planes.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    chain: list[onnx.NodeProto] = []
    value = graph.input[0].name
    while True:
        following = [node for node in readers.get(value, []) if node.op_type != "Shape" or len(chain) > 1]
        if len(following) != 1 or following[0].input[0] != value or not _moves_or_scales(following[0], constants):
            break
        if len(chain) > 1 and following[0].op_type == "Transpose":
            break
        chain.append(following[0])
        value = following[0].output[0]
    return chain if [node.op_type for node in chain][:2] == ["Cast", "Transpose"] else []


def _moves_or_scales(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """Return True for a node that may stand between a picture's bytes and the network's input."""
    if node.op_type == "Pad":
        return any(one.name == "mode" and one.s == b"edge" for one in node.attribute)
    return node.op_type in ("Cast", "Transpose") or (node.op_type in SCALING and node.input[1] in constants)


def _move_bytes(graph: onnx.GraphProto) -> None:
    """Put Transpose and Pad before the conversion to floats, and leave out what changes no value."""
    chain = _scaling(graph)
    if not chain:
        return
    picture, value = graph.input[0].name, chain[-1].output[0]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    moving = [node for node in chain if node.op_type in ("Transpose", "Pad")]
    scaling = [node for node in chain if node not in moving and not _changes_nothing(node, constants)]
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == chain[0].output[0]:
            node.input[0] = picture
    reading = picture
    for node in (*moving, *scaling):
        node.input[0], node.output[0] = reading, f"{node.name}.moved"
        reading = node.output[0]
    scaling[-1].output[0] = value
    # In the place of the last one, before which is known how much to pad.
    place = max(index for index, node in enumerate(graph.node) if node in chain)
    before = [node for node in graph.node[:place] if node not in chain]
    nodes = [copy.deepcopy(node) for node in (*before, *moving, *scaling, *graph.node[place + 1 :])]
    del graph.node[:]
    graph.node.extend(nodes)


def _changes_nothing(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Return True for a subtraction of 0 or a division by 1."""
    if node.op_type not in SCALING:
        return False
    return bool(np.all(constants[node.input[1]] == (1 if node.op_type == "Div" else 0)))


def _make_products(model: onnx.ModelProto) -> None:
    """Replace transposed convolutions that do not overlap by a convolution of 1x1 and a DepthToSpace."""
    graph, able = model.graph, {*layers_with_weights(model)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(value for node in graph.node for value in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        own = all(reads[name] == 1 for name in node.input[1:])  # weights that no other layer shares
        if node.op_type == "ConvTranspose" and node.name in able and own and _is_wide(node, weights):
            nodes += _product(node, weights)
        else:
            nodes.append(copy.deepcopy(node))
    del graph.node[:]
    graph.node.extend(nodes)


def _is_wide(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Return True for a transposed convolution of many channels by squares that touch one another."""
    _, channels, height, width = weights[node.input[1]].dims
    squares = {"kernel_shape": [height, width], "strides": [height, width], "pads": [0, 0, 0, 0]}
    same = {"dilations": [1, 1], "group": 1, "output_padding": [0, 0], "auto_pad": b"NOTSET", "output_shape": None}
    return channels >= PRODUCT_CHANNELS and height == width and has_attributes(node, {**squares, **same})


def _product(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> Sequence[onnx.NodeProto]:
    """Make the nodes in place of a transposed convolution; its weights become [side * side * out, in, 1, 1]."""
    tensor = weights[node.input[1]]
    side = tensor.dims[2]
    # [in, out, side, side] -> [side, side, out, in] -> [side * side * out, in, 1, 1]
    product = numpy_helper.to_array(tensor).transpose(2, 3, 1, 0).reshape(-1, tensor.dims[0], 1, 1)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(product), tensor.name))
    if len(node.input) > 2:
        bias = weights[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array(np.tile(numpy_helper.to_array(bias), side * side), bias.name))
    value = f"{node.output[0]}.product"
    return [
        helper.make_node("Conv", node.input, [value], name=node.name, kernel_shape=[1, 1]),
        helper.make_node("DepthToSpace", [value], node.output, name=f"{node.name}.moved", blocksize=side, mode="DCR"),
    ]
