"""Where ONNX Runtime put each node of a graph, looked up and not believed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runtime.support.cpu_count import available_threads as available_threads

HEAVY_OPERATORS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MaxPool", "Resize", "Gemm", "MatMul", "Sigmoid", "Softmax"}
)
"""What must run on the requested device. Arithmetic on shapes belongs on the CPU, and ONNX Runtime puts it there."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the graph: its name in the file, its operator, and the execution provider that computes it."""

    name: str
    operator: str
    provider: str


def node_placement(session: Any) -> tuple[Node, ...]:
    """Where `onnxruntime.InferenceSession` put each node of the graph, as it was before it joined some."""
    return tuple(
        Node(name=node.name, operator=node.op_type, provider=part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def placement(nodes: Iterable[Node]) -> dict[str, int]:
    """Number of graph nodes by the execution provider that they were given to."""
    return dict(Counter(node.provider for node in nodes))


def misplaced_nodes(nodes: Iterable[Node], provider: str) -> Counter[str]:
    """Heavy nodes that were not given to `provider`, counted as "operator on provider"."""
    return Counter(
        f"{node.operator} on {node.provider}"
        for node in nodes
        if node.provider != provider and node.operator in HEAVY_OPERATORS
    )
