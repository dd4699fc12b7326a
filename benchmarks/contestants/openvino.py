"""OpenVINO as a contestant, where it is installed: by itself, and as a device of `Predictor`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.base import (
    Arithmetic,
    BenchmarkModel,
    Contestant,
    LoadedContestant,
    Precisions,
    Shape,
    not_installed_reason,
    require,
)
from runtime.devices import availability
from runtime.devices.device import Device
from runtime.devices.openvino import openvino
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.cpu_count import has_bf16
from runtime.support.signal_stack import kept_signal_stack

OURS_IN_OPENVINO = "unet-deploy, OpenVINO"
DEVICE = Device(kind="openvino", numbered=False, unit="CPU")

NO_BF16 = "this processor has no instructions for bf16 (AVX512-BF16 or AMX)"

HINTS: Mapping[Arithmetic, str] = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}
"""OpenVINO's name of the arithmetic that it is asked for, and has to confirm; int8 is in the file."""


@dataclass(frozen=True, kw_only=True)
class OpenVinoContestant(Contestant):
    """The exported file in OpenVINO, compiled for one shape; the arithmetic is the one asked for, never its default."""

    name = "OpenVINO"
    precisions: ClassVar[Precisions] = {"cpu": ("fp32", "bf16", "int8")}
    memory = 1.5

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: it is not installed, no file of this precision, or no instructions for bf16."""
        reason = not_installed_reason("openvino") or self.missing_reason(model)
        if reason is None and self.precision == "bf16" and not has_bf16():
            reason = NO_BF16
        return reason

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Read and compile the file for the shape."""
        path = model.file(self.precision)
        assert path is not None
        core = openvino().Core()
        graph = core.read_model(str(path))
        graph.reshape({"image": [*shape, model.card.architecture.in_channels]})
        asked = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        with kept_signal_stack():
            compiled = core.compile_model(graph, "CPU", asked)
        require(compiled.get_property("EXECUTION_DEVICES"), ["CPU"], "OpenVINO: devices")
        require(compiled.get_property("INFERENCE_NUM_THREADS"), threads, "OpenVINO: threads")
        found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        require(found, HINTS[self.precision], "OpenVINO: precision")
        held = [compiled.create_infer_request()]
        del compiled, graph, core  # so that `close` frees the memory

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answer: NDArray[np.float32] = held[0].infer({"image": images})["probability"]
            return answer

        return LoadedContestant(run=run, provider="OpenVINO CPU", facts={"file": path.name}, close=held.clear)


@dataclass(frozen=True, kw_only=True)
class OpenVinoPredictorContestant(Contestant):
    """`runtime.Predictor` with OpenVINO as its device."""

    name = OURS_IN_OPENVINO
    precisions: ClassVar[Precisions] = {"cpu": ("fp32", "bf16", "int8")}
    memory = 3.0  # a model for the shape, and one for all others

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: OpenVINO is not there, no file of this precision, or none that may run in bf16."""
        reason = availability.unavailable_reason(DEVICE) or self.missing_reason(model)
        if reason is None and self.precision == "bf16":
            if not model.card.allows_bf16:
                reason = "the file's card does not permit bf16; export it with unet-export --allow bf16 --data FOLDER"
            elif not has_bf16():
                reason = NO_BF16
        return reason

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Load the file, with a model of its own for the shape."""
        path = model.file(self.precision)
        assert path is not None
        options = ProviderOptions(fixed_sizes=(shape[1:],), bf16=self.precision != "fp32")
        predictor = Predictor(path, str(DEVICE), threads, options)
        require(predictor.report.device, str(DEVICE), f"{self.name}: device")
        if self.precision == "bf16":
            require("bf16" in predictor.report.arithmetic, True, f"{self.name}: layers in bf16")
        return LoadedContestant(
            run=predictor.run, provider=predictor.report.provider, facts={"file": path.name}, close=predictor.close
        )
