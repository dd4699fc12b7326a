"""ONNX Runtime as a contestant: a bare session with its default options, and this library's `Predictor`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.contestants.base import BenchmarkModel, Contestant, LoadedContestant, Precisions, Shape, require
from runtime.devices.profiles import profile_of
from runtime.devices.registry import PROVIDER
from runtime.devices.session import open_inference
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

PLAIN = "ONNX Runtime"
OURS = "unet-deploy"
FOR_CPUS = "unet-deploy, for CPUs"

ARENA = 2.8
"""`Contestant.memory` of ONNX Runtime."""


@dataclass(frozen=True, kw_only=True)
class PlainContestant(Contestant):
    """`onnxruntime.InferenceSession` as anybody makes one: default options, except the number of threads.

    Its threads spin within a call, as is the default, but stop when the call ends: else they would take the cores from
    the contestant that is timed next, for 20 ms or more.
    """

    name = PLAIN
    precisions: ClassVar[Precisions] = {"cpu": ("fp32", "fp16", "int8"), "cuda": ("tf32", "fp16", "int8")}
    memory = ARENA

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: no such device, or no file of this precision."""
        return self.missing_reason(model)

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - it takes every shape
        """Make the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # where its nodes are
        chain: list[tuple[str, dict[str, str]]] = [(PROVIDER["cpu"], {})]
        if self.device.kind != "cpu":
            chain.insert(0, (PROVIDER[self.device.kind], {"device_id": str(self.device.index)}))
        path = model.file(self.precision)
        assert path is not None
        held = [open_inference(path, self.device, chain, options)]

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answer: NDArray[np.float32] = held[0].run(["probability"], {"image": images})[0]
            return answer

        return LoadedContestant(
            run=run, provider=PROVIDER[self.device.kind], facts={"file": path.name}, close=held.clear
        )


@dataclass(frozen=True, kw_only=True)
class PredictorContestant(Contestant):
    """`runtime.Predictor` with its default options, except TF32 and, on a GPU, batches that run as one."""

    name = OURS
    precisions: ClassVar[Precisions] = {
        "cpu": ("fp32", "fp16", "int8"),
        "cuda": ("fp32", "tf32", "fp16", "int8"),
        "tensorrt": ("fp32", "tf32", "fp16", "int8"),
    }
    memory = ARENA

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: no such device, or no file of this precision."""
        if self.device.kind == "tensorrt" and self.precision == "fp32":
            return "ONNX Runtime has no option that keeps TensorRT from multiplying in TF32; see the row of tf32"
        return self.missing_reason(model)

    def options(self, model: BenchmarkModel, shape: Shape) -> ProviderOptions:
        """The options of the predictor for a shape."""
        options = ProviderOptions(tf32=self.precision != "fp32")
        if self.device.kind == "cpu":
            return options
        batch, height, width = shape
        options = replace(options, max_batch=max(batch, options.max_batch))
        if self.device.kind == "cuda":
            return options
        if profile_of(model.card, options).inside(shape):
            return options
        return replace(options, min_size=(height, width), max_size=(height, width))

    def path(self, model: BenchmarkModel) -> Path | None:
        """The file that it loads."""
        return model.file(self.precision)

    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Load the file; a TensorRT engine that is not cached yet is built, which takes minutes."""
        path = self.path(model)
        assert path is not None
        predictor = Predictor(path, str(self.device), threads, self.options(model, shape))
        require(predictor.report.device, str(self.device), f"{self.name}: device")
        return LoadedContestant(
            run=predictor.run, provider=predictor.report.provider, facts={"file": path.name}, close=predictor.close
        )


@dataclass(frozen=True, kw_only=True)
class CpuFileContestant(PredictorContestant):
    """`runtime.Predictor` with the file that `unet-export --target cpu` wrote."""

    name = FOR_CPUS
    precisions: ClassVar[Precisions] = {"cpu": ("fp32",)}

    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return why it cannot run: there is no such file."""
        return None if model.for_cpus else "no file for CPUs was given; make one with unet-export --target cpu"

    def path(self, model: BenchmarkModel) -> Path | None:
        """The file for CPUs."""
        return model.for_cpus
