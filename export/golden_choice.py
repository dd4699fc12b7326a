"""The pictures of a golden sample, chosen so that every channel of the network shows in their answers.

A device that computes a channel wrongly is found only where this changes the answer by more than a device may be off.
So the pictures are taken, of some synthetic ones, in which that is so for the most channels.
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

PICTURES = 3
"""Number of pictures of a sample."""

CANDIDATES = 12
"""Number of pictures that they are chosen from, beside the usual one."""

DRAWS = 2
"""Number of random signs by which changes are estimated."""

MOST_MULTIPLICATIONS = 10e9
"""Limit of multiplications on all candidates, which keeps the choice below two seconds; a U-Net of widths 16 to 128 has
3e8 on one of them."""

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
        named = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
        shape = [1] * answer.dim()
        shape[CHANNEL_AXIS[func]] = answer.shape[CHANNEL_AXIS[func]]
        factor = answer.new_ones(shape, requires_grad=True)
        self.factors.append(factor)
        many = named["input"] if "transpose" in func.__name__ else answer
        self.multiplications += many.numel() * named["weight"].numel() / named["weight"].shape[0]
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


def choose_pictures(
    segmenter: Segmenter,
    first: NDArray[np.uint8],
    show: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    candidates: int = CANDIDATES,
) -> list[NDArray[np.uint8]]:
    """Choose `PICTURES` pictures uint8 [height, width, channels], best first, of `first` and some `candidates`.

    The first choice is the picture in which the most channels matter, and each further one adds the most to those
    before it. `show` maps a picture to what the network is shown. For a large network, and for one without gradients,
    the first few are taken as they come; without candidates, `first` alone.
    """
    if not candidates:
        return [first]
    others = [collage(first.shape, np.random.default_rng(seed)) for seed in range(candidates)]
    try:
        visible, multiplications = visible_channels(segmenter, first, show)
        others = others[: max(PICTURES - 1, int(MOST_MULTIPLICATIONS / max(multiplications, 1)))]
        pictures, found = [first, *others], [visible]
        if len(pictures) <= PICTURES:
            return pictures
        found += [visible_channels(segmenter, picture, show)[0] for picture in others]
    except (RuntimeError, ValueError):  # PyTorch's, of networks that run without gradients or hide their layers
        return [first, *others[: PICTURES - 1]]
    chosen: list[NDArray[np.uint8]] = []
    seen = np.zeros_like(visible)
    for _ in range(PICTURES):
        together = [np.maximum(seen, one).mean() for one in found]
        best = int(np.argmax(together))
        chosen.append(pictures.pop(best))
        seen = np.maximum(seen, found.pop(best))
    return chosen


def visible_channels(
    segmenter: Segmenter, picture: NDArray[np.uint8], show: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], float]:
    """Return how well each channel shows in the answer to a picture, 0 to 1, and the number of multiplications.

    It is half where the answer changes, if the channel is doubled, by what passes on a device: once for CPUs, once for
    GPUs. The change is one of first order, by the gradient of a sum of all answers with random signs: its expected
    square is the sum of the squares of all changes.
    """
    shown = show(picture)
    height, width, _ = picture.shape
    with Channels() as channels, torch.enable_grad():
        answer = segmenter(torch.from_numpy(shown[None]))[0, :, :height, :width]
    random, squares = np.random.default_rng(0), torch.zeros(1)
    for _ in range(DRAWS):
        signs = torch.from_numpy(random.choice([-1.0, 1.0], answer.shape)).to(answer)
        gradients = torch.autograd.grad((answer * signs).sum(), channels.factors, retain_graph=True, allow_unused=True)
        squares = squares + torch.cat([one.flatten() ** 2 for one in gradients if one is not None]) / DRAWS
    change = PEAK * (squares / answer.numel()).sqrt().numpy()
    visible = np.concatenate([change / (change + BACKENDS[kind].tolerance) for kind in ("cpu", "cuda")])
    return np.nan_to_num(visible).astype(np.float32), channels.multiplications


def collage(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a picture, uint8 of `shape` (height, width, channels): up to nine textures over one another, and noise.

    Without noise, a network that normalises over the picture might divide by a deviation of rounding alone.
    """
    height, width, channels = shape
    picture = texture(height, width, channels, random)
    for _ in range(int(random.integers(0, 9))):
        over = texture(height, width, channels, random)
        rows, columns = _part(height, random), _part(width, random)
        picture[rows, columns] = over[rows, columns]
    noise = random.normal(0, random.choice([2, 8, 20]), picture.shape)
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


def _part(whole: int, random: np.random.Generator) -> slice:
    length = int(random.integers(max(1, whole // 8), whole + 1))
    start = int(random.integers(0, whole - length + 1))
    return slice(start, start + length)
