"""Placement: the provider of each node of a graph, looked up and not believed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HEAVY_OPERATORS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MaxPool", "Resize", "Gemm", "MatMul", "Sigmoid", "Softmax"}
)
"""Operators that must run on the requested device. ONNX Runtime puts arithmetic on shapes on the CPU, rightly."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the graph: its name in the file, its operator, and the execution provider that computes it."""

    name: str
    operator: str
    provider: str


def node_placement(session: Any) -> tuple[Node, ...]:
    """Look up where an `onnxruntime.InferenceSession` put each node of the graph, before it fused some of them."""
    return tuple(
        Node(name=node.name, operator=node.op_type, provider=part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def placement(nodes: Iterable[Node]) -> dict[str, int]:
    """Count the graph's nodes by the execution provider that they were given to."""
    return dict(Counter(node.provider for node in nodes))


def misplaced_nodes(nodes: Iterable[Node], provider: str) -> Counter[str]:
    """Count the heavy nodes that were not given to `provider`, as "operator on provider"."""
    return Counter(
        f"{node.operator} on {node.provider}"
        for node in nodes
        if node.provider != provider and node.operator in HEAVY_OPERATORS
    )
