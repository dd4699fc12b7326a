"""The values of a graph on real images: their extremes, and the ranges that int8 is calibrated on."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.proof import open_graph
from export.samples import Examples, FittedImage
from unet_core.reporting.progress import Display

PERCENTILE = 99.99
"""Percentile of a value's elements in a picture; rarer ones are clipped when the value is held in 8 bits."""

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


def calibrate(
    model: onnx.ModelProto, names: Sequence[str], pictures: Examples, display: Display
) -> tuple[Ranges, Ranges]:
    """Return two ranges of each named value: mean and widest, over the pictures, of where 99.99 % of its elements are.

    The mean is finer, but clips what only few pictures show.
    """
    observed = observer(model, names, [])
    bounds = [
        [np.percentile(value, [100 - PERCENTILE, PERCENTILE]) for value in observed(pictures[index][0])]
        for index in display.through(range(len(pictures)), "calibrating", len(pictures))
    ]
    lows, highs = np.moveaxis(np.array(bounds), 2, 0)  # each [pictures, names]
    means = zip(lows.mean(axis=0).tolist(), highs.mean(axis=0).tolist(), strict=True)
    widest = zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True)
    return dict(zip(names, means, strict=True)), dict(zip(names, widest, strict=True))


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
