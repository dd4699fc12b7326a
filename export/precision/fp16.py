"""fp16 copies of an fp32 graph: which layers can be fp16, and the graph with those that can.

Inputs, outputs, what is before the network and what is after it stay as they are. A layer is a convolution, by its name
(`export.names`); the operators between two of them follow the values that they get.

A CPU multiplies in fp32 whatever the file says, so what a GPU will answer is estimated on a graph in fp32 that rounds
to fp16 every weight and every value that the fp16 graph keeps: products are exact there and sums are in fp32, as
tensor cores can do it (Micikevicius et al., "Mixed Precision Training", 2018). A library that sums in fp16, or rounds
before it adds a bias, loses more.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph import CONVOLUTIONS

FOLLOWERS = ("Relu", "MaxPool", "Concat", "Resize")
"""Operators that are fp16 where all that they get is."""

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""How many times larger than seen a value may become on other images before it overflows."""

Loss = tuple[float, float]
"""Share of flipped pixels, mean |p - p of fp32|: what a set of layers in fp16 costs."""


def convolutions(model: onnx.ModelProto) -> list[str]:
    """The layers of a graph, from its input to its output."""
    return [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with all layers but `keep` in fp16."""
    return _Conversion(model, keep, emulate=False).run()


def emulate_half(model: onnx.ModelProto, keep: Collection[str] = (), *, weights_only: bool = False) -> onnx.ModelProto:
    """A graph in fp32 that rounds where that of `to_half` does; with `weights_only` as a CPU computes that one."""
    return _Conversion(model, keep, emulate=True, weights_only=weights_only).run()


class _Conversion:
    """One walk over the nodes of a copy: casts come in where a value and its reader differ."""

    def __init__(
        self, model: onnx.ModelProto, keep: Collection[str], *, emulate: bool, weights_only: bool = False
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.keep, self.emulate, self.weights_only = keep, emulate, weights_only
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.half: set[str] = set()
        self.made: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in list(graph.node):
            self._convert(node) if self._is_half(node) else self._leave(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        return self.model

    def _is_half(self, node: onnx.NodeProto) -> bool:
        if node.op_type in CONVOLUTIONS:
            return node.name not in self.keep
        return node.op_type in FOLLOWERS and all(value in self.half for value in self._data(node))

    def _data(self, node: onnx.NodeProto) -> Sequence[str]:
        """The values of a node that are pictures: all of a Concat, the first one of others."""
        return list(node.input) if node.op_type == "Concat" else [node.input[0]]

    def _convert(self, node: onnx.NodeProto) -> None:
        for place, value in enumerate(node.input):
            if value in self._data(node):
                node.input[place] = self._cast(value, TensorProto.FLOAT16)
            elif node.op_type in CONVOLUTIONS:
                self._round(self.weights[value])
        (output,) = node.output
        self.half.add(output)
        if not self.emulate or self.weights_only:
            self.nodes.append(node)
            return
        node.output[0] = f"{output}.exact"
        self.nodes += [node, *_rounding(node.output[0], output)]

    def _leave(self, node: onnx.NodeProto) -> None:
        for place, value in enumerate(node.input):
            if value in self.half:
                node.input[place] = self._cast(value, TensorProto.FLOAT)
        self.nodes.append(node)

    def _round(self, weight: onnx.TensorProto) -> None:
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # layers with such weights are kept, or the proof shows it
            rounded = values.astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32) if self.emulate else rounded, weight.name))

    def _cast(self, value: str, kind: int) -> str:
        """The name under which a value is there as another type."""
        if (value in self.half) == (kind == TensorProto.FLOAT16) or (self.emulate and kind == TensorProto.FLOAT):
            return value
        if self.weights_only:
            return value
        name = f"{value}.{'half' if kind == TensorProto.FLOAT16 else 'single'}"
        if name not in self.made:
            self.made.add(name)
            self.nodes += _rounding(value, name) if self.emulate else [_cast(value, name, kind)]
        return name


def _cast(value: str, name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [name], name=f"{name}.cast", to=kind)


def _rounding(value: str, name: str) -> list[onnx.NodeProto]:
    """To fp16 and back."""
    return [_cast(value, f"{name}.rounded", TensorProto.FLOAT16), _cast(f"{name}.rounded", name, TensorProto.FLOAT)]


def overflowing(model: onnx.ModelProto, extremes: Callable[[Sequence[str]], dict[str, float]]) -> list[str]:
    """Layers that fp16 cannot hold: a weight, or `HEADROOM` times a value that goes in or comes out, is too large.

    `extremes` gives the largest |value| of each named value over the images.
    """
    layers = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    seen = extremes(sorted({name for node in layers for name in (node.input[0], node.output[0])}))
    weights = {tensor.name: _largest(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    return [
        node.name
        for node in layers
        if not max(weights[name] for name in node.input[1:]) <= LARGEST
        or not HEADROOM * max(seen[node.input[0]], seen[node.output[0]]) <= LARGEST
    ]


def _largest(values: NDArray[np.generic]) -> float:
    return float(np.abs(values).max(initial=0))


def layers_to_keep(
    layers: Sequence[str], needed: Collection[str], loss: Callable[[Collection[str]], Loss], limit: float
) -> tuple[list[str], list[tuple[str, Loss]]]:
    """The layers to keep in fp32, as few as flip at most `limit` (0..1) of the pixels, and what each other one costs.

    Each layer is tried alone in fp16; then the number of those kept, costliest first, is found by bisection. The second
    value is empty where keeping the `needed` ones is enough. `loss` tells what keeping some costs.
    """
    if loss(needed)[0] <= limit:
        return _in_order(layers, needed), []
    others = [layer for layer in layers if layer not in needed]
    costs = {layer: loss([other for other in layers if other != layer]) for layer in others}
    ranked = sorted(others, key=lambda layer: costs[layer], reverse=True)
    low, high = 0, len(ranked)  # keeping `high` of them is enough: nothing is fp16 then
    while high - low > 1:
        middle = (low + high) // 2
        if loss([*needed, *ranked[:middle]])[0] <= limit:
            high = middle
        else:
            low = middle
    return _in_order(layers, [*needed, *ranked[:high]]), [(layer, costs[layer]) for layer in ranked]


def _in_order(layers: Sequence[str], chosen: Collection[str]) -> list[str]:
    return [layer for layer in layers if layer in chosen]


def named_costs(costs: Sequence[tuple[str, Loss]], most: int = 3) -> Iterator[str]:
    """The costliest layers, for a message."""
    return (f"{layer} flips {flipped:.3%}" for layer, (flipped, _) in costs[:most])
