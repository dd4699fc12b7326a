"""Placement: the provider of each node of a graph, looked up and not believed; the report of where a model runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """The device that a model runs on, and the devices that were passed over.

    `nodes` counts the graph's nodes by execution provider and `node_placement` names each; `golden_error` is the
    largest difference between this device's answer to the golden sample and the file's; `skipped` gives (device,
    reason), best device first; `switch` says what became of an engine that was built while another device served.
    """

    requested: str
    device: str
    provider: str
    nodes: Mapping[str, int]
    golden_error: float
    threads: int
    onnxruntime: str
    skipped: tuple[tuple[str, str], ...] = ()
    switch: str = ""
    node_placement: tuple[Node, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {name}" for name, count in self.nodes.items())
        lines = [f"{self.device}: {self.provider}, nodes: {places}; golden sample off by {self.golden_error:.1e}"]
        return "\n".join([*lines, *grouped(self.skipped), *([self.switch] if self.switch else [])])


def grouped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return one sentence a reason: GPU providers mostly lack the same thing."""
    devices: dict[str, list[str]] = {}
    for device, reason in skipped:
        devices.setdefault(reason, []).append(device)
    return [f"{' and '.join(names)} skipped: {reason}" for reason, names in devices.items()]
