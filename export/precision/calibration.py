"""The values of a graph on real images: their extremes, and the ranges that int8 is calibrated on."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.proof import open_graph
from export.samples import FittedImage
from unet_core.reporting.progress import Display

PERCENTILE = 99.99
"""Percentile of a value's elements in a picture; rarer ones are clipped when the value is held in 8 bits."""

SAMPLED = 61
"""Distance of the elements that show about where the rare ones begin; prime, so they are of all columns."""

Ranges = Mapping[str, tuple[float, float]]
"""Calibrated (lowest, highest) of each value, by its name."""


def extremes(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[FittedImage]) -> dict[str, float]:
    """Return the largest |value| of each named value over some pictures."""
    # The graph computes it, since the values themselves may take gigabytes.
    nodes = [
        node
        for name in names
        for node in (
            helper.make_node("Abs", [name], [f"{name}.abs"]),
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.largest"], keepdims=0),
        )
    ]
    observed = observer(model, [f"{name}.largest" for name in names], nodes)
    largest = np.max([observed(picture) for picture in pictures], axis=0)
    return dict(zip(names, largest.tolist(), strict=True))


class Calibration(NamedTuple):
    """Two ranges of each value, and the answers (probability [classes, height, width]) to the pictures they are from.

    The ranges are mean and widest, over the pictures, of where 99.99 % of a value's elements are. The mean is finer,
    but clips what only few pictures show.
    """

    mean: Ranges
    widest: Ranges
    answers: list[NDArray[np.float32]]


def calibrate(
    model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[FittedImage], display: Display
) -> Calibration:
    """Find the ranges of the named values on some pictures."""
    observed = observer(model, [*names, "probability"], [])
    bounds, answers = [], []
    for picture in display.through(pictures, "calibrating", len(pictures)):
        *values, probability = observed(picture)
        bounds.append([common_range(value) for value in values])
        answers.append(probability[0])
    lows, highs = np.moveaxis(np.array(bounds), 2, 0)  # each [pictures, names]
    means = zip(lows.mean(axis=0).tolist(), highs.mean(axis=0).tolist(), strict=True)
    widest = zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True)
    return Calibration(dict(zip(names, means, strict=True)), dict(zip(names, widest, strict=True)), answers)


def common_range(value: NDArray[np.float32]) -> tuple[float, float]:
    """Return where 99.99 % of an array's elements are: the percentiles of `np.percentile`, in a fifth of its time."""
    flat = value.ravel()
    rank = (1 - PERCENTILE / 100) * (flat.size - 1)
    return element_at(flat, rank), -element_at(-flat, rank)


def element_at(flat: NDArray[np.float32], rank: float) -> float:
    """Return the element of a small rank (0: the smallest), or what is between two; only few are put in order."""
    few = min(int(rank) + 2, flat.size)
    part = flat[::SAMPLED]
    place = min(part.size - 1, 2 * few // SAMPLED + 8)
    limit, smallest = np.partition(part, place)[place], flat.min()
    if limit == smallest and np.count_nonzero(flat == smallest) >= few:  # as the zeros of a ReLU
        return float(smallest)
    near = flat[flat <= limit]
    near = near if near.size >= few else flat
    ordered = np.partition(near, (int(rank), few - 1))
    low, high = float(ordered[int(rank)]), float(ordered[few - 1])
    return low + (rank - int(rank)) * (high - low)


def observer(
    model: onnx.ModelProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto]
) -> Callable[[FittedImage], list[NDArray[np.float32]]]:
    """Return the function from a picture to the named values of a graph with some more nodes."""
    extended = copy.deepcopy(model)
    extended.graph.node.extend(nodes)
    del extended.graph.output[:]
    extended.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_graph(extended)
    batch = session.get_inputs()[0].shape[0]
    count = batch if isinstance(batch, int) else 1

    def observed(picture: FittedImage) -> list[NDArray[np.float32]]:
        # Repeats, which a file of one shape may need, change neither extremes nor percentiles.
        values: list[NDArray[np.float32]] = session.run(list(names), {"image": np.repeat(picture[None], count, axis=0)})
        return values

    return observed
