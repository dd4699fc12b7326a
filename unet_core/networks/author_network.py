"""AuthorNetwork: somebody's network with one output tensor; and what is found out by running it."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.card import CHANNEL_COUNT, MAX_CHANNELS, MAX_CLASSES, InputChannels
from runtime.errors import ConfigError, one_line
from runtime.model_file.golden import synthetic_image
from unet_core.model_options import Inside
from unet_core.networks.whole_picture import NOTICEABLE, change_by_padding

STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Strides that are tried, smallest first."""

TRIED_SIDE = 64
"""Least side of the pictures that strides are tried on, in pixels; networks may refuse smaller ones."""

PADDED_SIDE = 2 * TRIED_SIDE
"""Least side of the pictures that are padded to twice their sides, in pixels: what networks pool by a factor of 32 is
no more than a few values on smaller ones, and tells little."""

CHANNELS = (3, 1, 2, *range(4, MAX_CHANNELS + 1))
"""Numbers of input channels that are tried, in this order: colour, grey, others."""

PICTURE_SCALES = (1.0, 10.0, -10.0)
"""Factors of the noisy pictures that show a network's end: logits leave 0..1 on one of them."""

ROUNDING = 1e-4
"""Most by which rounding takes probabilities out of 0..1, and their sum away from 1."""


class AuthorNetwork(nn.Module):
    """A network whose answer is one tensor: [n, channels, h, w] -> [n, classes, h, w].

    `key` chooses among several outputs: a key of a mapping, the name of an attribute, or the index in a sequence.
    With `gives_probabilities` the network ends in its own sigmoid or softmax.
    """

    def __init__(self, network: nn.Module, *, key: str | None = None, gives_probabilities: bool = False) -> None:
        super().__init__()
        self.network = network
        self.key = key
        self.gives_probabilities = gives_probabilities

    def forward(self, x: Tensor) -> Tensor:
        answer = self.network(x)
        if isinstance(answer, Tensor):
            return answer
        if isinstance(answer, Mapping):
            return found_in(answer, self.key)
        if isinstance(answer, Sequence):
            return found_in({str(index): value for index, value in enumerate(answer)}, self.key)
        return found_in(vars(answer), self.key)


def found_in(outputs: Mapping[str, Any], key: str | None) -> Tensor:
    """Return the tensor `key` of several outputs, or the only one.

    Raises:
        ConfigError: there is no such output, or it is no tensor, or there are several and no key.
    """
    tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
    if key is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if key not in tensors:
        found = ", ".join(tensors) or "no tensors"
        told = f"--output-key {key}: is none of the network's outputs" if key else "--network: has several outputs"
        raise ConfigError(f"{told}; found {found}; give one of them by --output-key")
    return tensors[key]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a network that running it shows.

    Attributes:
        in_channels: channels of its input.
        classes: channels of its output.
        stride: the smallest number of which height and width have to be multiples.
        min_size: (height, width) of the smallest picture that it takes, multiples of the stride.
        change_by_padding: see `unet_core.networks.whole_picture`; infinite if it takes no larger pictures.
        looks_like: the end that its answers look like: logits leave 0..1, classes of a softmax sum to 1.
        answers: (lowest, highest) of the answers that show it.
    """

    in_channels: int
    classes: int
    stride: int
    min_size: tuple[int, int]
    change_by_padding: float = 0.0
    looks_like: Inside = "logits"
    answers: tuple[float, float] = field(default=(0.0, 0.0), compare=False)

    @property
    def padded(self) -> bool:
        """False if padding changes answers far from it, too."""
        return self.change_by_padding <= NOTICEABLE


def examine(
    network: AuthorNetwork,
    *,
    stride: int | None = None,
    channels: InputChannels = "raw",
    only: tuple[int, int] | None = None,
) -> Facts:
    """Run a network on pictures of several sizes, to find out what it takes and gives.

    With `channels` "RGB" or "L" it is tried with that many, else with all of `CHANNELS`. If it takes pictures of
    the size `only`, (height, width), no other size is tried, and none need be taken.

    Raises:
        ConfigError: it takes no such pictures, answers something other than a map of the same size, or answers the same
            picture in two ways.
    """
    counts = (CHANNEL_COUNT[channels],) if channels in CHANNEL_COUNT else CHANNELS
    if only is not None and any(runs(network, count, *only) for count in counts):
        stride, (height, width) = stride or 1, only
    else:
        only = None
        height = width = max(STRIDES) if stride is None else stride * -(-TRIED_SIDE // stride)
    in_channels, answer = first_answer(network, (height, width), counts)
    if answer.dim() != 4 or answer.shape[2:] != (height, width) or not 1 <= answer.shape[1] <= MAX_CLASSES:
        raise ConfigError(
            f"--network: answers {list(answer.shape)} to pictures of [1, {in_channels}, {height}, {width}], expected "
            f"[1, classes, {height}, {width}]; if it has several outputs, choose another one by --output-key"
        )
    if not answer.is_floating_point():
        raise ConfigError(f"--network: answers {answer.dtype}, expected logits or probabilities as floating point")
    if not answer.isfinite().all():
        raise ConfigError(
            "--network: answers NaN or infinity to a noisy picture of values in 0..1, expected finite numbers; are its "
            "weights those of a trained network?"
        )
    if not torch.equal(answer, answer_of(network, in_channels, height, width)):
        raise ConfigError(
            "--network: answers the same picture in two ways; expected none of dropout, noise or other randomness in "
            "evaluation mode"
        )
    if stride is None:
        stride = next(one for one in STRIDES if one == max(STRIDES) or takes(network, in_channels, one))
    if only is not None:
        min_size, change = only, 0.0  # pictures of that size need no padding
    else:
        min_size = smallest(network, in_channels, stride)
        change = padding_matters(network, in_channels, max(stride * -(-PADDED_SIDE // stride), *min_size))
    shown = torch.cat([answer_of(network, in_channels, height, width, scale).float() for scale in PICTURE_SCALES])
    return Facts(
        in_channels=in_channels,
        classes=answer.shape[1],
        stride=stride,
        min_size=min_size,
        change_by_padding=change,
        looks_like=end_of(shown),
        answers=(float(shown.min()), float(shown.max())),
    )


def end_of(answers: Tensor) -> Inside:
    """Return the end that answers [n, classes, h, w] look like."""
    if not bool(((answers >= -ROUNDING) & (answers <= 1 + ROUNDING)).all()):
        return "logits"
    if answers.shape[1] == 1:
        return "sigmoid"
    return "softmax" if bool(((answers.sum(dim=1) - 1).abs() <= ROUNDING).all()) else "sigmoids"


def require_end(facts: Facts, told: Inside | None) -> None:
    """Compare a network's answers with what a user told of its end; nothing is asked about logits, told or not.

    Raises:
        ConfigError: the answers look like probabilities, and nothing was told; or they are none, though it was told.
    """
    found = facts.looks_like
    if told is None and found != "logits":
        sums = " that sum to 1" if found == "softmax" else ""
        lowest, highest = facts.answers
        raise ConfigError(
            f"--network: answers values in 0..1{sums} ({lowest:.3g} to {highest:.3g}), as if it ended in its own "
            f"{found}; give --activation {found} if it does, or --activation logits if it does not"
        )
    if told in (None, "logits", "none"):
        return
    if found == "logits":
        lowest, highest = facts.answers
        raise ConfigError(
            f"--activation {told}: the network answers {lowest:.3g} to {highest:.3g}, expected probabilities in 0..1; "
            "give --activation logits"
        )
    if told == "softmax" and found == "sigmoids":
        raise ConfigError(
            "--activation softmax: the classes of a pixel do not sum to 1 in the network's answers; give --activation "
            "sigmoids if each class is by itself"
        )


def padding_matters(network: AuthorNetwork, channels: int, side: int) -> float:
    """Return `change_by_padding` of a network on a synthetic picture; infinity if it takes none of twice that side."""
    picture = torch.from_numpy(synthetic_image(side, side, channels, seed=0)).permute(2, 0, 1)[None].float() / 255
    try:
        return change_by_padding(network, picture)
    except Exception:  # of any type: it is the author's code
        return float("inf")


def first_answer(network: AuthorNetwork, size: tuple[int, int], counts: Sequence[int] = CHANNELS) -> tuple[int, Tensor]:
    """Return the number of channels, one of `counts`, that a network takes, and its answer to such a picture."""
    errors = {}
    for channels in counts:
        try:
            return channels, answer_of(network, channels, *size)
        except ConfigError:
            raise
        except Exception as error:  # of any type: it is the author's code
            errors[channels] = f"{type(error).__name__}: {one_line(str(error))[:200]}"
    # The first convolution tells which of the errors is about something else than the number of channels.
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((module for module in network.modules() if isinstance(module, kinds)), None)
    if isinstance(first, nn.Conv3d):
        raise ConfigError(
            "--network: begins with a 3D convolution, so it segments volumes; expected a network of pictures, which "
            "takes [n, channels, height, width]"
        )
    types = sorted({str(one.dtype).removeprefix("torch.") for one in network.parameters() if one.is_floating_point()})
    if types not in ([], ["float32"]):
        raise ConfigError(
            f"--network: its weights are {' and '.join(types)}, expected float32; call .float() on the network"
        )
    likely = getattr(first, "in_channels", None)
    told = likely if likely in errors else counts[0]
    tried = f"{min(counts)} to {max(counts)} channels" if len(counts) > 1 else f"{told} channel{'s' * (told > 1)}"
    raise ConfigError(
        f"--network: takes no pictures of {tried}: to [1, {told}, {size[0]}, {size[1]}] it raises {errors[told]}; if "
        "its sides need another divisor, give --stride; if it takes one size only, --fixed-size"
    )


def answer_of(network: AuthorNetwork, channels: int, height: int, width: int, scale: float = 1.0) -> Tensor:
    """Run a network on a fixed noisy picture of this size, its values in 0..1 times `scale`."""
    picture = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer: Tensor = network(scale * picture)
    return answer


def runs(network: AuthorNetwork, channels: int, height: int, width: int) -> bool:
    """Return True if a network answers a picture of this size with a map of the same size."""
    try:
        return tuple(answer_of(network, channels, height, width).shape[2:]) == (height, width)
    except Exception:
        return False


def takes(network: AuthorNetwork, channels: int, stride: int) -> bool:
    """Return True if a network takes sides that are odd multiples of the stride."""
    odd = -(-TRIED_SIDE // stride) | 1
    return all(runs(network, channels, stride * a, stride * b) for a, b in ((odd, odd + 2), (odd + 2, odd)))


def smallest(network: AuthorNetwork, channels: int, stride: int) -> tuple[int, int]:
    """Find the smallest (height, width), multiples of the stride, that a network takes.

    That is a square, unless height and width have limits of their own.
    """
    step = stride * -(-TRIED_SIDE // stride)
    side = stride
    while not runs(network, channels, side, side):
        side += stride if side < TRIED_SIDE else step
        if side > 8 * max(TRIED_SIDE, stride):
            raise ConfigError(f"--network: takes no picture whose sides are multiples of --stride {stride}")
    smaller = range(1, side // stride)  # in strides; beside a long side, a short one may be enough
    height = stride * (
        1 + bisect_left(smaller, True, key=lambda many: runs(network, channels, many * stride, 2 * side))
    )
    width = stride * (1 + bisect_left(smaller, True, key=lambda many: runs(network, channels, 2 * side, many * stride)))
    return (height, width) if runs(network, channels, height, width) else (side, side)
