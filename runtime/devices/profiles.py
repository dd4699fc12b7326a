"""Arithmetic of shapes: TensorRT's profiles, CUDA's buckets, batches in parts. No device is needed for it.

A shape is (batch, height, width) here; channels follow from the card.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.errors import DeviceError
from runtime.model_file.golden import golden_size
from runtime.options import ProviderOptions, Size

Shape = tuple[int, int, int]

D = TypeVar("D", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes that one TensorRT engine takes: every axis from `low` to `high`, fastest at `best`."""

    low: Shape
    best: Shape
    high: Shape
    channels: int

    def options(self) -> dict[str, str]:
        """The profile as options of ONNX Runtime's TensorRT provider, "image:NxHxWxC"."""
        shapes = {"min": self.low, "opt": self.best, "max": self.high}
        return {
            f"trt_profile_{name}_shapes": "image:" + "x".join(map(str, (*shape, self.channels)))
            for name, shape in shapes.items()
        }

    def inside(self, shape: Shape) -> bool:
        """Return True if the engine takes a batch of this shape."""
        return all(low <= side <= high for low, side, high in zip(self.low, shape, self.high, strict=True))

    def check(self, shape: Shape) -> None:
        """Refuse a shape that is outside, with the limit and the option that moves it.

        Raises:
            DeviceError: the engine does not take this shape.
        """
        sizes = zip(("images", "height", "width"), self.low, shape, self.high, strict=True)
        for axis, low, found, high in sizes:
            if low <= found <= high:
                continue
            option = "max_batch" if axis == "images" else "max_size" if found > high else "min_size"
            raise DeviceError(
                f"{axis} of the batch: found {found}, the TensorRT engine takes {low} to {high}; give "
                f"ProviderOptions({option}=...), or allow_rebuild=True to have another engine built"
            )

    def grown(self, size: Size, stride: int) -> Size:
        """Return (height, width), raised to the lowest ones where that does not change the answer; see `bucketed`."""
        height, width = (
            low if side < low and bucket(side, stride) == bucket(low, stride) else side
            for side, low in zip(size, self.low[1:], strict=True)
        )
        return height, width

    def widened(self, shape: Shape) -> "Profile":
        """Return the smallest profile that holds this one and the shape."""
        low, high = (
            (pick(a[0], b[0]), pick(a[1], b[1]), pick(a[2], b[2]))
            for pick, a, b in ((min, self.low, shape), (max, self.high, shape))
        )
        return Profile(low=low, best=self.best, high=high, channels=self.channels)


def profile_of(card: ModelCard, options: ProviderOptions) -> Profile:
    """Return TensorRT's profile for a model: batches of 1 to `options.max_batch`, sizes from the golden sample's to the
    card's, or further where the options' limits reach.

    A limit is (height, width) and never excludes the golden sample or the trained size: an engine that cannot replay
    the sample would never be taken. A card with fit "native" gets images of any size, so its smallest is the stride.
    TensorRT runs the network at both ends, so these are sizes that it takes. A file of one shape has a profile of that
    shape.
    """
    trained, stride, fixed = card.input.size, card.input.stride, card.input.fixed_shape
    if fixed is not None:  # fewer images are filled up to a whole batch
        return Profile(low=(1, *trained), best=fixed, high=fixed, channels=card.architecture.in_channels)
    golden = golden_size(card.input)
    smallest = options.min_size or ((stride, stride) if card.input.fit == "native" else trained)
    lows = [
        max(least, min(sides)) for least, *sides in zip(card.input.min_size, golden, trained, smallest, strict=True)
    ]
    highs = [max(sides) for sides in zip(golden, trained, options.max_size or trained, strict=True)]
    if not card.input.padded:
        lows, highs = ([bucket(side, stride) for side in sides] for sides in (lows, highs))
    return Profile(
        low=(1, lows[0], lows[1]),
        best=(1, *trained),
        high=(options.max_batch, highs[0], highs[1]),
        channels=card.architecture.in_channels,
    )


def bucket(side: int, step: int) -> int:
    """Return the smallest multiple of `step` that holds `side`."""
    return -(-side // step) * step


def bucketed(size: Size, step: int) -> Size:
    """Return the (height, width) of the bucket of a size.

    With `step` the network's stride the answer does not change, whatever the bucket: the graph itself pads right and
    bottom to the stride by repeating the edge, so the network sees the same values either way. A multiple of the stride
    makes fewer buckets but moves the border, where convolutions see zeros, and with it the answers near it.
    """
    return bucket(size[0], step), bucket(size[1], step)


def shape_unlike(shapes: Iterable[Shape], least: Size, stride: int) -> Shape:
    """Return the smallest shape that has no axis in common with any of `shapes`, as the network sees them.

    `least` is the smallest (height, width) that the network takes, and its graph pads sides to multiples of `stride`.
    """
    seen = [(images, bucket(height, stride), bucket(width, stride)) for images, height, width in shapes]
    taken: list[set[int]] = [set(axis) for axis in zip(*seen, strict=True)] or [set(), set(), set()]
    images = next(number for number in count(1) if number not in taken[0])
    height, width = (
        next(side for side in count(bucket(low, stride), stride) if side not in sides)
        for low, sides in zip(least, taken[1:], strict=True)
    )
    return images, height, width


def padded(batch: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Bring a batch uint8 [n, h, w, c] to `size` by repeating the last row and column; a batch that fits stays."""
    down, right = size[0] - batch.shape[1], size[1] - batch.shape[2]
    if not down and not right:
        return batch
    return np.pad(batch, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")


def cropped(answer: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Cut what `padded` added off an answer float32 [n, classes, h, w]."""
    if answer.shape[2:] == size:
        return answer
    return np.ascontiguousarray(answer[:, :, : size[0], : size[1]])


def part_size(images: int, most: int, before: int = 0) -> int:
    """Return the size of the parts, all alike, into which so many images are split: 9 with at most 8 are twice 5.

    The size of the parts `before` is kept if it makes no more parts.
    """
    number = -(-images // most)
    return before if 0 < before <= most and -(-images // before) == number > 1 else -(-images // number)


def full_batches(batch: NDArray[D], count: int) -> Iterator[NDArray[D]]:
    """Yield a batch [n, ...] in parts of exactly `count` images; repeats of its last image fill up the last part."""
    for start in range(0, len(batch), count):
        part = batch[start : start + count]
        missing = count - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
