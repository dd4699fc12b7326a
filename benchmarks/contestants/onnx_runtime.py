"""ONNX Runtime as a peer: a bare session with its default options, and this library's `Predictor`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.contestants.base import Arithmetic, BenchmarkModel, Contestant, LoadedContestant, Shape, require
from runtime.devices.device import Device
from runtime.devices.profiles import profile_of
from runtime.devices.registry import PROVIDER
from runtime.devices.session import open_inference
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

PLAIN = "ONNX Runtime"
OURS = "unet-deploy"
SPINNING = "unet-deploy, spinning"
FOR_CPUS = "unet-deploy, for CPUs"

ARENA = 2.8
"""ONNX Runtime's `memory`."""


@dataclass(frozen=True, kw_only=True)
class PlainContestant(Contestant):
    """`onnxruntime.InferenceSession` as anybody makes one: default options, but for the number of threads."""

    memory: ClassVar[float] = ARENA

    name: str = PLAIN

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """No such device, or no file of this precision."""
        return self._lacks(subject)

    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:  # noqa: ARG002 - it takes every shape
        """Make the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # where its nodes are
        chain: list[tuple[str, dict[str, str]]] = [(PROVIDER["cpu"], {})]
        if self.device.kind != "cpu":
            chain.insert(0, (PROVIDER[self.device.kind], {"device_id": str(self.device.index)}))
        path = subject.file(self.precision)
        assert path is not None
        held = [open_inference(path, self.device, chain, options)]

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answer: NDArray[np.float32] = held[0].run(["probability"], {"image": images})[0]
            return answer

        return LoadedContestant(
            run=run, provider=PROVIDER[self.device.kind], facts={"file": path.name}, close=held.clear
        )


@dataclass(frozen=True, kw_only=True)
class OurContestant(Contestant):
    """`runtime.Predictor` with its default options, but for TF32 and, on a GPU, what lets a batch run as one.

    With threads that spin while they wait, if asked for, as a bare session's do: what the default costs small networks.
    """

    memory: ClassVar[float] = ARENA

    name: str = OURS
    spinning: bool = False

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """No such device, or no file of this precision."""
        if self.device.kind == "tensorrt" and self.precision == "fp32":
            return "ONNX Runtime has no option that keeps TensorRT from multiplying in TF32; see the row of tf32"
        return self._lacks(subject)

    def options(self, subject: BenchmarkModel, shape: Shape) -> ProviderOptions:
        """What the predictor is opened with for a shape."""
        options = ProviderOptions(tf32=self.precision != "fp32", spinning=self.spinning)
        if self.device.kind == "cpu":
            return options
        batch, height, width = shape
        options = replace(options, max_batch=max(batch, options.max_batch))
        if self.device.kind == "cuda":
            return options
        if profile_of(subject.card, options).inside(shape):
            return options
        return replace(options, min_size=(height, width), max_size=(height, width))

    def path(self, subject: BenchmarkModel) -> Path | None:
        """The file that it opens."""
        return subject.file(self.precision)

    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Open the file; a TensorRT engine that is not there yet is built, which takes minutes."""
        path = self.path(subject)
        assert path is not None
        predictor = Predictor(path, str(self.device), threads, self.options(subject, shape))
        require(predictor.report.device, str(self.device), f"{self.name}: device")
        return LoadedContestant(
            run=predictor.run, provider=predictor.report.provider, facts={"file": path.name}, close=predictor.close
        )


@dataclass(frozen=True, kw_only=True)
class CpuFilePeer(OurContestant):
    """`runtime.Predictor` with the file that `unet-export --target cpu` wrote."""

    name: str = FOR_CPUS

    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """No such file."""
        return (
            None
            if subject.for_cpus is not None
            else "no file for CPUs was given; make one with unet-export --target cpu"
        )

    def path(self, subject: BenchmarkModel) -> Path | None:
        """The file for CPUs."""
        return subject.for_cpus


def onnx_contestants(device: Device) -> tuple[Contestant, ...]:
    """All of ONNX Runtime's on a device."""
    if device.kind == "cpu":
        kinds: tuple[Arithmetic, ...] = ("fp32", "fp16", "int8")
        ours = (*_of(OurContestant, kinds, device), OurContestant(name=SPINNING, spinning=True), CpuFilePeer())
        return (*_of(PlainContestant, kinds, device), *ours)
    kinds = ("fp32", "tf32", "fp16", "int8")
    if device.kind == "tensorrt":
        return _of(OurContestant, kinds, device)
    return (*_of(PlainContestant, kinds[1:], device), *_of(OurContestant, kinds, device))


def _of(
    kind: type[PlainContestant] | type[OurContestant], kinds: tuple[Arithmetic, ...], device: Device
) -> tuple[Contestant, ...]:
    return tuple(kind(precision=precision, device=device) for precision in kinds)
