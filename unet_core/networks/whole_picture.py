"""Networks that look at the whole picture at once, found by running them.

Padding a picture changes a convolution's answers near the padding. It changes all answers of a network that normalises
over the picture (InstanceNorm, GroupNorm), pools it to one value (squeeze-and-excite, ASPP) or lets each pixel attend
to all others. Two things have to be true of such a network:

1. An operator spans the picture: with sides twice as long it adds up, normalises or compares more values, or makes more
   coordinates. Numbers alone could not tell this from a deep network of convolutions, which see hundreds of pixels far.
2. It matters: where a picture is continued by repeating its edge, answers far from there change by more than
   `NOTICEABLE` of their range. A branch that the answer does not depend on, or hardly, is no reason to refuse sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NOTICEABLE = 1e-3
"""Change of an answer far from the padding, as a share of the range of all answers, from which on it counts."""

GROWTH = 1.5
"""Factor by which an operator that spans the picture sees more, where both sides of a picture are twice as long."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
"""Operators that multiply matrices, the last two after adding a bias."""

ALONG = ("softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "fft", "flip", "roll")
"""Parts of the names of operators that keep a shape and mix the values along some axes."""

COORDINATES = ("linspace", "arange", "affine_grid_generator")
"""Operators that make coordinates of pixels, so that each pixel knows its place in the picture."""

CHOOSING = ("slice", "select", "index", "gather", "split", "chunk", "unbind", "narrow", "as_strided", "view", "expand")
"""Parts of the names of operators that choose values without computing any."""


class SpanRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records `span_of` every operator that runs within its block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spans: list[float] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        names = [argument.name for argument in function._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        self.spans.append(span_of(function._schema.name.partition("::")[2], given, answer))
        return answer


def span_of(name: str, given: Mapping[str, Any], answer: Any) -> float:
    """Return how many values an operator adds up, normalises, compares, or makes as coordinates; 1 for all others.

    Args:
        name: its name in PyTorch, without "aten::".
        given: its arguments by name.
        answer: what it returned.
    """
    made = answer[0] if isinstance(answer, tuple | list) else answer
    if name in COORDINATES and isinstance(made, Tensor):
        return float(made.numel())
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    if not tensors or any(part in name for part in CHOOSING):
        return 1
    first = tensors[0]
    if name in PRODUCTS:
        return tensors[-2].shape[-1]
    if "attention" in name:
        return tensors[1].shape[-2]
    if "group_norm" in name or ("batch_norm" in name and given.get("training")):
        return first.shape[2:].numel()
    if "layer_norm" in name:
        return float(torch.Size(given["normalized_shape"]).numel())
    if any(part in name for part in ALONG):
        axes = given.get("dim", given.get("dims", range(first.dim())))
        return float(
            torch.Size([first.shape[axis] for axis in (axes if isinstance(axes, Sequence) else [axes])]).numel()
        )
    if "conv" in name and isinstance(given.get("weight"), Tensor):
        return float(given["weight"].shape[2:].numel())  # a kernel may be as large as the picture
    if "conv" in name or not isinstance(made, Tensor) or not made.numel():
        return 1
    return max(1.0, first.numel() / made.numel())


def change_by_padding(run: Callable[[Tensor], Tensor], picture: Tensor) -> float:
    """Return how much padding changes answers far from it, as a share of their range; 0 if no operator spans a picture.

    Args:
        run: a network, float32 [1, channels, h, w] -> [1, classes, h, w].
        picture: float32 [1, channels, h, w]; it is continued to twice its height and width.
    """
    height, width = picture.shape[2:]
    longer = torch.nn.functional.pad(picture, (0, width, 0, height), mode="replicate")
    answers, spans = [], []
    for one in (picture, longer):
        with torch.no_grad(), SpanRecorder() as recorder:
            answers.append(run(one).float())
        spans.append(recorder.spans)
    grows = [many > GROWTH * few for few, many in zip(*spans, strict=False)]
    if len(spans[0]) == len(spans[1]) and not any(grows):
        return 0.0
    far = (..., slice(height // 2), slice(width // 2))
    extent = float(answers[0].max() - answers[0].min())
    return float((answers[0][far] - answers[1][far]).abs().max()) / max(extent, torch.finfo(torch.float32).tiny)
