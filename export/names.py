"""Names that a person can read, for the nodes and values of an exported graph.

A convolution has the name of its module, `downs.0.conv.3`, and that name is its layer's everywhere in `export`. What
follows it is `downs.0.conv.3.relu`; what gathers the inputs of a block on the way up is `ups.1.concat`; the rest is
`before.*` the network or `after.*` it. A value is called as the node that makes it, a weight as in the checkpoint.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx

CONVOLUTIONS = ("Conv", "ConvTranspose")
GATHERING = ("Concat", "Resize")
"""Operators that begin a block of the way up; the convolution after them tells which."""

BEFORE, AFTER = "before", "after"


def rename(model: onnx.ModelProto, modules: Sequence[str]) -> None:
    """Name nodes, values and weights; inputs and outputs of the graph keep their names.

    `modules` are the names of the network's convolutions, in the order in which they run.
    """
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    used: Counter[str] = Counter()
    for node, scope in zip(graph.node, list(_scopes(graph, modules)), strict=True):
        node.name = _once(scope if node.op_type in CONVOLUTIONS else f"{scope}.{node.op_type.lower()}", used)
        for place, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = _once(_constant_name(node, place), used)
        for place, value in enumerate(node.output):
            if value and value not in names:
                names[value] = node.name if place == 0 else f"{node.name}.{place}"
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _scopes(graph: onnx.GraphProto, modules: Sequence[str]) -> Iterator[str]:
    """Where each node stands: in its own module if it is a convolution, else after the last one or before the next."""
    waiting = list(modules)
    seen = BEFORE
    for node in graph.node:
        if node.op_type in CONVOLUTIONS:
            seen = waiting.pop(0)
            yield seen
        elif not waiting:
            yield AFTER
        elif node.op_type in GATHERING and seen != BEFORE:
            yield waiting[0].partition(".conv")[0]
        else:
            yield seen


def _constant_name(node: onnx.NodeProto, place: int) -> str:
    if node.op_type in CONVOLUTIONS:
        return f"{node.name}.{'weight' if place == 1 else 'bias'}"
    return f"{node.name}.constant"


def _once(name: str, used: Counter[str]) -> str:
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name]}"
