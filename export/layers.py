"""The layers of an ONNX graph: its convolutions by name, and the size of its weights. Needs no PyTorch."""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx.helper import get_attribute_value

MAX_WEIGHT_BYTES = 2**31 - 2**20
"""Largest weights of a file, in bytes: a protobuf message holds at most 2 GiB, and graph and card need some room."""

CONVOLUTIONS = ("Conv", "ConvTranspose")

ATTRIBUTES: Mapping[str, Any] = {
    "group": 1,
    "auto_pad": b"NOTSET",
    "ceil_mode": 0,
    "pads": [0, 0, 0, 0],
    "dilations": [1, 1],
    "output_padding": [0, 0],
}
"""ONNX's defaults of the attributes that are looked at, for pictures."""


def layers_of(model: onnx.ModelProto) -> list[str]:
    """List the names of a graph's convolutions, transposed ones too, from its input to its output."""
    return [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]


def layers_with_weights(model: onnx.ModelProto) -> list[str]:
    """List those of `layers_of` whose weights are constants, and not computed by the graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS and {*node.input[1:]} <= constants]


def bytes_of(model: onnx.ModelProto) -> int:
    """Return the size in bytes of a graph's weights and other constants."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def has_attributes(node: onnx.NodeProto, wanted: Mapping[str, Any]) -> bool:
    """Return True if a convolution or pooling has these attributes; those that it leaves out have ONNX's defaults."""
    given = {**ATTRIBUTES} | {one.name: get_attribute_value(one) for one in node.attribute}
    return all(given.get(name) == value for name, value in wanted.items())
