"""Sessions of the steps, opened without the check of their golden sample, and comparisons of their answers."""

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.processes import StepContext
from runtime.card import ModelCard, OutputSpec
from runtime.devices.device import CPU_DEVICE, Device
from runtime.devices.registry import open_session
from runtime.devices.session import Session
from runtime.image import fit, list_images, load_image
from runtime.model_file.golden import Golden, synthetic_image
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.result import mask_of

CUDA_DEVICE = Device(kind="cuda")

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Shape = tuple[int, int, int]
"""Batch, height, width."""

MAPS = Path("/proc/self/maps")
"""Linux's list of the files that this process has loaded, see proc(5)."""

TIMING_S = 8.0
"""Seconds for one comparison of times."""

REAL_IMAGES = 8
"""Number of pictures of the data set that are compared."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An exported file: its path, card and golden sample."""

    path: Path
    card: ModelCard
    golden: Golden

    @classmethod
    def read(cls, path: Path) -> "Model":
        """Read and check a file.

        Raises:
            ModelError: it is no model.
        """
        card, golden = read_model(path)
        return cls(path=path, card=card, golden=golden)

    def open(self, device: Device | None = None, **options: Any) -> Session:
        """Open a session with `ProviderOptions`, by default on CUDA; whatever it answers, it is not refused."""
        return open_session(self.path, device or CUDA_DEVICE, self.card, ProviderOptions(**options), note=print)

    def images(self, shape: Shape) -> Images:
        """Draw a batch uint8 [batch, height, width, channels]."""
        batch, height, width = shape
        channels = self.card.architecture.in_channels
        return np.stack([synthetic_image(height, width, channels, seed) for seed in range(batch)])

    def pictures(self, context: StepContext) -> list[Images]:
        """Return pictures of the data set, fitted to the network: uint8 [1, height, width, channels] each."""
        folder = context.out / "data" / "val_images"
        if not folder.is_dir() or self.card.input.channels == "raw":
            return []
        paths, spec = list_images(folder)[:REAL_IMAGES], self.card.input
        return [fit(load_image(path, spec.channels, levels=spec.levels), spec).image[None] for path in paths]


def answer_of(session: Session, batch: Images) -> Probabilities:
    """Run a batch uint8 [batch, height, width, channels]."""
    return session.run(batch).probability


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference of answers: the largest |p - reference's p|, and the share of pixels whose class differs."""

    error: float
    flipped: float

    @classmethod
    def between(cls, answers: Probabilities, references: Probabilities, output: OutputSpec) -> "Gap":
        """Compare probabilities float32 [batch, classes, height, width]; NaN and other shapes are infinite."""
        if answers.shape != references.shape or not np.isfinite(answers).all():
            return cls(error=float("inf"), flipped=1.0)
        flipped = [
            (mask_of(ours, output) != mask_of(theirs, output)).reshape(-1, *ours.shape[-2:]).any(axis=0).mean()
            for ours, theirs in zip(answers, references, strict=True)
        ]
        return cls(error=float(np.abs(answers - references).max()), flipped=float(np.mean(flipped)))

    @classmethod
    def worst(cls, gaps: Sequence["Gap"]) -> "Gap":
        """Return the largest error, and the mean share of flipped pixels."""
        return cls(error=max(gap.error for gap in gaps), flipped=float(np.mean([gap.flipped for gap in gaps])))


@dataclass(frozen=True, kw_only=True)
class CpuReference:
    """Compares answers with those of the same file on the CPU, which it computes once for each batch."""

    model: Model
    is_stand_in: bool

    def check(self, subject: str, answer: Callable[[Images], Probabilities], limit: float, *batches: Images) -> Finding:
        """Return whether the answers to some batches are within a limit; an error is a failure."""
        try:
            found = [answer(images) for images in batches]
        except Exception as error:  # ONNX Runtime's errors share no base class
            return Finding.failure(subject, error)
        if self.is_stand_in:
            return Finding(subject=subject, state="ran")
        output = self.model.card.output
        pairs = zip(found, map(self.expected, batches), strict=True)
        return within(subject, Gap.worst([Gap.between(*pair, output) for pair in pairs]).error, limit)

    def expected(self, images: Images) -> Probabilities:
        """Return the CPU's answer to a batch."""
        return answer_of(cpu_session(self.model.path), images)


@cache
def cpu_session(path: Path) -> Session:
    """Open a file on the CPU, once."""
    return Model.read(path).open(CPU_DEVICE)


def within(subject: str, error: float, limit: float, figures: Mapping[str, Scalar] | None = None) -> Finding:
    """Make the finding of an answer's largest error, which has to be within a limit."""
    text = "" if error <= limit else f"off by {error:.2g}, expected at most {limit:.2g}"
    return Finding.verdict(subject, error <= limit, text, {"max_abs_error": error, "limit": limit, **(figures or {})})


def tried(subject: str, steps: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield findings; an error ends them and is the last one."""
    try:
        yield from steps()
    except Exception as error:  # ONNX Runtime's errors share no base class
        yield Finding.failure(subject, error)


class CardMemory:
    """Memory of the GPU, taken and given back by the CUDA runtime that ONNX Runtime has loaded."""

    def __init__(self) -> None:
        """Find the library among those that this process has loaded.

        Raises:
            OSError: there is none.
        """
        name = re.search(r"libcudart\.so\.\d+", MAPS.read_text() if MAPS.exists() else "")
        if name is None:
            raise OSError("no CUDA runtime (libcudart) is loaded in this process")
        self._runtime = ctypes.CDLL(name[0])  # by its name alone: the one that is loaded
        self._held = list[ctypes.c_void_p]()

    def free(self) -> int:
        """Return the free bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    def hold(self, size: int) -> None:
        """Take so many bytes."""
        address = ctypes.c_void_p()
        self._check(self._runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)))
        self._held.append(address)

    def release(self) -> None:
        """Give back all that was taken."""
        while self._held:
            self._check(self._runtime.cudaFree(self._held.pop()))

    def _check(self, status: int) -> None:
        if status:
            raise OSError(f"the CUDA runtime answers error {status}")
