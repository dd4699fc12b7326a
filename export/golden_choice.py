"""The picture of a golden sample, chosen so that every channel of the network shows in the answer.

A device that computes one channel wrongly is found only where that channel matters. Of some synthetic pictures the one
is taken in whose answer the most channels matter by more than a device may be off.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from runtime.devices.registry import BACKENDS
from runtime.model_file.golden import tf32_tolerance
from unet_core.model import Segmenter

CHANNEL_AXIS: Mapping[Callable[..., Any], int] = {
    torch.conv1d: -2,
    torch.conv2d: -3,
    torch.conv3d: -4,
    torch.conv_transpose1d: -2,
    torch.conv_transpose2d: -3,
    torch.conv_transpose3d: -4,
    functional.linear: -1,
}
"""Layers that are watched, and which axis of their answer holds the channels."""

PRODUCTS = (*CHANNEL_AXIS, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__)
"""Functions that a GPU computes in TF32."""

SEEDS = (17, 36, 29, 6, 10, 4)
"""Pictures to begin with, best first: of forty, those in which the most channels of four networks matter."""

CANDIDATES = 12
"""Largest number of pictures that are tried; those after `SEEDS` change the best one in a part."""

MOST_MULTIPLICATIONS = 15e9
"""Limit of multiplications on all pictures that are tried, which keeps the search below two seconds. A U-Net of 31
million weights has 2.5e9 on one picture, so that six are tried."""

PEAK = 5.0
"""Usual ratio of the largest change of an answer to its root mean square."""


class Channels(TorchFunctionMode):
    """While it is entered, multiplies each channel of each layer by a factor of one, for the factor's gradient.

    Attributes:
        factors: the factors of each layer, of a shape that multiplies its answer.
        multiplications: number of multiplications in these layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[Tensor] = []
        self.multiplications = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func not in CHANNEL_AXIS:
            return answer
        axis, weight = CHANNEL_AXIS[func], args[1] if len(args) > 1 else (kwargs or {})["weight"]
        shape = [1] * answer.dim()
        shape[axis] = answer.shape[axis]
        factor = answer.new_ones(shape, requires_grad=True)
        self.factors.append(factor)
        self.multiplications += answer.numel() * weight.numel() / answer.shape[axis]
        return answer * factor


class Tf32(TorchFunctionMode):
    """While it is entered, layers multiply numbers of 10 bits, cut off, not rounded: the coarsest that a GPU may do.

    `calls` is the number of layers that did.
    """

    calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return func(*map(cut, args), **{name: cut(value) for name, value in (kwargs or {}).items()})


def cut(values: Any) -> Any:
    """Return a float32 tensor with 10 bits of its values' mantissas, and anything else as it is."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        return values
    return (values.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)


def tf32_error(segmenter: Segmenter, shown: NDArray[np.uint8], probability: NDArray[np.float32]) -> float | None:
    """Return the largest |p - probability| of the network in TF32; None where no layer could be watched.

    `shown` uint8 [height, width, channels] is the picture; its answer is compared where `probability` is.
    """
    _, height, width = probability.shape
    with Tf32() as rounding, torch.inference_mode():
        answer = segmenter(torch.from_numpy(shown[None]))[0, :, :height, :width].numpy()
    error = float(np.abs(answer - probability).max())
    return min(error, 1.0) if rounding.calls and np.isfinite(error) else None


def choose_picture(
    segmenter: Segmenter,
    first: NDArray[np.uint8],
    show: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    candidates: int = CANDIDATES,
) -> NDArray[np.uint8]:
    """Return the picture uint8 [height, width, channels] in which the most channels matter: `first`, or another one.

    `show` maps a picture to what the network is shown. A network without gradients keeps `first`, and a large one is
    shown fewer than `candidates`.
    """
    random = np.random.default_rng(20150518)
    try:
        best, (most, multiplications) = first, _score(segmenter, first, show)
        tried = min(candidates, int(MOST_MULTIPLICATIONS / max(multiplications, 1)))
        for index in range(tried):
            if index < len(SEEDS):
                picture = collage(first.shape, np.random.default_rng(SEEDS[index]))
            else:
                picture = patched(best, collage(first.shape, random), random)
            score, _ = _score(segmenter, picture, show)
            if score > most:
                best, most = picture, score
    except RuntimeError:  # PyTorch's, of networks that run without gradients or whose code breaks them
        return first
    return best


def _score(
    segmenter: Segmenter, picture: NDArray[np.uint8], show: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> tuple[float, float]:
    """Return how many channels matter, as a share from 0 to 2, and the number of multiplications.

    A channel matters by what the answer changes by if the channel is doubled, to first order: the gradient of a sum of
    the answers with random signs, whose expected square is the sum of the squares of all changes. It counts once for
    the tolerance of a CPU, and once for that of a GPU.
    """
    shown = show(picture)
    height, width, _ = picture.shape
    with Channels() as channels, torch.enable_grad():
        answer = segmenter(torch.from_numpy(shown[None]))[0, :, :height, :width]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], answer.shape)
    summed = (answer * torch.from_numpy(signs).to(answer)).sum()
    gradients = torch.autograd.grad(summed, channels.factors, allow_unused=True)
    parts = [one.flatten().abs() for one in gradients if one is not None]
    change = PEAK / answer.numel() ** 0.5 * torch.cat(parts).numpy()
    rounding = tf32_error(segmenter, shown, answer.detach().numpy())
    limits = BACKENDS["cpu"].tolerance, tf32_tolerance(rounding, BACKENDS["cuda"].tolerance)
    return float(sum((change / (change + limit)).mean() for limit in limits)), channels.multiplications


def patched(picture: NDArray[np.uint8], other: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture with a rectangle of another one of the same shape."""
    result = picture.copy()
    rows, columns = _part(picture.shape[0], random), _part(picture.shape[1], random)
    result[rows, columns] = other[rows, columns]
    return result


def _part(whole: int, random: np.random.Generator) -> slice:
    length = int(random.integers(max(1, whole // 8), whole + 1))
    start = int(random.integers(0, whole - length + 1))
    return slice(start, start + length)


def collage(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a picture, uint8 of `shape` (height, width, channels): up to nine textures over one another, and noise."""
    height, width, channels = shape
    picture = texture(height, width, channels, random)
    for _ in range(int(random.integers(0, 9))):
        over = texture(height, width, channels, random)
        rows, columns = _part(height, random), _part(width, random)
        picture[rows, columns] = over[rows, columns]
    noise = random.normal(0, random.choice([0, 2, 8, 20]), picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def texture(height: int, width: int, channels: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw a flat area, a ramp, stripes or blocks between two random colours: [height, width, channels], 0 to 255."""
    kind = random.integers(5)
    low, high = np.sort(random.uniform(0, 255, (2, channels)), axis=0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    angle = random.uniform(0, 2 * np.pi)
    along = y * np.sin(angle) + x * np.cos(angle)
    if kind == 0:
        share = np.full((height, width, 1), random.random())
    elif kind == 1:
        share = ((along - along.min()) / max(float(np.ptp(along)), 1e-6))[:, :, None]
    elif kind == 2:
        period = 2 ** random.uniform(1, 5)
        share = (along % period < period / 2).astype(np.float64)[:, :, None]
    else:
        side = 2 ** int(random.integers(0, 6))
        blocks = random.random((-(-height // side), -(-width // side), channels))
        share = blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
        share = (share > 0.5).astype(np.float64) if kind == 3 else share
    return np.asarray(low + (high - low) * share)
