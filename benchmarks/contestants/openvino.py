"""OpenVINO as a contestant, where it is installed: it is no dependency."""

import importlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.base import BenchmarkModel, Contestant, LoadedContestant, Shape, absent, require

OPENVINO = "OpenVINO"


@dataclass(frozen=True, kw_only=True)
class OpenVinoContestant(Contestant):
    """The exported file in OpenVINO, compiled for one shape, multiplying in float32 whatever the processor offers."""

    memory: ClassVar[float] = 1.5

    name: str = OPENVINO

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """Not installed, or no file of this precision."""
        return absent("openvino") or self._lacks(subject)

    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Read and compile the file."""
        openvino = importlib.import_module("openvino")
        path = subject.file(self.precision)
        assert path is not None
        core = openvino.Core()
        model = core.read_model(str(path))
        model.reshape({"image": [*shape, subject.card.architecture.in_channels]})
        asked = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        compiled = core.compile_model(model, "CPU", asked)
        require(compiled.get_property("EXECUTION_DEVICES"), ["CPU"], "OpenVINO: devices")
        require(compiled.get_property("INFERENCE_NUM_THREADS"), threads, "OpenVINO: threads")
        require(compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), "f32", "OpenVINO: precision")
        held = [compiled.create_infer_request()]
        del compiled, model, core  # only the request is to hold on to the memory

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answer: NDArray[np.float32] = held[0].infer({"image": images})["probability"]
            return answer

        return LoadedContestant(run=run, provider="OpenVINO CPU", facts={"file": path.name}, close=held.clear)
