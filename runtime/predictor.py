"""Predictor: load a model once, ask it many times, from any thread."""

import logging
import os
import sys
import time
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import overload

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
from runtime.options import ProviderOptions
from runtime.providers import Device
from runtime.result import Segmentation
from runtime.safety import check_model
from runtime.session import AutoSession, Run, Session, must_build, open_session
from runtime.tiling import Size, Tta, Way, augmented, tiled, way_of

LOG = logging.getLogger(__package__)
CACHED_PREDICTORS = 4
MAX_THREADS = 1_024


class Predictor:
    """A model on a device.

    Args:
        model: an ONNX file that `unet-export` wrote.
        device: "auto" takes the best of TensorRT, CUDA and the CPU that works here; "cpu", "cuda", "cuda:N",
            "tensorrt" and "tensorrt:N" run there or raise.
        threads: CPU threads of one prediction, 1 to `MAX_THREADS`; as many as this process may use, if None.
        options: `runtime.options.ProviderOptions`, how it runs on a device.

    With "auto", CUDA serves while a TensorRT engine is built, and shapes that the engine does not take. Builds are told
    of by the logger "runtime", as warnings, since Python shows these by default and they explain a wait of minutes.

    Attributes:
        card: `ModelCard`, what the model expects and answers.
        report: `runtime.providers.Report`, where it runs, what was skipped and why; replaced by a new one at a switch.

    Raises:
        ModelError: the file is absent, damaged, foreign, or answers its golden sample wrongly on the CPU.
        DeviceError: an explicit device does not run here; the message says why.
        ConfigError: `threads` is out of its bounds, or `options` do not fit the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        options: ProviderOptions | None = None,
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise ConfigError(f"threads: found {threads!r}, expected an integer from 1 to {MAX_THREADS}, or None")
        if options is not None and not isinstance(options, ProviderOptions):
            raise ConfigError(f"options: found {options!r}, expected runtime.options.ProviderOptions, or None")
        self.path = Path(model)
        metadata = read_metadata(self.path)
        self.card = _card_of(self.path, metadata)
        self._golden = _golden_of(self.path, metadata, self.card)
        check_model(self.path)
        self._threads = threads or providers.available_threads()
        self._options = options or ProviderOptions()
        self._options.bucket_of(self.card)  # refused on every device, not only where it matters
        self._open(device)

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
        return self._session.run(batch)

    def prepare(self) -> None:
        """Wait for a TensorRT engine that is being built, and run one image, so that the first user waits for nothing.

        Raises:
            DeviceError: the device gives up on it.
        """
        self._session.prepare()

    def _open(self, device: str) -> None:
        devices = providers.candidates(device)
        chosen, (session, error), skipped, late = providers.choose(devices, self._try, self._put_off)
        self._session = session
        self.report = replace(
            self._report(session, error),
            requested=device,
            skipped=tuple((other.kind, reason) for other, reason in skipped),
        )
        if skipped:
            _warn_once(self.report.device, self.report.skipped)
        if late:
            self._build_later(session, late[0])
        elif device == "auto" and chosen.kind == "tensorrt":
            cuda = devices[devices.index(chosen) + 1]
            self._session = AutoSession(best=session, open_other=lambda: self._try(cuda)[0])

    def _build_later(self, session: Session, device: Device) -> None:
        """Let a session serve until the engine of a better device is built."""
        start, before, errors = time.monotonic(), self.report, [0.0]
        self.report = replace(before, switch=f"{device} is being built, {before.device} serves until then")
        auto = self._session = AutoSession(other=session, open_other=lambda: session)

        def open_best() -> Session:
            best, errors[0] = self._try(device)
            return best

        def done(best: Session | None, reason: str) -> None:
            if best is None:
                self.report = replace(before, switch=f"stayed on {before.device}, since {device} failed: {reason}")
            else:
                text = f"switched from {before.device} to {device} after {time.monotonic() - start:.0f} s"
                report = self._report(best, errors[0])
                self.report = replace(report, requested=before.requested, skipped=before.skipped, switch=text)
            LOG.warning(self.report.switch)

        auto.build(open_best, done)

    def _put_off(self, device: Device) -> bool:
        """Whether another device should serve until this one's engine is built."""
        return (
            self._options.background
            and providers.why_not(device) is None
            and must_build(self.path, device, self.card, self._options)
        )

    def _report(self, session: Session, error: float) -> providers.Report:
        return providers.Report(
            requested=str(session.device),
            device=str(session.device),
            provider=providers.PROVIDER[session.device.kind],
            nodes=session.placement(),
            golden_error=error,
            threads=self._threads,
            onnxruntime=onnxruntime.__version__,
            node_placement=session.nodes,
        )

    def _try(self, device: Device) -> tuple[Session, float]:
        """Open a session on the device and replay the golden sample there."""
        reason = providers.why_not(device)
        if reason:
            raise DeviceError(f"device {device}: {reason}")
        errors = [0.0]
        try:
            session = open_session(
                self.path,
                device,
                self.card,
                self._options,
                note=LOG.warning,
                threads=self._threads,
                check=lambda run: errors.append(self._check_golden(device, run)),
            )
        except UnetError:
            raise
        except Exception as failure:  # ONNX Runtime's errors share no base class
            raise _wrong(self.path, device, f"ONNX Runtime cannot run the model ({_brief(failure)})") from failure
        return session, errors[-1]

    def _check_golden(self, device: Device, run: Run) -> float:
        error, tolerance = self._golden.error(run), golden_tolerance(self.card, device.kind)
        if error > tolerance:
            raise _wrong(
                self.path,
                device,
                f"answers the golden sample wrongly (off by {error:.2g}, expected at most {tolerance:g}); "
                "export the model again, update the driver or choose another device",
            )
        return error


def _wrong(path: Path, device: Device, what: str) -> UnetError:
    """What goes wrong on the CPU is the file's fault, elsewhere the device's."""
    return ModelError(f"{path}: {what}") if device.kind == "cpu" else DeviceError(f"device {device}: {what}")


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
