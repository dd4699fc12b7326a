"""One image from its file to its answer, in three stages for different threads: preprocess, infer, postprocess."""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.session import COPIES
from runtime.errors import ImageError
from runtime.image import Fitted, ImageSource, Limits, fit, load_image, restore
from runtime.inference.tiling import ResolvedOptions, augmented, tiled
from runtime.model_file.golden import NetworkFunction
from runtime.result import Segmentation, Times


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """A decoded and fitted image, how the network is to be asked about it, and the milliseconds that took."""

    image: NDArray[np.uint8]
    fitted: Fitted
    way: ResolvedOptions
    decode: float
    fit: float

    @property
    def key(self) -> Hashable:
        """What images of one batch have in common."""
        return self.fitted.image.shape, self.way


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """Probability float32 [classes, height, width] of a fitted image; milliseconds of copying and of computing it."""

    probability: NDArray[np.float32]
    transfer: float
    infer: float


def preprocess(source: ImageSource, way: ResolvedOptions, card: ModelCard, limits: Limits) -> PreparedImage:
    """Decode an image and fit it to the network.

    Raises:
        ImageError: see `load_image`.
    """
    start = time.perf_counter()
    image = load_image(source, card.input.channels, limits=limits)
    decoded = time.perf_counter()
    fitted = fit(image, way.spec)
    return PreparedImage(
        image=image, fitted=fitted, way=way, decode=1e3 * (decoded - start), fit=1e3 * (time.perf_counter() - decoded)
    )


def check_batch(batch: object, channels: int) -> None:
    """Raise an ImageError unless it is uint8 [batch, height, width, channels] with something in it."""
    expected = f"expected uint8 [batch, height, width, {channels}]"
    if not isinstance(batch, np.ndarray):
        raise ImageError(f"batch: found {type(batch).__name__}, {expected}")
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != channels or not batch.size:
        raise ImageError(f"batch: found {batch.dtype} {list(batch.shape)}, {expected}")


def infer(run: NetworkFunction, loaded: Sequence[PreparedImage], classes: int, tiles: int) -> list[NetworkOutput]:
    """Ask the network about images of one key together; `tiles` are run at once where they are cut.

    Raises:
        DeviceError: the device gives up.
    """
    start, copied, way = time.perf_counter(), COPIES.seconds, loaded[0].way
    run = augmented(run, way.tta)
    pictures = [one.fitted.image for one in loaded]
    if way.tile is not None:
        found = [tiled(run, one, classes, way.tile, overlap=way.overlap, batch_size=tiles) for one in pictures]
    else:
        found = list(run(pictures[0][None] if len(pictures) == 1 else np.stack(pictures)))
    transfer = COPIES.seconds - copied
    share = 1e3 / len(loaded)
    spent = time.perf_counter() - start - transfer
    return [NetworkOutput(probability=one, transfer=share * transfer, infer=share * spent) for one in found]


def postprocess(loaded: PreparedImage, answer: NetworkOutput, card: ModelCard) -> Segmentation:
    """Bring the probabilities back to the image's own size."""
    start = time.perf_counter()
    probability = restore(answer.probability, loaded.fitted)
    whole = probability.base
    if isinstance(whole, np.ndarray) and whole.nbytes > probability.nbytes:
        probability = probability.copy()  # or one result would hold its whole batch
    times = Times(
        decode=loaded.decode,
        fit=loaded.fit,
        transfer=answer.transfer,
        infer=answer.infer,
        restore=1e3 * (time.perf_counter() - start),
    )
    return Segmentation(probability=probability, image=loaded.image, output=card.output, times=times)
