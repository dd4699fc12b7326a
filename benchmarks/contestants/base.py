"""A contestant: one way to run a model, from images in host memory to probabilities in host memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Settings
from runtime.card import ModelCard, Precision
from runtime.devices import availability
from runtime.devices.cpu import CPU
from runtime.devices.device import CPU_DEVICE, Device
from runtime.errors import ConfigError, DeviceError, ModelError, ProofError, one_line
from runtime.model_file.digest import check_digest
from runtime.model_file.golden import NetworkFunction
from runtime.model_file.reader import read_model
from runtime.support.sizes import batch_text
from unet_core.model_options import NetworkOptions

if TYPE_CHECKING:
    from unet_core.model import Segmenter

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
"""The arithmetic of a contestant's products. "fp32", "tf32" and "bf16" run the same file."""

Precisions = Mapping[str, tuple[Arithmetic, ...]]
"""Arithmetics of a contestant by kind of device."""

FILE_OF: Mapping[Arithmetic, Precision] = {
    "fp32": "fp32",
    "tf32": "fp32",
    "bf16": "fp32",
    "fp16": "fp16",
    "int8": "int8",
}
"""Precision of the .onnx file that a contestant of this arithmetic runs."""

Shape = tuple[int, int, int]
"""A batch as (images, height, width)."""

MAX_ERROR = CPU.tolerance
"""Largest error |p - PyTorch's p| of an fp32 file whose proof allows no more."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkModel:
    """The measured model: its fp32 file and card, and what else there is of the same network.

    Attributes:
        path: the fp32 .onnx file.
        card: the card in it.
        checkpoint: what it was exported from, or None.
        network: how the checkpoint's network is made, and which of its weights are taken.
        files: .onnx files of other precisions.
        for_cpus: the file that `unet-export --target cpu` wrote, or None.
    """

    path: Path
    card: ModelCard
    checkpoint: Path | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)
    files: Mapping[Precision, Path] = field(default_factory=dict)
    for_cpus: Path | None = None

    @classmethod
    def read(
        cls,
        path: Path,
        checkpoint: Path | None = None,
        others: Sequence[Path] = (),
        network: NetworkOptions | None = None,
    ) -> "BenchmarkModel":
        """Read the fp32 file; `others` are fp16 and int8 files of the same network, and one for CPUs.

        Raises:
            ModelError: a file cannot be read, does not fit its digest, has the wrong precision, takes one shape only,
                or holds another network.
            CheckpointError: the checkpoint cannot be loaded.
            ConfigError: the network cannot be made, or is needed and not given.
            ProofError: the checkpoint does not answer the golden sample as the model does.
        """
        card, golden = read_model(path)
        if card.precision != "fp32":
            raise ModelError(f"{path}: found {card.precision}, expected the fp32 file; give this one by --also")
        if card.target != "any":
            raise ModelError(
                f"{path}: was exported with --target cpu, expected the file without it; give this one by --also"
            )
        for one in (path, *others):
            check_digest(one)
            if (fixed := read_model(one)[0].input.fixed_shape) is not None:
                raise ModelError(
                    f"{one}: takes batches of {batch_text(fixed)} only, and other sizes and batches are "
                    "measured too; give the file that was exported without --fixed-size"
                )
        if checkpoint is not None and (missing := torch_missing()) is not None:
            raise ConfigError(f"--checkpoint {checkpoint}: {missing}; or leave --checkpoint out")
        files: dict[Precision, Path] = {}
        for_cpus: Path | None = None
        for other in others:
            other_card, _ = read_model(other)
            if other_card.weights_sha256 != card.weights_sha256:
                raise ModelError(f"{other}: has other weights than {path}; export both from one checkpoint")
            if other_card.target == "cpu":
                if for_cpus is not None:
                    raise ModelError(f"{other}: is a second file for CPUs, expected one")
                for_cpus = other
                continue
            if other_card.precision == "fp32" or other_card.precision in files:
                raise ModelError(
                    f"{other}: is a second {other_card.precision} file, expected one each of fp16, int8 and "
                    f"--target cpu beside {path}"
                )
            files[other_card.precision] = other
        model = cls(
            path=path,
            card=card,
            checkpoint=checkpoint,
            network=network or NetworkOptions(),
            files=files,
            for_cpus=for_cpus,
        )
        if checkpoint is not None:
            error = golden.error(model.network_run())
            if not error <= model.tolerance:
                raise ProofError(f"{path} and {checkpoint}: answers differ by {error:.2g}; are they the same model?")
        return model

    @property
    def tolerance(self) -> float:
        """The largest error |p - PyTorch's p| that the fp32 file's own proof allows."""
        proof = self.card.proof
        return MAX_ERROR if proof is None or proof.tolerance is None else max(MAX_ERROR, proof.tolerance)

    def file(self, precision: Arithmetic) -> Path | None:
        """The .onnx file that a contestant of this arithmetic runs; None if it was not given."""
        kind = FILE_OF.get(precision)
        return self.path if kind == "fp32" else self.files.get(kind) if kind is not None else None

    def segmenter(self) -> "Segmenter":
        """The checkpoint's network, on the CPU, with the pre- and post-processing of the exported file."""
        from unet_core.model import Segmenter
        from unet_core.networks.checkpoint import open_checkpoint_of

        assert self.checkpoint is not None
        loaded = open_checkpoint_of(self.card, self.path, self.checkpoint, self.network)
        return Segmenter(loaded.network(), self.card).eval()

    def network_run(self) -> NetworkFunction:
        """The checkpoint's network as a function of arrays."""
        from export.proof import network_run

        return network_run(self.segmenter())


@dataclass(frozen=True, kw_only=True)
class LoadedContestant:
    """A contestant that is ready: called with uint8 [batch, h, w, channels], it returns float32 [batch, classes, h, w].

    The call returns when the answer is in host memory.

    Attributes:
        run: the function that is called.
        provider: the library and device that were found to compute the answer.
        facts: other facts for a measurement, for example the seconds of a compilation.
        close: gives its memory back.
    """

    run: NetworkFunction
    provider: str
    facts: Settings = field(default_factory=dict)
    close: Callable[[], None] = lambda: None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.run(images)


@dataclass(frozen=True, kw_only=True)
class Contestant(ABC):
    """One way to run a model: by which library, in which arithmetic, on which device.

    To add one, write a subclass and add it to `CONTESTANTS` in registry.py.

    Attributes:
        name: its name in reports and in results.json.
        precisions: the arithmetics in which it is measured, by kind of device.
        memory: its memory as a multiple of the values that must be held at once (`Work.peak_mb`), as seen on CPUs with
            networks of 2.7 and 31 million weights, rounded up.
        keeps_memory: True if it keeps that memory between calls.
        whole_batch: True if all images of a batch are in memory together.
        precision: the arithmetic of this one.
        device: the device of this one.
    """

    name: ClassVar[str]
    precisions: ClassVar[Precisions]
    memory: ClassVar[float]
    keeps_memory: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True

    precision: Arithmetic = "fp32"
    device: Device = CPU_DEVICE

    @abstractmethod
    def unavailable_reason(self, model: BenchmarkModel) -> str | None:
        """Return in one line why it cannot run the model here; None if it may be able to."""

    @abstractmethod
    def load(self, model: BenchmarkModel, threads: int, shape: Shape) -> LoadedContestant:
        """Load the model for batches of one shape.

        Raises:
            DeviceError: it would not run on `device`, or fails there.
            Exception: what its library raises.
        """

    def missing_reason(self, model: BenchmarkModel) -> str | None:
        """Return why its device or its .onnx file is missing; None if both are there."""
        reason = availability.unavailable_reason(self.device)
        if reason is None and model.file(self.precision) is None:
            reason = f"no {self.precision} file was given; make one with unet-export --precision {self.precision}"
        return reason


def torch_missing() -> str | None:
    """Return in one line why PyTorch cannot be used; None if it can."""
    if find_spec("torch") is None:
        return "needs PyTorch, which is not installed; install unet-deploy with its extra [export]"
    try:
        import_module("torch")
    except Exception as error:  # ImportError, OSError or whatever a damaged installation raises
        return f"needs PyTorch, which cannot be imported ({one_line(str(error))}); install it again"
    return None


def not_installed_reason(*modules: str) -> str | None:
    """Return which of these packages are not installed; None if all are."""
    missing = [name for name in modules if find_spec(name) is None]
    if not missing:
        return None
    return f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}"


def require(found: object, expected: object, what: str) -> None:
    """Raise a DeviceError if a contestant does not run as it was asked to."""
    if found != expected:
        raise DeviceError(f"{what}: found {found}, expected {expected}")
