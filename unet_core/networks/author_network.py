"""AuthorNetwork: somebody's network with one output tensor; and what is found out by running it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.card import MAX_CLASSES
from runtime.errors import ConfigError, one_line

STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Strides that are tried, smallest first."""

TRIED_SIDE = 64
"""Least side of the pictures that strides are tried on, in pixels; networks may refuse smaller ones."""

CHANNELS = (3, 1)
"""Numbers of input channels that are tried: colour, then grey."""


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
    """

    in_channels: int
    classes: int
    stride: int
    min_size: tuple[int, int]


def examine(network: AuthorNetwork, *, stride: int | None = None) -> Facts:
    """Run a network on pictures of several sizes, to find out what it takes and gives.

    Raises:
        ConfigError: it takes neither colour nor grey pictures, answers something other than a map of the same size, or
            answers the same picture in two ways.
    """
    sure = max(STRIDES) if stride is None else stride * -(-TRIED_SIDE // stride)
    in_channels, answer = first_answer(network, sure)
    if answer.dim() != 4 or answer.shape[2:] != (sure, sure) or not 1 <= answer.shape[1] <= MAX_CLASSES:
        raise ConfigError(
            f"--network: answers {list(answer.shape)} to pictures of [1, {in_channels}, {sure}, {sure}], expected "
            f"[1, classes, {sure}, {sure}]; if it has several outputs, choose another one by --output-key"
        )
    if not answer.is_floating_point():
        raise ConfigError(f"--network: answers {answer.dtype}, expected logits or probabilities as floating point")
    if not torch.equal(answer, answer_of(network, in_channels, sure, sure)):
        raise ConfigError(
            "--network: answers the same picture in two ways; expected none of dropout, noise or other randomness in "
            "evaluation mode"
        )
    if stride is None:
        stride = next(one for one in STRIDES if one == max(STRIDES) or takes(network, in_channels, one))
    return Facts(
        in_channels=in_channels,
        classes=answer.shape[1],
        stride=stride,
        min_size=smallest(network, in_channels, stride),
    )


def first_answer(network: AuthorNetwork, side: int) -> tuple[int, Tensor]:
    """Return the number of channels that a network takes, and its answer to such a picture."""
    errors = []
    for channels in CHANNELS:
        try:
            return channels, answer_of(network, channels, side, side)
        except ConfigError:
            raise
        except Exception as error:  # of any type: it is the author's code
            errors.append(f"{type(error).__name__}: {one_line(str(error))[:200]}")
    raise ConfigError(
        f"--network: takes neither pictures of [1, 3, {side}, {side}] ({errors[0]}) nor of [1, 1, {side}, {side}] "
        f"({errors[1]}); if its sides need another divisor, give --stride"
    )


def answer_of(network: AuthorNetwork, channels: int, height: int, width: int) -> Tensor:
    """Run a network on a fixed noisy picture of this size."""
    picture = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer: Tensor = network(picture)
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
    """Find the smallest square, of sides that are multiples of the stride, that a network takes."""
    side = stride
    while not runs(network, channels, side, side):
        side += stride if side < TRIED_SIDE else TRIED_SIDE
        if side > 8 * max(TRIED_SIDE, stride):
            raise ConfigError(f"--network: takes no picture whose sides are multiples of --stride {stride}")
    return side, side
