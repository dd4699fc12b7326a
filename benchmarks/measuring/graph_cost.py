"""How much work a graph is at one input size: floating-point operations and bytes, counted from its nodes.

A product and a sum are two operations, so a bias is free: a sum of k products and a bias has k products and k sums.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from runtime.errors import ModelError, one_line

MEGABYTE = 1e6

SMALL = 1_024
"""Elements of a constant up to which it may be arithmetic on shapes; larger ones are weights, and left out."""

FREE = frozenset(
    {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"},
)
"""Operators that rename what is in memory and touch none of it."""

MOVES = frozenset({"Cast", "Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Transpose"})
"""Operators that copy and do not calculate."""

READERS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"})
"""Operators with one operation for each element that they read; all others have one for each that they write."""

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """One node: `gflop` is 1e9 operations, `mb_moved` the 1e6 bytes of activations that it reads and writes."""

    name: str
    operator: str
    gflop: float
    mb_moved: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """A graph at one input size; 1e9 operations, 1e6 bytes.

    `activations_mb` is what all nodes read and write if nothing is fused, weights not among it; `least_mb` what no
    program can do without: weights, input and output once each; `peak_mb` the most that is held at once, weights among
    it, where values are let go of after their last reader.
    """

    gflop: float
    weights_mb: float
    activations_mb: float
    least_mb: float
    peak_mb: float
    nodes: tuple[NodeWork, ...]

    def by_operator(self) -> dict[str, float]:
        """1e9 operations by operator, most first."""
        found: dict[str, float] = {}
        for node in self.nodes:
            found[node.operator] = found.get(node.operator, 0.0) + node.gflop
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def count(model: str | os.PathLike[str] | onnx.ModelProto, batch: int, height: int, width: int) -> Work:
    """Count the work of a graph whose one input is [batch, height, width, channels], as `unet-export` writes it.

    Raises:
        ModelError: the graph is no such one, or the size of a value does not follow from that of the input.
    """
    whole = model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model))
    if any(node.op_type == "Scan" for node in whole.graph.node):
        raise ModelError("graph: is a rewritten one for CPUs; measure the file that is exported without --target cpu")
    graph = _at_size(whole, (batch, height, width))
    values = {item.name: item.type.tensor_type for item in (*graph.input, *graph.value_info, *graph.output)}
    weights = {item.name for item in whole.graph.initializer}
    nodes, constants = _running(graph, weights)
    shapes = {name: _shape(kind) for name, kind in values.items()}
    for node in graph.node:
        for name in node.output:
            if name and shapes.get(name) is None:
                raise ModelError(f"{name}: its size at {batch}x{height}x{width} is unknown, so its work is, too")
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    sizes = {name: prod(shape) * _bytes_of(values[name]) / MEGABYTE for name, shape in known.items()}
    sizes |= {item.name: _megabytes(item) for item in whole.graph.initializer}
    known |= {item.name: tuple(item.dims) for item in (*whole.graph.initializer, *graph.initializer)}
    works = tuple(_node_work(node, known, sizes, constants) for node in nodes)
    weights_mb = sum(sizes[name] for name in weights)
    (image, *_), (answer, *_) = graph.input, graph.output
    return Work(
        gflop=sum(node.gflop for node in works),
        weights_mb=weights_mb,
        activations_mb=sum(node.mb_moved for node in works),
        least_mb=weights_mb + sizes[image.name] + sizes[answer.name],
        peak_mb=weights_mb + _peak(nodes, graph, sizes, constants),
        nodes=works,
    )


def _at_size(model: onnx.ModelProto, size: tuple[int, int, int]) -> onnx.GraphProto:
    """The graph with the size of every value, arithmetic on shapes done, and without the values of its weights."""
    sized = _without_weights(model, size)
    opsets = {item.domain: item.version for item in model.opset_import}
    while True:
        try:
            sized = shape_inference.infer_shapes(sized, strict_mode=True)
        except shape_inference.InferenceError as error:
            raise ModelError(f"graph: its sizes cannot be told ({one_line(str(error))[:200]})") from error
        if not _fold_shapes(sized.graph, opsets):
            return sized.graph


def _without_weights(model: onnx.ModelProto, size: tuple[int, int, int]) -> onnx.ModelProto:
    """A light copy: inference of shapes copies its model each time."""
    source = model.graph
    if not source.input or len(source.input[0].type.tensor_type.shape.dim) != 4:
        raise ModelError("graph: found no input of 4 axes, expected [batch, height, width, channels]; export it again")
    image = source.input[0]
    channels = image.type.tensor_type.shape.dim[3].dim_value
    inputs = [helper.make_tensor_value_info(image.name, image.type.tensor_type.elem_type, [*size, channels])]
    inputs += [
        helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        for item in source.initializer
        if prod(item.dims) > SMALL
    ]
    small = [item for item in source.initializer if prod(item.dims) <= SMALL]
    outputs = [helper.make_empty_tensor_value_info(item.name) for item in source.output]
    for made, item in zip(outputs, source.output, strict=True):
        made.type.tensor_type.elem_type = item.type.tensor_type.elem_type
    graph = helper.make_graph(source.node, "sized", inputs, outputs, small)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _fold_shapes(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> bool:
    """Replace nodes that calculate with shapes by constants, as far as those are known; whether there were any."""
    shapes = {item.name: _shape(item.type.tensor_type) for item in (*graph.input, *graph.value_info)}
    known: dict[str, NDArray[Any]] = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    left, folded = [], []
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None:
            found = _attribute(node, "start", 0), _attribute(node, "end", len(shape))
            made: Sequence[Any] = [np.array(shape[slice(*found)], np.int64)]
        elif node.input and all(name in known for name in node.input if name):
            feeds = {name: known[name] for name in node.input if name}
            made = list(ReferenceEvaluator(node, opsets=dict(opsets)).run(None, feeds))
        else:
            left.append(node)
            continue
        for name, value in zip(node.output, made, strict=True):
            known[name] = np.asarray(value)
            folded.append(numpy_helper.from_array(known[name], name))
    if folded:
        del graph.node[:]
        graph.node.extend(left)
        graph.initializer.extend(folded)
        del graph.value_info[:]
    return bool(folded)


def _node_work(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], sizes: Mapping[str, float], constants: Collection[str]
) -> NodeWork:
    touched = [name for name in (*node.input, *node.output) if name in sizes and name not in constants]
    moved = 0.0 if node.op_type in FREE else sum(sizes[name] for name in touched)
    return NodeWork(name=node.name, operator=node.op_type, gflop=_operations(node, shapes) / 1e9, mb_moved=moved)


def _operations(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type in FREE or node.op_type in MOVES:
        return 0
    if node.op_type in PRODUCTS:
        return 2 * PRODUCTS[node.op_type](node, *(shapes[name] for name in (*node.input[:2], node.output[0])))
    return prod(shapes[node.input[0] if node.op_type in READERS else node.output[0]])


def _conv(node: onnx.NodeProto, image: Shape, weight: Shape, answer: Shape) -> int:  # noqa: ARG001
    """Products of a convolution: weight is [outputs, inputs / groups, ...]."""
    return prod(answer) * prod(weight[1:])


def _transposed(node: onnx.NodeProto, image: Shape, weight: Shape, answer: Shape) -> int:  # noqa: ARG001
    """Products of a transposed convolution: weight is [inputs, outputs / groups, ...]."""
    return prod(image) * prod(weight[1:])


def _gemm(node: onnx.NodeProto, left: Shape, right: Shape, answer: Shape) -> int:  # noqa: ARG001
    return prod(answer) * left[0 if _attribute(node, "transA", 0) else 1]


def _matmul(node: onnx.NodeProto, left: Shape, right: Shape, answer: Shape) -> int:  # noqa: ARG001
    return prod(answer) * left[-1]


PRODUCTS: Mapping[str, Callable[[onnx.NodeProto, Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""How many products an operator has, from the shapes of its first two inputs and of its output."""


def _running(graph: onnx.GraphProto, weights: Collection[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that depend on the image, and the names of all values that do not: those are made once."""
    constants = {*weights, *(item.name for item in graph.initializer)}
    nodes = []
    for node in graph.node:
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
        else:
            nodes.append(node)
    return nodes, constants


def _peak(
    nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto, sizes: Mapping[str, float], constants: Collection[str]
) -> float:
    """The most megabytes of activations that are held at once, node by node."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    last |= dict.fromkeys((item.name for item in graph.output), len(nodes))
    held = {graph.input[0].name}
    peak = 0.0
    for index, node in enumerate(nodes):
        held |= {name for name in node.output if name in sizes and name not in constants}
        peak = max(peak, sum(sizes[name] for name in held))
        held = {name for name in held if last.get(name, -1) > index}
    return peak


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _shape(kind: onnx.TypeProto.Tensor) -> Shape | None:
    """The sides of a value, None where one is unknown."""
    if not kind.HasField("shape") or not all(side.HasField("dim_value") for side in kind.shape.dim):
        return None
    return tuple(side.dim_value for side in kind.shape.dim)


def _bytes_of(kind: onnx.TypeProto.Tensor) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)


def _megabytes(tensor: onnx.TensorProto) -> float:
    return float(prod(tensor.dims)) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) / MEGABYTE
