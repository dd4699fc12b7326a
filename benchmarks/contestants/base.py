"""A peer: one way to run the subject of a benchmark, from images in host memory to probabilities in host memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Settings
from export.proof import MAX_ERROR, network_run
from runtime.card import ModelCard, Precision
from runtime.devices import availability
from runtime.devices.device import CPU_DEVICE, Device
from runtime.errors import DeviceError, ModelError, ProofError
from runtime.model_file.golden import NetworkFunction
from runtime.model_file.reader import read_model
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
"""What a peer multiplies in. "fp32" and "tf32" are computed from the same file; so are fp16 and bf16 in PyTorch."""

FILE_OF: Mapping[Arithmetic, Precision] = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16", "int8": "int8"}
"""The precision of the .onnx file that is run."""

MAX_DIFFERENCE: Mapping[Arithmetic, float] = {"fp32": MAX_ERROR, "tf32": 2e-2}
"""Largest |p - reference's p| that a peer may show; elsewhere single pixels near an edge may tip, see below."""

MEAN_DIFFERENCE: Mapping[Arithmetic, float] = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Mean |p - reference's p|: another network, or another order of channels, is beyond it. What a file below fp32 has
lost was judged on real images by its gate."""

CPU = CPU_DEVICE

Shape = tuple[int, int, int]
"""Images, height and width of a batch."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkModel:
    """What is measured: the fp32 file, its card, the checkpoint if there is one, and other files of the same network.

    These are `files` of other precisions, and `for_cpus`, written by `unet-export --target cpu`.
    """

    model: Path
    card: ModelCard
    checkpoint: Path | None = None
    files: Mapping[Precision, Path] = field(default_factory=dict)
    for_cpus: Path | None = None

    @classmethod
    def read(cls, model: Path, checkpoint: Path | None = None, others: Sequence[Path] = ()) -> "BenchmarkModel":
        """Read what was given; `others` are fp16 and int8 files of the same network, and one for CPUs.

        Raises:
            ModelError: a file cannot be read, has another precision than is wanted there, or is another network's.
            CheckpointError: the checkpoint cannot be loaded.
            ProofError: the checkpoint does not answer the model's golden sample as the model does.
        """
        card, golden = read_model(model)
        if card.precision != "fp32":
            raise ModelError(f"{model}: found {card.precision}, expected the fp32 file; give this one beside it")
        if card.target != "any":
            raise ModelError(
                f"{model}: is written for CPUs, expected the file without --target cpu; give this one beside it"
            )
        files: dict[Precision, Path] = {}
        for_cpus: Path | None = None
        for path in others:
            other, _ = read_model(path)
            if other.weights_sha256 != card.weights_sha256:
                raise ModelError(f"{path}: is of other weights than {model}; export both from one checkpoint")
            if other.target == "cpu":
                if for_cpus is not None:
                    raise ModelError(f"{path}: is a second file for CPUs, expected one")
                for_cpus = path
                continue
            if other.precision == "fp32" or other.precision in files:
                raise ModelError(
                    f"{path}: is a second {other.precision} file, expected one each of fp16, int8 and --target cpu "
                    f"beside {model}"
                )
            files[other.precision] = path
        subject = cls(model=model, card=card, checkpoint=checkpoint, files=files, for_cpus=for_cpus)
        if checkpoint is not None:
            error = golden.error(network_run(subject.segmenter()))
            if not error <= MAX_ERROR:
                raise ProofError(f"{model} and {checkpoint}: answers differ by {error:.2g}; are they the same model?")
        return subject

    def file(self, precision: Arithmetic) -> Path | None:
        """The .onnx file that a peer of this precision runs."""
        kind = FILE_OF.get(precision)
        return self.model if kind == "fp32" else self.files.get(kind) if kind is not None else None

    def segmenter(self) -> Segmenter:
        """The checkpoint's network, on the CPU, with the pre- and post-processing of the exported file."""
        assert self.checkpoint is not None
        return Segmenter(load_checkpoint(self.checkpoint).network(), self.card).eval()


@dataclass(frozen=True, kw_only=True)
class LoadedContestant:
    """A peer at work: call it with uint8 [batch, h, w, channels] for probability float32 [batch, classes, h, w].

    The call returns when the answer is in host memory. `provider` is what was found to compute it; `facts` are what
    else belongs to a measurement, the seconds of a compilation for instance. `close` gives its memory back.
    """

    run: NetworkFunction
    provider: str
    facts: Settings = field(default_factory=dict)
    close: Callable[[], None] = lambda: None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.run(images)


@dataclass(frozen=True, kw_only=True)
class Contestant(ABC):
    """One way to run a subject: who does it, in which arithmetic, where.

    `memory`: how many times the values that must be held at once (`Work.peak_mb`) it takes, as seen on CPUs with
    networks of 2.7 and 31 million weights, rounded up. `keeps_memory`: and keeps until it is closed. `whole_batch`: its
    images are in memory together, and not one after another.
    """

    memory: ClassVar[float]
    keeps_memory: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True

    name: str
    precision: Arithmetic = "fp32"
    device: Device = CPU

    @abstractmethod
    def unavailable_reason(self, subject: BenchmarkModel) -> str | None:
        """What keeps it from running this subject here, in one line; None if nothing is known to."""

    @abstractmethod
    def open(self, subject: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Make it ready for batches of one shape.

        Raises:
            DeviceError: it would run elsewhere than `device` says, or gives up.
            Exception: what its library raises.
        """

    def _lacks(self, subject: BenchmarkModel) -> str | None:
        """The reason where its device or its .onnx file is not there."""
        reason = availability.unavailable_reason(self.device)
        if reason is None and subject.file(self.precision) is None:
            reason = f"no {self.precision} file was given; make one with unet-export --precision {self.precision}"
        return reason


def absent(*modules: str) -> str | None:
    """The reason where packages that are no dependency are not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if not missing:
        return None
    return f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}"


def require(found: object, expected: object, what: str) -> None:
    """Raise a DeviceError where a peer does not run as it was asked to."""
    if found != expected:
        raise DeviceError(f"{what}: found {found}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest and mean |p - reference's p|; NaN is infinite."""

    largest: float
    mean: float

    def refusal(self, precision: Arithmetic) -> str | None:
        """Why an answer that differs by this is none of the subject's; None if it may be."""
        most = MAX_DIFFERENCE.get(precision)
        if most is not None:
            found, limit, what = self.largest, most, "answers differ"
        else:
            found, limit, what = self.mean, MEAN_DIFFERENCE[precision], "answers differ in the mean"
        return None if found <= limit else f"{what} by {found:.2g}, expected at most {limit:g} in {precision}"


def difference(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> Difference:
    """Compare two answers [batch, classes, height, width]; another shape is infinitely far off."""
    if answer.shape != reference.shape:
        return Difference(largest=float("inf"), mean=float("inf"))
    found = np.abs(answer - reference)
    largest, mean = float(found.max()), float(found.mean(dtype=np.float64))
    if not np.isfinite(largest):
        return Difference(largest=float("inf"), mean=float("inf"))
    return Difference(largest=largest, mean=mean)
