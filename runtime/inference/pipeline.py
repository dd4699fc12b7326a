"""One image from its file to its answer, in three stages for different threads: preprocess, infer, postprocess."""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.card import NEVER_PADDED, InputSpec, ModelCard
from runtime.errors import ClosedError, ImageError
from runtime.image import Decode, EncodedImage, Fitted, ImageSource, Limits, enough, fit, load_enough, restore
from runtime.inference.loaded_model import LoadedModel
from runtime.inference.predict_options import MAX_PIXELS, ResolvedOptions
from runtime.inference.tiling import OVERLAP, tiled
from runtime.inference.tta import augmented
from runtime.result import Segmentation, Times


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """A decoded image, fitted to the network, the options of the prediction, and how long both steps took, in ms.

    Of an image that was decoded at a part of its size, `image` is its file.
    """

    image: NDArray[np.uint8] | EncodedImage
    fitted: Fitted
    options: ResolvedOptions
    decode: float
    fit: float

    @property
    def key(self) -> Hashable:
        """Value that the images of one batch have in common."""
        return self.fitted.image.shape, self.options


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """Probability float32 [classes, height, width] of a fitted image; how long copying and computing took, in ms."""

    probability: NDArray[np.float32]
    transfer: float
    infer: float


def preprocess(
    source: ImageSource, options: ResolvedOptions, card: ModelCard, limits: Limits, decode: Decode
) -> PreparedImage:
    """Decode an image and fit it to the network.

    Raises:
        ImageError: see `load_image`; or the network does not take pictures of this size, or the file does not.
    """
    start = time.perf_counter()
    channels, count = card.input.channels, card.architecture.in_channels
    at_least = partial(enough, options.spec) if decode == "scaled" else None
    image, encoded = load_enough(
        source,
        channels,
        count=count,
        at_least=at_least,
        limits=limits,
        order=options.channels,
        levels=card.input.levels,
    )
    decoded = time.perf_counter()
    fitted = fit(image, options.spec, encoded.shape if encoded else None)
    check_sides(fitted.image, options)
    if card.input.fixed_size is not None and options.tile is not None:
        height, width = fitted.image.shape[:2]
        if height < options.tile[0] or width < options.tile[1]:
            raise ImageError(
                f"image: is {width}x{height} pixels, smaller than the tiles of {options.tile[1]}x{options.tile[0]} "
                "that the file takes; leave tile out"
            )
    return PreparedImage(
        image=encoded or image,
        fitted=fitted,
        options=options,
        decode=1e3 * (decoded - start),
        fit=1e3 * (time.perf_counter() - decoded),
    )


def prepared_batch(batch: NDArray[np.uint8], card: ModelCard) -> list[PreparedImage]:
    """Take the images of a batch uint8 [batch, height, width, channels] as the network's own pictures.

    Raises:
        ImageError: as `check_batch`; or the images have more pixels than the network may see at once.
    """
    check_batch(batch, card.input, card.architecture.in_channels)
    options = ResolvedOptions(spec=card.input, tile=None, overlap=OVERLAP, tta=None, output=card.output)
    check_sides(batch[0], options)
    height, width = batch.shape[1:3]
    return [
        PreparedImage(
            image=picture,
            fitted=Fitted(image=picture, top=0, left=0, height=height, width=width, original=(height, width)),
            options=options,
            decode=0.0,
            fit=0.0,
        )
        for picture in batch
    ]


def check_sides(image: NDArray[np.uint8], options: ResolvedOptions) -> None:
    """Raise an ImageError unless the network takes a picture uint8 [height, width, channels] with these options."""
    tile = options.tile
    if tile is None and image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError(
            f"image: is {image.shape[1]}x{image.shape[0]} pixels for the network, expected at most {MAX_PIXELS}, which "
            "take some 90 GB; give a tile, or a size"
        )
    if tile is None or options.spec.padded:
        check_size(image, options.spec)
        if options.tta == "d4":  # which turns it
            check_size(image.swapaxes(0, 1), options.spec)
    elif image.shape[0] < tile[0] or image.shape[1] < tile[1]:
        raise ImageError(
            f"image: is {image.shape[1]}x{image.shape[0]} pixels, smaller than a tile of {tile[1]}x{tile[0]}, which is "
            f"never cut or padded, {NEVER_PADDED}; give a smaller tile, or leave it out"
        )


def check_size(images: NDArray[np.uint8], spec: InputSpec) -> None:
    """Raise an ImageError if the network does not take pictures [..., height, width, channels] of this size."""
    (height, width), (least_height, least_width) = images.shape[-3:-1], spec.min_size
    if height < least_height or width < least_width:
        raise ImageError(
            f"image: is {width}x{height} pixels, the network takes at least {least_width}x{least_height}; give a size"
        )
    if not spec.padded and (height % spec.stride or width % spec.stride):
        raise ImageError(
            f"image: is {width}x{height} pixels, the network takes multiples of {spec.stride} alone, {NEVER_PADDED}; "
            "give a size"
        )


def check_batch(batch: object, spec: InputSpec, channels: int) -> None:
    """Raise an ImageError unless it is uint8 [batch, height, width, channels] of sides that the network takes."""
    expected = f"expected uint8 [batch, height, width, {channels}]"
    if not isinstance(batch, np.ndarray):
        raise ImageError(f"batch: found {type(batch).__name__}, {expected}")
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != channels or not batch.size:
        raise ImageError(f"batch: found {batch.dtype} {list(batch.shape)}, {expected}")
    check_size(batch, spec)
    if spec.fixed_size is not None and batch.shape[1:3] != spec.fixed_size:
        (height, width), (only_height, only_width) = batch.shape[1:3], spec.fixed_size
        raise ImageError(
            f"batch: is {width}x{height} pixels, the file takes {only_width}x{only_height} only; resize the images"
        )


class Stopped(Protocol):
    """Tells, like an event, that an answer is not needed any more."""

    def is_set(self) -> bool:
        """Return True if nobody needs the answer."""


def infer(
    model: LoadedModel, images: Sequence[PreparedImage], stopped: Stopped | None = None, *, steady: bool = True
) -> list[NetworkOutput]:
    """Ask the network about images of one `key` together; large ones in tiles, `model.batch_size` of them at a time.

    `steady` is False for images that come alone, so that on a GPU a batch before them does not slow them down.

    Raises:
        DeviceError: the device fails, most likely because it is out of memory.
        ClosedError: the model is closed, or `stopped` was set; it is looked at before each run, of which an image in
            tiles takes many.
    """
    start, copy_seconds = time.perf_counter(), 0.0

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal copy_seconds
        if stopped is not None and stopped.is_set():
            raise ClosedError("images: nobody waits for the answer any more")
        ask = model.session.run_steady if steady or images[0].options.tile is not None else model.session.run
        output = ask(batch)
        copy_seconds += output.copy_seconds
        return output.probability

    options = images[0].options
    network = augmented(run, options.tta)
    pictures = [image.fitted.image for image in images]
    if options.tile is None:
        found = list(network(pictures[0][None] if len(pictures) == 1 else np.stack(pictures)))
    else:
        classes = len(model.card.output.classes)
        found = [
            tiled(network, picture, classes, options.tile, overlap=options.overlap, batch_size=model.batch_size)
            for picture in pictures
        ]
    share = 1e3 / len(images)
    computing = time.perf_counter() - start - copy_seconds
    return [NetworkOutput(probability=one, transfer=share * copy_seconds, infer=share * computing) for one in found]


def postprocess(prepared: PreparedImage, output: NetworkOutput) -> Segmentation:
    """Bring the probabilities back to the image's own size."""
    start = time.perf_counter()
    probability = restore(output.probability, prepared.fitted)
    whole = probability.base
    if isinstance(whole, np.ndarray) and whole.nbytes > probability.nbytes:
        probability = probability.copy()  # or one result would hold its whole batch
    times = Times(
        decode=prepared.decode,
        fit=prepared.fit,
        transfer=output.transfer,
        infer=output.infer,
        restore=1e3 * (time.perf_counter() - start),
    )
    image: Any = prepared.image  # `Segmentation.image` decodes an `EncodedImage` when it is read
    return Segmentation(probability=probability, image=image, output=prepared.options.output, times=times)
