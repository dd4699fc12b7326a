"""Placement: the provider of each node of a graph, looked up and not believed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

CPU = "CPUExecutionProvider"

HEAVY_OPERATORS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MaxPool", "Resize", "Gemm", "MatMul", "Sigmoid", "Softmax"}
)
"""Operators that must run on the requested device."""

SIZE_OPERATORS = frozenset(
    {
        *("Shape", "Size", "Constant", "ConstantOfShape", "Identity", "Cast", "Range", "EyeLike", "If", "Loop", "Scan"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Neg", "Abs", "Sign", "Sqrt", "Ceil", "Floor", "Round", "Clip"),
        *("Max", "Min", "Sum", "CumSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "ArgMax", "ArgMin"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "Where", "NonZero"),
        *("Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand", "Tile"),
        *("Pad", "TopK", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "OneHot", "Trilu"),
    }
)
"""Operators that may run on the CPU beside a GPU: ONNX Runtime puts arithmetic on sizes there, rightly.

All have kernels for pictures on a GPU in every opset of the exporter, so want of a kernel puts none of them on the CPU.
"""


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
    """Count the nodes that matter and were not given to `provider`, as "operator on provider".

    Those are heavy ones, and on the CPU all that are no arithmetic on sizes.
    """
    return Counter(
        f"{node.operator} on {node.provider}"
        for node in nodes
        if node.provider != provider
        and (node.operator in HEAVY_OPERATORS or (node.provider == CPU and node.operator not in SIZE_OPERATORS))
    )
