"""int8 copies of an fp32 graph: QuantizeLinear and DequantizeLinear around the convolutions that can bear it.

"s8" is what TensorRT takes: int8 with scales alone, for values and, per channel, for weights; biases stay fp32; all
that meets in a Concat has one scale. "u8" is what x86 CPUs multiply fast: uint8 values with a zero point, weights of 7
bits, int32 biases; what comes out of a convolution is quantised too, whoever reads it. In both, the first and the last
convolution and the transposed ones stay fp32, and a MaxPool has one scale on both sides.

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

from export.precision.fp16 import convolutions

Values = Literal["s8", "u8"]
"""How values between layers are held."""

INT8_MAX = 127
UINT8_MAX = 255
WEIGHT_MAX: Mapping[Values, int] = {"s8": INT8_MAX, "u8": 64}
"""CPUs without VNNI add two products of uint8 and int8 in 16 bits: up to 64 the sum fits, and all CPUs answer alike."""

BIAS_MAX = 2**30
"""Of an int32 bias: what is added to it has room too."""

SMALLEST = 1e-12
"""Range of values and weights that are all zero."""

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


def values_to_calibrate(model: onnx.ModelProto, layers: Collection[str], values: Values) -> list[str]:
    """The values whose ranges `to_int8` needs for these layers; those that are only moved have ranges already."""
    return sorted({value for made_of in _origins(model, layers, values).values() for value in made_of})


def to_int8(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges, values: Values) -> onnx.ModelProto:
    """The graph with `layers` in int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    scales = {value: _scale(made_of, ranges, values) for value, made_of in _origins(model, layers, values).items()}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.name in layers or values == "u8" or (node.op_type in SAME_RANGE and node.output[0] in scales):
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


def _origins(model: onnx.ModelProto, layers: Collection[str], values: Values) -> dict[str, set[str]]:
    """Values that are to be integers, each with those whose ranges its own scale covers.

    These are what it is made of by moving or choosing, and for "s8" what meets it in a Concat too.
    """
    makers = {value: node for node in model.graph.node for value in node.output}
    found: dict[str, set[str]] = {}

    def made_of(value: str) -> set[str]:
        if value not in found:
            moved = makers[value].input if makers[value].op_type in SAME_RANGE else ()
            found[value] = set().union(*map(made_of, moved)) if moved else {value}
        return found[value]

    for node in model.graph.node:
        if node.name in layers:
            made_of(node.input[0])
        elif values == "u8" and node.op_type == "Relu" and makers[node.input[0]].name in layers:
            made_of(node.output[0])  # a CPU multiplies integers only where integers come out too
    if values == "s8":
        return {value: _all_that_meets(own, found.values()) for value, own in found.items()}
    return found


def _all_that_meets(own: set[str], others: Collection[set[str]]) -> set[str]:
    """A set of values and all those that share a value with it, or with one of these."""
    whole: set[str] = set()
    while own != whole:
        whole = own
        own = whole.union(*(other for other in others if other & whole))
    return whole


def _scale(made_of: Collection[str], ranges: Ranges, values: Values) -> Scale:
    low = min(0.0, *(ranges[value][0] for value in made_of))
    high = max(0.0, *(ranges[value][1] for value in made_of))
    if values == "s8":
        return Scale(np.float32(max(-low, high, SMALLEST) / INT8_MAX), np.array(0, np.int8))
    scale = np.float32(max(high - low, SMALLEST) / UINT8_MAX)
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
    weight, most = numpy_helper.to_array(weights[node.input[1]]), WEIGHT_MAX[values]
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), SMALLEST) / most
    with_bias = values == "u8" and len(node.input) > 2
    if with_bias:
        bias = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64)
        # A channel of almost no weights may have a bias that is no int32 at its weights' scale.
        scale = np.maximum(scale, np.abs(bias) / (float(incoming.scale) * BIAS_MAX))
    scale = scale.astype(np.float32)
    integers = np.clip(np.rint(weight / scale[:, None, None, None]), -most, most).astype(np.int8)
    nodes = [_dequantised(graph, node, 1, weights[node.input[1]], integers, scale)]
    if with_bias:
        bias_scale = scale * incoming.scale
        bias_integers = np.rint(bias / bias_scale).astype(np.int32)
        nodes.append(_dequantised(graph, node, 2, weights[node.input[2]], bias_integers, bias_scale))
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
