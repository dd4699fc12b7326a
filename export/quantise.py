"""int8 copies of an fp32 graph: QuantizeLinear and DequantizeLinear around the convolutions that can bear it.

"s8" is what TensorRT takes: int8 with scales alone, for values and, per channel, for weights; biases stay fp32. "u8" is
what x86 CPUs multiply fast: uint8 values with a zero point, int8 weights, int32 biases. In both, the first and the last
convolution and the transposed ones stay fp32, and all that meets in a Concat has one scale, and so have the values on
both sides of a MaxPool: neither then computes anything.

Symmetric per-channel weights after Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
2018.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.half import convolutions

Values = Literal["s8", "u8"]
"""How values between layers are held."""

INT8_MAX = 127
UINT8_MAX = 255
SAME_RANGE = ("MaxPool", "Concat")
"""Operators that only move or choose values."""

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest of each value, as calibrated."""


@dataclass(frozen=True)
class Scale:
    """real = scale * (quantised - zero)."""

    scale: np.float32
    zero: NDArray[np.generic]


def quantisable(model: onnx.ModelProto) -> list[str]:
    """The layers that can be int8: all convolutions but the first and the last."""
    kinds = {node.name: node.op_type for node in model.graph.node}
    return [name for name in convolutions(model)[1:-1] if kinds[name] == "Conv"]


def values_to_calibrate(model: onnx.ModelProto, layers: Collection[str]) -> list[str]:
    """The values whose ranges `to_int8` needs for these layers."""
    return sorted({value for group in _groups(model, layers) for value in group})


def to_int8(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges, values: Values) -> onnx.ModelProto:
    """The graph with `layers` in int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    scales = {value: _scale(group, ranges, values) for group in _groups(model, layers) for value in group}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.name in layers or (node.op_type in SAME_RANGE and node.output[0] in scales):
            node.input[:] = [f"{value}.dequantised" if value in scales else value for value in node.input]
        if node.name in layers:
            incoming = scales[node.input[0].removesuffix(".dequantised")]
            nodes += _quantise_weights(graph, node, weights, incoming, values)
        nodes.append(node)
        for value in node.output:
            if value in scales:
                nodes += _pair(graph, value, scales[value])
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _groups(model: onnx.ModelProto, layers: Collection[str]) -> list[set[str]]:
    """Values that go into these layers, each with those that it is made of by moving or choosing: one scale a group."""
    makers = {value: node for node in model.graph.node for value in node.output}
    groups: list[set[str]] = []
    for node in model.graph.node:
        if node.name in layers:
            group, waiting = set(), [node.input[0]]
            while waiting:
                value = waiting.pop()
                group.add(value)
                maker = makers[value]
                if maker.op_type in SAME_RANGE:
                    waiting += maker.input
            for other in [other for other in groups if other & group]:
                group |= other
                groups.remove(other)
            groups.append(group)
    return groups


def _scale(group: Collection[str], ranges: Ranges, values: Values) -> Scale:
    low = min(0.0, *(ranges[value][0] for value in group))
    high = max(0.0, *(ranges[value][1] for value in group))
    if values == "s8":
        return Scale(np.float32(max(-low, high, 1e-12) / INT8_MAX), np.array(0, np.int8))
    scale = np.float32(max(high - low, 1e-12) / UINT8_MAX)
    return Scale(scale, np.array(np.clip(round(-low / float(scale)), 0, UINT8_MAX), np.uint8))


def _pair(graph: onnx.GraphProto, value: str, scale: Scale) -> list[onnx.NodeProto]:
    """Quantise a value and dequantise it again; its readers in int8 take the latter."""
    constants = _constants(graph, value, scale.scale, scale.zero)
    quantised, dequantised = f"{value}.quantised", f"{value}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [value, *constants], [quantised], name=quantised),
        helper.make_node("DequantizeLinear", [quantised, *constants], [dequantised], name=dequantised),
    ]


def _quantise_weights(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    incoming: Scale,
    values: Values,
) -> list[onnx.NodeProto]:
    """Replace a convolution's weights, and for "u8" its bias, by integers; returns what dequantises them."""
    weight = numpy_helper.to_array(weights[node.input[1]])
    largest = np.abs(weight).max(axis=(1, 2, 3))
    scale = (np.maximum(largest, 1e-12) / INT8_MAX).astype(np.float32)
    integers = np.clip(np.rint(weight / scale[:, None, None, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    nodes = [_dequantised(graph, node, 1, weights[node.input[1]], integers, scale)]
    if values == "u8":
        bias_scale = scale * incoming.scale
        bias = np.rint(numpy_helper.to_array(weights[node.input[2]]).astype(np.float64) / bias_scale)
        limits = np.iinfo(np.int32)
        bias = np.clip(bias, limits.min, limits.max).astype(np.int32)
        nodes.append(_dequantised(graph, node, 2, weights[node.input[2]], bias, bias_scale.astype(np.float32)))
    return nodes


def _dequantised(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    place: int,
    tensor: onnx.TensorProto,
    integers: NDArray[np.generic],
    scale: NDArray[np.float32],
) -> onnx.NodeProto:
    """Put integers in a weight's place, one scale for each of its rows, and let the node read what they mean."""
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(integers, name))
    constants = _constants(graph, name, scale, np.zeros(scale.shape, integers.dtype))
    node.input[place] = f"{name}.dequantised"
    return helper.make_node("DequantizeLinear", [name, *constants], [node.input[place]], name=node.input[place], axis=0)


def _constants(graph: onnx.GraphProto, name: str, scale: object, zero: NDArray[np.generic]) -> Sequence[str]:
    names = f"{name}.scale", f"{name}.zero"
    graph.initializer.extend(
        [numpy_helper.from_array(np.asarray(scale, np.float32), names[0]), numpy_helper.from_array(zero, names[1])]
    )
    return names
