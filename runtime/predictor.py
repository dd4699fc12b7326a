"""Predictor: load a model once, ask it many times, from any thread."""

import dataclasses
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal, Never, Self, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from runtime.devices.availability import device_name
from runtime.devices.report import Report
from runtime.devices.session import CLOSED
from runtime.errors import ClosedError, ConfigError, DeviceError, ImageError, ModelError
from runtime.image import ChannelOrder, Decode, ImageSource, Limits, current_frame
from runtime.image_files.sources import is_picture
from runtime.inference.batcher import Batching
from runtime.inference.loaded_model import LoadedModel
from runtime.inference.pipeline import (
    NetworkOutput,
    PreparedImage,
    check_batch,
    infer,
    postprocess,
    prepared_batch,
    preprocess,
)
from runtime.inference.predict_options import (
    PredictOptions,
    ResolvedOptions,
    SizeOption,
    TileOption,
    check_decode,
    resolve_options,
)
from runtime.inference.predictor_cache import PredictorCache
from runtime.inference.stream import MAX_WORKERS, stream_in_order
from runtime.inference.submissions import Submissions
from runtime.inference.tta import Tta
from runtime.model_file.digest import Integrity, check_digest
from runtime.model_file.kept_content import Content, is_content, keep_content, kept_at
from runtime.model_file.reader import identity_of, path_of, read_model
from runtime.options import ProviderOptions
from runtime.result import Segmentation
from runtime.support.cpu_count import MAX_THREADS, available_threads
from runtime.support.validation import plain_integer

S = TypeVar("S", bound=ImageSource)
T = TypeVar("T")

ModelSource = str | os.PathLike[str] | Content
"""A model's file: its path, its bytes, or a binary file object."""

ONE_IMAGE = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)

_reopening = threading.Lock()


def _after_fork() -> None:
    """Another thread may have held the lock, and is not there to let go of it."""
    global _reopening
    _reopening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Predictor:
    """A model on a device.

    Args:
        model: an ONNX file that `unet-export` wrote: its path, its bytes, or a binary file object. Bytes are kept in a
            temporary file as long as the predictor is.
        device: "auto" takes the best of TensorRT, CUDA and the CPU that works here, for int8 also OpenVINO; "cpu",
            "cuda", "cuda:N", "tensorrt", "tensorrt:N", "openvino" (the CPU by Intel's kernels), "openvino:GPU" and
            "openvino:NPU" run there or raise. "gpu" and "gpu:N", or the number N alone, take the better of TensorRT
            and CUDA, or raise.
        threads: CPU threads of one prediction, 1 to `MAX_THREADS`; as many as this process may use, if None.
        options: `ProviderOptions`, how it runs on a device.
        limits: `Limits`, pixels and bytes that an encoded image may have.
        verify: compare the file with its digest before it is used; False saves a few percent of the start. The golden
            sample is replayed all the same, and `report.integrity` says what was found.
        batching: `Batching`, how `submit` and `predict_async` gather images; by default one at a time on the CPU, where
            more gain nothing, and up to eight on a GPU.
        decode: "full", or "scaled" to decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is at least twice
            what the network sees. That is faster, and changes the answer slightly. Masks keep the image's own size;
            `Segmentation.image` is decoded when it is first asked for.

    Any number of threads may use it; on a GPU their runs follow one another. After a fork, a predictor of the CPU opens
    its file again when it is first used; a GPU's is refused, since CUDA does not survive. `close()`, or a `with` block,
    gives its memory back.

    With "auto", CUDA serves while a TensorRT engine is built, and shapes that the engine does not take. Builds are told
    of by the logger "runtime", as warnings, since Python shows these by default and they explain a wait of minutes.

    Attributes:
        card: `ModelCard`, what the model expects and answers.
        report: `runtime.devices.report.Report`, where it runs, what was skipped and why; another one after a switch.

    Raises:
        ModelError: the file is absent, damaged, foreign, changed since its export, or answers its golden sample wrongly
            on the CPU.
        DeviceError: an explicit device does not run here; the message says why.
        ConfigError: `threads` is out of its bounds, `options` do not fit the model, or `decode` is unknown.
    """

    def __init__(
        self,
        model: ModelSource,
        device: str | int = "auto",
        threads: int | None = None,
        options: ProviderOptions | None = None,
        limits: Limits | None = None,
        batching: Batching | None = None,
        verify: bool = True,
        decode: Decode = "full",
    ) -> None:
        device, threads = device_name(device), plain_integer(threads)
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise ConfigError(f"threads: found {threads!r}, expected an integer from 1 to {MAX_THREADS}, or None")
        for name, value, kind, expected in (
            ("options", options, ProviderOptions, "runtime.options.ProviderOptions"),
            ("batching", batching, Batching, "runtime.Batching"),
            ("limits", limits, Limits, "runtime.Limits"),
        ):
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{name}: found {value!r}, expected {expected}, or None")
        check_decode(decode)
        self._content = keep_content(model) if is_content(model) else kept_at(path_of(model))
        self.path = self._content.path if self._content else path_of(model)
        self._file = self.path.absolute()  # the folder that it is relative to may be left
        self._given = (device, threads, options, limits, batching, verify, decode)
        self._threads = threads or available_threads()
        self._limits, self._decode = limits or Limits(), decode
        self._batching = batching
        self._options = options or ProviderOptions()
        self._closed = False
        before = identity_of(self.path)
        replaced = f"{self.path}: was replaced while it was being opened; open it again"
        try:
            self.card, self._golden = read_model(self.path)
            self._integrity = check_digest(self.path) if verify else Integrity()
            self._options.bucket_of(self.card)  # refused on every device, not only where it matters
            self._begin(device, self.path)
        except ModelError as error:
            if self._content:
                raise type(error)(str(error).replace(os.fspath(self.path), "model")) from error
            if identity_of(self.path) == before:
                raise
            raise ModelError(replaced) from error  # the card of one file and the graph of another
        if identity_of(self.path) != before:
            self.close()
            raise ModelError(replaced)

    def _begin(self, device: str, path: Path) -> None:
        """Open the model in this process."""
        model = LoadedModel(path, self.card, self._golden, self._integrity, device, self._threads, self._options)
        batching = self._batching or Batching(max_batch=None)
        if batching.max_batch is None:
            batching = dataclasses.replace(batching, max_batch=model.batch_size)
        # Nothing here refers back to the predictor, so its memory is given back as soon as it is dropped.
        self._submissions = Submissions(partial(infer, model), postprocess, batching)
        self._model, self._process = model, os.getpid()

    @property
    def report(self) -> Report:
        """The `Report` of where the model runs, what was skipped and why; another one after a switch."""
        return self._model.report

    def __repr__(self) -> str:
        return f"Predictor({os.fspath(self.path)!r}, device={self.report.device!r})"

    @overload
    def predict(
        self,
        image: list[ImageSource] | tuple[ImageSource, ...],
        *,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
    ) -> list[Segmentation]: ...
    @overload
    def predict(
        self,
        image: list[S] | tuple[S, ...],
        *,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
    ) -> list[Segmentation]: ...
    @overload
    def predict(
        self,
        image: ImageSource,
        *,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
    ) -> Segmentation: ...
    def predict(
        self,
        image: ImageSource | list[Any] | tuple[Any, ...],
        *,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
        **unknown: Never,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or each of a list.

        Args:
            image: path, bytes, file object, PIL image or array (RGB, see `channels`), see `load_image`.
            size: (height, width) that the network sees, the same as a text "WIDTHxHEIGHT", or "native" for the image's
                own; by default as trained, or with `tile` the image's own.
            tile: (height, width), or a text "WIDTHxHEIGHT", of the tiles that a large image is cut into, so that memory
                is bounded.
            overlap: least share of a tile's side that neighbouring tiles have in common, 0 to 0.9; by default 0.25.
            tta: "flip" takes the mean over the image and its mirror image, "d4" over all turns and mirror images.
            threshold: foreground probability above which a pixel is 1, between 0 and 1, for models with one class or
                with classes that overlap; by default the model's.
            channels: "BGR" for arrays as OpenCV makes them (`cv2.imread`, `VideoCapture.read`).
            limits: largest encoded image that is decoded; by default the predictor's. `Limits.for_pixels(10**9)` takes
                images of a billion pixels; give `tile`, too, if the network shall see all of them.
            decode: "full" or "scaled", see `Predictor`; by default the predictor's.

        Raises:
            ImageError: an image cannot be read.
            ConfigError: `size`, `tile`, `overlap`, `tta`, `threshold`, `channels`, `limits` or `decode` is invalid or
                not for this model, or an option is unknown.
            DeviceError: the device fails, most likely because it is out of memory.
            ClosedError: the predictor is closed.
        """
        options = resolve_options(
            self.card,
            size=size,
            tile=tile,
            overlap=overlap,
            tta=tta,
            threshold=threshold,
            channels=channels,
            limits=limits,
            decode=decode,
            **unknown,
        )
        if isinstance(image, list | tuple):
            return list(self._stream(image, options, workers=1))
        prepared = self._preprocess(image, options)
        return postprocess(prepared, infer(self._serving(), [prepared], steady=False)[0])

    __call__ = predict

    def predict_batch(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int | None = None,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
        **unknown: Never,
    ) -> list[Segmentation]:
        """Segment images, `batch_size` of one fitted size together; options and errors are those of `predict`.

        By default one at a time on the CPU, where more gain nothing, and eight on a GPU. Take `stream` for many images.
        """
        options = resolve_options(
            self.card,
            size=size,
            tile=tile,
            overlap=overlap,
            tta=tta,
            threshold=threshold,
            channels=channels,
            limits=limits,
            decode=decode,
            **unknown,
        )
        return list(self._stream(images, options, batch_size=batch_size, workers=1))

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["raise"] = "raise",
        **asking: Unpack[PredictOptions],
    ) -> Generator[Segmentation]: ...
    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["yield"],
        **asking: Unpack[PredictOptions],
    ) -> Generator[Segmentation | Exception]: ...
    @overload
    def stream(
        self,
        images: Iterable[S],
        *,
        then: Callable[[S, Segmentation], T],
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["raise"] = "raise",
        **asking: Unpack[PredictOptions],
    ) -> Generator[T]: ...
    @overload
    def stream(
        self,
        images: Iterable[S],
        *,
        then: Callable[[S, Segmentation], T],
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["yield"],
        **asking: Unpack[PredictOptions],
    ) -> Generator[T | Exception]: ...
    def stream(
        self,
        images: Iterable[Any],
        *,
        then: Callable[[Any, Segmentation], Any] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
        **unknown: Never,
    ) -> Generator[Any]:
        """Segment images as they come, in order, decoding in threads beside the network; memory is bounded.

        Args:
            images: any iterable, also an endless one; read a few images ahead, in the caller's thread. Give each array
                memory of its own: a buffer that is filled again meanwhile is seen with its new content.
            then: called with each image (as it was given) and its result, in one of the threads; what it returns is
                given instead of the result. The place to encode and save.
            batch_size: images of one fitted size that run together; by default as of `predict_batch`.
            workers: threads that decode and restore; by default as many as the cores that this process may use.
            errors: "raise" ends the stream with an image's error, "yield" gives the exception in its place.
            size, tile, overlap, tta, threshold, channels, limits, decode: as of `predict`.

        Raises:
            ConfigError, ImageError, DeviceError, ClosedError: as `predict`.
        """
        options = resolve_options(
            self.card,
            size=size,
            tile=tile,
            overlap=overlap,
            tta=tta,
            threshold=threshold,
            channels=channels,
            limits=limits,
            decode=decode,
            **unknown,
        )
        return self._stream(images, options, then=then, batch_size=batch_size, workers=workers, errors=errors)

    def _stream(
        self,
        images: Iterable[Any],
        options: ResolvedOptions,
        *,
        then: Callable[[Any, Segmentation], Any] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Generator[Any]:
        if (
            isinstance(images, ONE_IMAGE)
            or is_picture(images)
            or hasattr(images, "read")
            or not isinstance(images, Iterable)
        ):
            raise ConfigError(f"images: found one {type(images).__name__}, expected several; put it into a list")
        stopped = threading.Event()

        def load(source: Any) -> tuple[Any, PreparedImage]:
            return source if then else None, self._preprocess(source, options)

        def run_many(items: list[tuple[Any, PreparedImage]]) -> list[NetworkOutput]:
            return infer(self._serving(), [prepared for _, prepared in items], stopped)

        def finish(item: tuple[Any, PreparedImage], output: NetworkOutput) -> Any:
            result = postprocess(item[1], output)
            return result if then is None else then(item[0], result)

        def read() -> Generator[Any]:
            try:
                for image in images:
                    yield current_frame(image, options.limits or self._limits)
            finally:
                if isinstance(images, Generator):
                    images.close()

        answers: Generator[Any] = stream_in_order(
            read(),
            load=load,
            key=lambda item: item[1].key,
            run_many=run_many,
            finish=finish,
            batch_size=self._model.batch_size if batch_size is None else plain_integer(batch_size),
            workers=min(available_threads(), MAX_WORKERS) if workers is None else plain_integer(workers),
            errors=errors,
            stopped=stopped,
        )
        return answers

    def submit(
        self,
        image: ImageSource,
        *,
        timeout: float | None = None,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
        **unknown: Never,
    ) -> Future[Segmentation]:
        """Decode an image here, queue it, and return the Future of its answer; images that wait run in batches.

        An image that cannot be read fails its own Future.

        Args:
            image: as of `predict`.
            timeout: seconds to wait while `Batching.max_waiting` images wait already; None as long as it takes.
            size, tile, overlap, tta, threshold, channels, limits, decode: as of `predict`.

        Raises:
            BusyError: too many images wait.
            ClosedError: the predictor is closed.
            ConfigError: as `predict`.
        """
        options = resolve_options(
            self.card,
            size=size,
            tile=tile,
            overlap=overlap,
            tta=tta,
            threshold=threshold,
            channels=channels,
            limits=limits,
            decode=decode,
            **unknown,
        )
        try:
            prepared = self._preprocess(image, options)
        except ImageError as error:
            failed: Future[Segmentation] = Future()
            failed.set_exception(error)
            return failed
        self._serving()  # after a fork it opens the file
        return self._submissions.submit(prepared, timeout=timeout)

    async def predict_async(
        self,
        image: ImageSource,
        *,
        size: SizeOption | None = None,
        tile: TileOption | None = None,
        overlap: float | None = None,
        tta: Tta | None = None,
        threshold: float | None = None,
        channels: ChannelOrder = "RGB",
        limits: Limits | None = None,
        decode: Decode | None = None,
        **unknown: Never,
    ) -> Segmentation:
        """`predict` for asyncio: decodes and restores in threads, runs in a batch with others; the event loop goes on.

        Cancelling the task takes the image back if its batch has not started; of an image in tiles, the tiles that are
        left. Errors are those of `predict`.
        """
        self._check_open()
        options = resolve_options(
            self.card,
            size=size,
            tile=tile,
            overlap=overlap,
            tta=tta,
            threshold=threshold,
            channels=channels,
            limits=limits,
            decode=decode,
            **unknown,
        )
        self._serving()  # after a fork it opens the file
        return await self._submissions.predict(lambda: self._preprocess(image, options))

    def close(self) -> None:
        """Finish what was submitted, and give the model's memory back; predicting again raises a ClosedError.

        May be called from any thread, also in a Future's callback, but not from a signal handler.
        """
        with _reopening:
            self._closed = True
            is_here = os.getpid() == self._process
        if not is_here:
            return  # nothing was opened in this process
        if self._submissions.is_current():  # in a Future's callback: what waits comes first
            threading.Thread(target=self.close, name="unet-close").start()
            return
        self._submissions.close()
        self._model.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickled by path (or bytes) and options; the file is opened again where it is unpickled."""
        return type(self), (self._file.read_bytes() if self._content else self._file, *self._given)

    def _preprocess(self, source: ImageSource, options: ResolvedOptions) -> PreparedImage:
        self._check_open()
        return preprocess(source, options, self.card, options.limits or self._limits, options.decode or self._decode)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The bare graph: uint8 [batch, height, width, channels] -> probability float32 [batch, classes, h, w].

        Raises:
            ImageError: the array is of another type or shape.
            DeviceError: the device gives up on it, most likely for want of memory.
        """
        self._check_open()
        check_batch(batch, self.card.input, self.card.architecture.in_channels)
        return self._serving().session.run(batch).probability

    async def run_async(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`run` for asyncio, in batches with others; cancelling the task takes back the images whose batch waits.

        Raises:
            ImageError, DeviceError: as `run`.
            ClosedError: the predictor is closed.
        """
        import asyncio

        self._check_open()
        prepared = prepared_batch(batch, self.card)
        self._serving()
        tasks = [asyncio.ensure_future(self._submissions.run(image)) for image in prepared]
        try:
            outputs = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # after an error or a cancellation, those that wait are not needed either
                task.cancel()
        return np.stack([output.probability for output in outputs])

    def replay(self) -> float:
        """Run the golden sample again, and return the largest difference from PyTorch's probabilities.

        Raises:
            DeviceError: the difference is above `report.golden_limit`, or the device fails.
        """
        error = self._golden.error(self.run, self.card.input.fixed_size)
        if not error <= self.report.golden_limit:
            raise DeviceError(
                f"device {self.report.device}: answers the golden sample wrongly (off by {error:.2g}, expected at most "
                f"{self.report.golden_limit:g}); start the program again"
            )
        return error

    def run_dlpack(self, tensor: Any) -> Any:
        """`run` without a copy, for those who hold tensors on the device already; see `Session.run_dlpack`."""
        self._check_open()
        return self._serving().session.run_dlpack(tensor)

    def prepare(self) -> None:
        """Wait for a TensorRT engine that is being built, and run one image, so that the first user waits for nothing.

        Raises:
            DeviceError: the device gives up on it.
        """
        self._check_open()
        self._serving().session.prepare()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(CLOSED)

    def _serving(self) -> LoadedModel:
        """Return the model that was opened in this process; ONNX Runtime's sessions lose their threads in a fork."""
        if os.getpid() == self._process:
            return self._model
        if not self._model.on_cpu:
            raise DeviceError(
                f"device {self.report.device}: was opened in process {self._process} and does not survive a fork; "
                "open the predictor in each process, or start them by multiprocessing's 'spawn'"
            )
        with _reopening:
            self._check_open()
            if os.getpid() != self._process:
                same = not self._integrity.graph or check_digest(self._file) == self._integrity
                if read_model(self._file)[0] != self.card or not same:
                    raise ModelError(f"{self._file}: was replaced since the parent process opened it; open it anew")
                self._begin("cpu", self._file)
        return self._model


PREDICTORS: PredictorCache[Predictor] = PredictorCache(
    lambda path, device, verify: Predictor(path, device, verify=verify)
)
"""The predictors that `predict` keeps open."""


def predict(
    image: ImageSource,
    model: ModelSource,
    device: str | int = "auto",
    *,
    verify: bool = True,
    size: SizeOption | None = None,
    tile: TileOption | None = None,
    overlap: float | None = None,
    tta: Tta | None = None,
    threshold: float | None = None,
    channels: ChannelOrder = "RGB",
    limits: Limits | None = None,
    decode: Decode | None = None,
    **unknown: Never,
) -> Segmentation:
    """Segment one image with the model in a file; see `Predictor.predict`, whose options it takes, and `verify` there.

    The last few models stay open for the next call, in any thread; a file that was replaced is opened anew.
    """
    content = keep_content(model) if is_content(model) else None  # its file is there as long as a predictor of it is
    predictor = PREDICTORS.get(content.path if content else path_of(model), device_name(device), verify)
    return predictor.predict(
        image,
        size=size,
        tile=tile,
        overlap=overlap,
        tta=tta,
        threshold=threshold,
        channels=channels,
        limits=limits,
        decode=decode,
        **unknown,
    )
