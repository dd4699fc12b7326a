"""The report of where a model runs, and of the devices that were passed over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.devices.placement import Node


@dataclass(frozen=True, kw_only=True)
class Report:
    """The device that a model runs on, and the devices that were passed over.

    `nodes` counts the graph's nodes by execution provider and `node_placement` names each; `golden_error` is the
    largest difference between this device's answer to the golden sample and the file's, and `golden_limit` the one
    that passes; `integrity` says if the file was compared with its digest; `engine` is the program that computes the
    answers, with its version; `arithmetic` is that of the network's layers as this program tells it, such as "bf16" or
    "u8 and f32", "" from ONNX Runtime, which does not tell; `skipped` gives (device, reason), best device first;
    `switch` says what became of a TensorRT engine that was built while another device served.
    """

    requested: str
    device: str
    provider: str
    nodes: Mapping[str, int]
    golden_error: float
    golden_limit: float
    integrity: str
    threads: int
    onnxruntime: str
    engine: str = ""
    arithmetic: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    switch: str = ""
    node_placement: tuple[Node, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {name}" for name, count in self.nodes.items())
        checks = f"golden sample off by {self.golden_error:.1e}, digest {self.integrity}"
        layers = f", layers in {self.arithmetic}" if self.arithmetic else ""
        lines = [f"{self.device}: {self.provider}{layers}, nodes: {places}; {checks}"]
        return "\n".join([*lines, *grouped(self.skipped), *([self.switch] if self.switch else [])])


def grouped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return one sentence a reason: GPU providers mostly lack the same thing."""
    devices: dict[str, list[str]] = {}
    for device, reason in skipped:
        devices.setdefault(reason, []).append(device)
    return [f"{' and '.join(names)} skipped: {reason}" for reason, names in devices.items()]
