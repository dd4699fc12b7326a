"""Predictor: load a model once, ask it many times, from any thread."""

import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime import providers
from runtime.card import CARD_KEY, RAW_KEY, ModelCard
from runtime.console import one_line
from runtime.errors import ConfigError, DeviceError, DeviceWarning, ImageError, ModelError, UnetError
from runtime.golden import GOLDEN_KEY, Golden, golden_tolerance
from runtime.image import ImageSource, fit, load_image, restore
from runtime.metadata import read_metadata
from runtime.result import Segmentation
from runtime.safety import check_model
from runtime.tiling import Size, Tta, Way, augmented, tiled, way_of

CACHED_PREDICTORS = 4
MAX_THREADS = 1_024


class Predictor:
    """A model on a device.

    Args:
        model: an ONNX file that `unet-export` wrote.
        device: "auto" takes the best of TensorRT, CUDA and the CPU that works here; "cpu", "cuda", "cuda:N",
            "tensorrt" and "tensorrt:N" run there or raise.
        threads: CPU threads of one prediction, 1 to `MAX_THREADS`; as many as this process may use, if None.

    Attributes:
        card: `ModelCard`, what the model expects and answers.
        report: `runtime.providers.Report`, where it runs, what was skipped and why.

    Raises:
        ModelError: the file is absent, damaged, foreign, or answers its golden sample wrongly on the CPU.
        DeviceError: an explicit device does not run here; the message says why.
        ConfigError: `threads` is out of its bounds.
    """

    def __init__(self, model: str | os.PathLike[str], device: str = "auto", threads: int | None = None) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise ConfigError(f"threads: found {threads!r}, expected an integer from 1 to {MAX_THREADS}, or None")
        self.path = Path(model)
        metadata = read_metadata(self.path)
        self.card = _card_of(self.path, metadata)
        self._golden = _golden_of(self.path, metadata, self.card)
        check_model(self.path)
        self._threads = threads or providers.available_threads()
        self._session, self.report = self._open(device)

    def __repr__(self) -> str:
        return f"Predictor({os.fspath(self.path)!r}, device={self.report.device!r})"

    @overload
    def predict(
        self,
        image: list[ImageSource],
        *,
        size: Size | None = None,
        tile: tuple[int, int] | None = None,
        overlap: float = 0.25,
        tta: Tta | None = None,
    ) -> list[Segmentation]: ...
    @overload
    def predict(
        self,
        image: ImageSource,
        *,
        size: Size | None = None,
        tile: tuple[int, int] | None = None,
        overlap: float = 0.25,
        tta: Tta | None = None,
    ) -> Segmentation: ...
    def predict(
        self,
        image: ImageSource | list[ImageSource],
        *,
        size: Size | None = None,
        tile: tuple[int, int] | None = None,
        overlap: float = 0.25,
        tta: Tta | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or each of a list.

        Args:
            image: path, bytes, file object, PIL image or array, see `load_image`.
            size: that the network sees: (height, width), or "native" for the image's own; by default as trained, or
                with `tile` the image's own.
            tile: (height, width) of the tiles that a large image is cut into; memory is then bounded.
            overlap: what neighbouring tiles share at least, 0 to 0.9 of a tile's side.
            tta: "flip" also asks about the mirror image, "d4" about all turns and mirror images, and takes the mean.

        Raises:
            ImageError: an image cannot be read.
            ConfigError: `size`, `tile`, `overlap` or `tta` is none of these.
            DeviceError: the device gives up, most likely for want of memory.
        """
        way = way_of(self.card, size, tile, overlap, tta)
        if isinstance(image, list | tuple):
            return [self._predict_one(item, way) for item in image]
        return self._predict_one(image, way)

    __call__ = predict

    def _predict_one(self, source: ImageSource, way: Way) -> Segmentation:
        image = load_image(source, self.card.input.channels)
        fitted = fit(image, way.spec)
        run = augmented(self.run, way.tta)
        if way.tile is None:
            probability = run(fitted.image[None])[0]
        else:
            probability = tiled(run, fitted.image, len(self.card.output.classes), way.tile, overlap=way.overlap)
        return Segmentation(probability=restore(probability, fitted), image=image, output=self.card.output)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The bare graph: uint8 [batch, height, width, channels] -> probability float32 [batch, classes, h, w].

        Raises:
            ImageError: the array is of another type or shape.
            DeviceError: the device gives up on it, most likely for want of memory.
        """
        if (
            batch.dtype != np.uint8
            or batch.ndim != 4
            or batch.shape[3] != self.card.architecture.in_channels
            or not batch.size
        ):
            raise ImageError(
                f"batch: found {batch.dtype} {list(batch.shape)}, expected uint8 "
                f"[batch, height, width, {self.card.architecture.in_channels}]"
            )
        try:
            answer: NDArray[np.float32] = self._session.run(["probability"], {"image": batch})[0]
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise DeviceError(
                f"device {self.report.device}: cannot run a batch of {list(batch.shape)} ({_brief(error)}); "
                "try a smaller one"
            ) from error
        return answer

    def _open(self, device: str) -> tuple[Any, providers.Report]:
        skipped: list[tuple[str, str]] = []
        for candidate in providers.candidates(device):
            try:
                session, error = self._try(candidate)
                break
            except DeviceError as refusal:
                if device != "auto":
                    raise
                skipped.append((candidate.kind, str(refusal).removeprefix(f"device {candidate}: ")))
        report = providers.Report(
            requested=device,
            device=str(candidate),
            provider=providers.PROVIDER[candidate.kind],
            nodes=providers.placement(session),
            golden_error=error,
            threads=self._threads,
            onnxruntime=onnxruntime.__version__,
            skipped=tuple(skipped),
        )
        if skipped:
            _warn_once(report.device, report.skipped)
        return session, report

    def _try(self, device: providers.Device) -> tuple[Any, float]:
        """Open a session on the device and replay the golden sample there."""
        reason = providers.why_not(device)
        if reason:
            raise DeviceError(f"device {device}: {reason}")
        wrong = ModelError if device.kind == "cpu" else DeviceError
        try:
            session = providers.open_session(self.path, device, self.card, self._threads)
            self._check_signature(session)
            error = self._golden.error(lambda image: session.run(["probability"], {"image": image})[0])
        except UnetError:
            raise
        except Exception as failure:  # ONNX Runtime's errors share no base class
            where = self.path if device.kind == "cpu" else f"device {device}"
            raise wrong(f"{where}: ONNX Runtime cannot run the model ({_brief(failure)})") from failure
        tolerance = golden_tolerance(self.card, device.kind)
        if error > tolerance:
            raise wrong(
                f"{self.path if device.kind == 'cpu' else f'device {device}'}: answers the golden sample wrongly "
                f"(off by {error:.2g}, expected at most {tolerance:g}); "
                "export the model again, update the driver or choose another device"
            )
        return session, error

    def _check_signature(self, session: Any) -> None:
        found = [(item.name, item.type, len(item.shape)) for item in (*session.get_inputs(), *session.get_outputs())]
        expected = [("image", "tensor(uint8)", 4), ("probability", "tensor(float)", 4)]
        if found != expected:
            raise ModelError(f"{self.path}: found the inputs and outputs {found}, expected {expected}; export it again")


def predict(image: ImageSource, model: str | os.PathLike[str], device: str = "auto") -> Segmentation:
    """Segment one image with the model in a file; see `Predictor`, which this keeps open for the next call.

    The last few models stay loaded; a file that was replaced is loaded anew.
    """
    path = Path(model)
    try:
        stamp = path.stat()
        identity = (stamp.st_ino, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, ValueError):  # `Predictor` says what is wrong with it
        identity = (0, 0, 0)
    return _cached(path.absolute(), device, identity).predict(image)


@lru_cache(maxsize=CACHED_PREDICTORS)
def _cached(path: Path, device: str, _identity: tuple[int, int, int]) -> Predictor:
    return Predictor(path, device)


@lru_cache(maxsize=32)
def _warn_once(device: str, skipped: tuple[tuple[str, str], ...]) -> None:
    text = f"running on {device}; {'; '.join(providers.grouped(skipped))}"
    warnings.warn(text, DeviceWarning, stacklevel=_level_of_user() - 1)


def _level_of_user() -> int:
    """How many frames up, counted from here, the first one outside this package is: the line that a warning blames."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    return level


def _card_of(path: Path, metadata: dict[str, str]) -> ModelCard:
    if RAW_KEY in metadata:
        raise ModelError(f"{path}: is a raw export (normalised planes in, logits out); export it again without --raw")
    if CARD_KEY not in metadata:
        raise ModelError(
            f"{path}: is an ONNX file without a card (metadata key {CARD_KEY}), so its input and output are unknown; "
            "make it from its checkpoint with: unet-export model.pth"
        )
    try:
        return ModelCard.from_json(metadata[CARD_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _golden_of(path: Path, metadata: dict[str, str], card: ModelCard) -> Golden:
    if GOLDEN_KEY not in metadata:
        raise ModelError(f"{path}: has no golden sample (metadata key {GOLDEN_KEY}); export the model again")
    try:
        golden = Golden.from_json(metadata[GOLDEN_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    found = golden.image.shape[2], golden.probability.shape[0]
    expected = card.architecture.in_channels, card.architecture.classes
    if found != expected:
        raise ModelError(
            f"{path}: golden sample: has {found[0]} channels and {found[1]} classes, "
            f"the card says {expected[0]} and {expected[1]}; export the model again"
        )
    return golden


def _brief(error: Exception) -> str:
    return one_line(str(error))[:300]
