"""Device: one place to run, by the name that users give it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Device:
    """One place to run: a kind that `runtime.devices.registry` knows, and the number of the GPU, from 0.

    `numbered` is False for a kind of which a machine has only one; its name has no number then. `unit` is OpenVINO's
    name of the processor, "CPU", "GPU" or "NPU"; the CPU's is left out of the name.
    """

    kind: str
    index: int = 0
    numbered: bool = field(default=True, compare=False, repr=False)
    unit: str = ""

    def __str__(self) -> str:
        if self.unit not in ("", "CPU"):
            return f"{self.kind}:{self.unit}"
        return f"{self.kind}:{self.index}" if self.numbered else self.kind


CPU_DEVICE = Device(kind="cpu", numbered=False)
