"""OpenVINO as a contestant, where it is installed; it is not a dependency."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.base import (
    BenchmarkModel,
    Contestant,
    LoadedContestant,
    Precisions,
    Shape,
    not_installed_reason,
    require,
)
from runtime.devices.openvino import openvino


@dataclass(frozen=True, kw_only=True)
class OpenVinoContestant(Contestant):
    """The exported file in OpenVINO, compiled for one shape, multiplying in float32 whatever the processor offers."""

    name = "OpenVINO"
    precisions: ClassVar[Precisions] = {"cpu": ("fp32", "int8")}
    memory = 1.5

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: it is not installed, or there is no file of this precision."""
        return not_installed_reason("openvino") or self.missing_reason(model)

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Read and compile the file for the shape."""
        path = model.file(self.precision)
        assert path is not None
        core = openvino().Core()
        graph = core.read_model(str(path))
        graph.reshape({"image": [*shape, model.card.architecture.in_channels]})
        asked = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        compiled = core.compile_model(graph, "CPU", asked)
        require(compiled.get_property("EXECUTION_DEVICES"), ["CPU"], "OpenVINO: devices")
        require(compiled.get_property("INFERENCE_NUM_THREADS"), threads, "OpenVINO: threads")
        require(compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), "f32", "OpenVINO: precision")
        held = [compiled.create_infer_request()]
        del compiled, graph, core  # so that `close` frees the memory

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answer: NDArray[np.float32] = held[0].infer({"image": images})["probability"]
            return answer

        return LoadedContestant(run=run, provider="OpenVINO CPU", facts={"file": path.name}, close=held.clear)
