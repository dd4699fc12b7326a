"""The work of a graph at one input size: floating-point operations and bytes, counted from its nodes.

A product and a sum are two operations, so a bias is free: a sum of k products and a bias has k products and k sums.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from runtime.errors import ModelError, one_line
from runtime.support.sizes import batch_text

SMALL = 1_024
"""Maximum elements of a constant that may belong to arithmetic on shapes; larger ones are weights, and left out."""

FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that only rename what is in memory."""

MOVES = frozenset({"Cast", "Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Transpose"})
"""Operators that copy and do not calculate."""

READERS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"})
"""Operators with one operation for each element that they read; all others have one for each that they write."""

Dimensions = tuple[int, ...]
"""Sizes of a value's axes."""


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """The work of one node.

    Attributes:
        name, operator: the node's.
        gflop: 1e9 operations.
        mb_moved: 1e6 bytes of activations that it reads and writes.
    """

    name: str
    operator: str
    gflop: float
    mb_moved: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a graph at one input size.

    Attributes:
        gflop: 1e9 operations.
        weights_mb: 1e6 bytes of weights.
        activations_mb: 1e6 bytes that all nodes read and write if nothing is fused, without weights.
        least_mb: 1e6 bytes that every program must move: weights, input and output once each.
        peak_mb: the largest 1e6 bytes held at once, with weights, if values are freed after their last reader.
        nodes: the work of each node.
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


def count_work(model: str | os.PathLike[str] | onnx.ModelProto, batch: int, height: int, width: int) -> Work:
    """Count the work of a graph whose one input is [batch, height, width, channels], as `unet-export` writes it.

    Raises:
        ModelError: the graph is another kind, or the size of a value does not follow from that of the input.
    """
    whole = model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model))
    if any(node.op_type == "Scan" for node in whole.graph.node):
        raise ModelError("graph: was exported with --target cpu; measure the file that is exported without it")
    graph = graph_at_size(whole, (batch, height, width))
    values = {item.name: item.type.tensor_type for item in (*graph.input, *graph.value_info, *graph.output)}
    known = {name: dimensions_of(kind) for name, kind in values.items()}
    for name in (name for node in graph.node for name in node.output):
        if name and known.get(name) is None:
            at = batch_text((batch, height, width))
            raise ModelError(f"{name}: its size at {at} is unknown, so its work cannot be counted")
    shapes = {name: shape for name, shape in known.items() if shape is not None}
    sizes = {name: megabytes(shape, values[name].elem_type) for name, shape in shapes.items()}
    sizes |= {item.name: megabytes(item.dims, item.data_type) for item in whole.graph.initializer}
    shapes |= {item.name: tuple(item.dims) for item in (*whole.graph.initializer, *graph.initializer)}
    weights = {item.name for item in whole.graph.initializer}
    constants = {*weights, *(item.name for item in graph.initializer)}
    nodes = []  # those that depend on the image; all others are calculated once
    for node in graph.node:
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
        else:
            nodes.append(node)
    activations = {name: size for name, size in sizes.items() if name not in constants}
    works = tuple(
        NodeWork(
            name=node.name,
            operator=node.op_type,
            gflop=operations_of(node, shapes) / 1e9,
            mb_moved=0.0
            if node.op_type in FREE
            else sum(activations[name] for name in (*node.input, *node.output) if name in activations),
        )
        for node in nodes
    )
    weights_mb = sum(sizes[name] for name in weights)
    (image, *_), (answer, *_) = graph.input, graph.output
    return Work(
        gflop=sum(node.gflop for node in works),
        weights_mb=weights_mb,
        activations_mb=sum(node.mb_moved for node in works),
        least_mb=weights_mb + sizes[image.name] + sizes[answer.name],
        peak_mb=weights_mb + peak_of_activations(nodes, image.name, [item.name for item in graph.output], activations),
        nodes=works,
    )


def graph_at_size(model: onnx.ModelProto, size: tuple[int, int, int]) -> onnx.GraphProto:
    """The graph for inputs of (batch, height, width): every value has its size, and weights have no values.

    Arithmetic on shapes is replaced by its results.

    Raises:
        ModelError: there is no such input, or sizes contradict each other.
    """
    sized = without_weights(model, size)
    opsets = {item.domain: item.version for item in model.opset_import}
    while True:
        try:
            sized = shape_inference.infer_shapes(sized, strict_mode=True)
        except shape_inference.InferenceError as error:
            raise ModelError(f"graph: its sizes cannot be inferred ({one_line(str(error))[:200]})") from error
        if not fold_arithmetic_on_shapes(sized.graph, opsets):
            return sized.graph


def without_weights(model: onnx.ModelProto, size: tuple[int, int, int]) -> onnx.ModelProto:
    """Copy a model for one input size, but not its weights: inference of shapes copies its model each time."""
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


def fold_arithmetic_on_shapes(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> bool:
    """Replace nodes that calculate with known shapes by constants; return True if there were any."""
    shapes = {item.name: dimensions_of(item.type.tensor_type) for item in (*graph.input, *graph.value_info)}
    known: dict[str, NDArray[Any]] = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    left, folded = [], []
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None:
            found = attribute(node, "start", 0), attribute(node, "end", len(shape))
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


def operations_of(node: onnx.NodeProto, shapes: Mapping[str, Dimensions]) -> int:
    """Number of floating-point operations of a node."""
    if node.op_type in FREE or node.op_type in MOVES:
        return 0
    answer = shapes[node.output[0]]
    match node.op_type:
        case "Conv":  # its weight is [outputs, inputs / groups, ...]
            return 2 * prod(answer) * prod(shapes[node.input[1]][1:])
        case "ConvTranspose":  # its weight is [inputs, outputs / groups, ...]
            return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
        case "Gemm":
            return 2 * prod(answer) * shapes[node.input[0]][0 if attribute(node, "transA", 0) else 1]
        case "MatMul":
            return 2 * prod(answer) * shapes[node.input[0]][-1]
    return prod(shapes[node.input[0]] if node.op_type in READERS else answer)


def peak_of_activations(
    nodes: Sequence[onnx.NodeProto], image: str, answers: Sequence[str], activations: Mapping[str, float]
) -> float:
    """The largest megabytes of `activations` (megabytes by name) that are held at once, node by node."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input} | dict.fromkeys(answers, len(nodes))
    held = {image}
    peak = 0.0
    for index, node in enumerate(nodes):
        held |= {name for name in node.output if name in activations}
        peak = max(peak, sum(activations[name] for name in held))
        held = {name for name in held if last.get(name, -1) > index}
    return peak


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute of a node that is a whole number."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def dimensions_of(kind: onnx.TypeProto.Tensor) -> Dimensions | None:
    """The dimensions of a value; None if one is unknown."""
    if not kind.HasField("shape") or not all(side.HasField("dim_value") for side in kind.shape.dim):
        return None
    return tuple(side.dim_value for side in kind.shape.dim)


def megabytes(dimensions: Iterable[int], type_of_element: int) -> float:
    """The size of a value in 1e6 bytes."""
    return prod(dimensions) * int(helper.tensor_dtype_to_np_dtype(type_of_element).itemsize) / 1e6
