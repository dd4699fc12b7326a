"""Values of a graph as rows, [places, channels], for the convolutions of `export.winograd.transform`.

The graph computes the row of a pixel from its coordinates. So batch, height and width stay free, and re-ordering pixels
only computes other indices: no value is moved for its own sake.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OUTSIDE = 2**40
"""Added to the index of a pixel outside of the picture, so that the zero row's index is the smaller one."""

BODY = "block"
"""Part of the names of nodes in a graph within the graph."""


class Builder:
    """Nodes and constants of a graph under construction; the same operator on the same values is made once."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Start with no nodes; `names` are taken already."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.scope = ""
        self._names = set(names)
        self._constants: dict[Any, str] = {}
        self._made: dict[Any, str] = {}

    def named(self, word: str) -> str:
        """Return a new name that begins with the current layer's."""
        stem = f"{self.scope}.{word}"
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([stem], numbered) if name not in self._names)
        self._names.add(name)
        return name

    def constant(self, values: Any, word: str = "constant") -> str:
        """Add a constant, or find an equal one; return its name."""
        array = np.asarray(values, order="C")
        key = (array.dtype.str, array.shape, hashlib.sha256(array.data).digest())
        if key not in self._constants:
            name = self.named(word)
            self.constants[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def op(self, kind: str, *inputs: str | int, **attributes: Any) -> str:
        """Add a node, or find an equal one; return the name of its output. A number stands for an int64 constant."""
        values = [self.constant(np.int64(value)) if isinstance(value, int) else value for value in inputs]
        key = (kind, *values, repr(sorted(attributes.items())))
        if key not in self._made:
            name = self.named(kind.lower())
            self.nodes.append(helper.make_node(kind, values, [name], name=name, **attributes))
            self._made[key] = name
        return self._made[key]

    def reshaped(self, value: str, *shape: int) -> str:
        """Reshape a value; in `shape` 0 keeps a side and -1 takes the rest."""
        return self.op("Reshape", value, self.constant(np.array(shape, np.int64), "shape"))

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes added in this block for a graph within the graph; they can read what was made before."""
        nodes, made, scope = self.nodes, dict(self._made), self.scope
        self.nodes, self.scope = [], f"{scope}.{BODY}"
        try:
            yield self.nodes
        finally:
            self.nodes, self._made, self.scope = nodes, made, scope


Coordinate = Callable[..., str]
"""Function from the names of int64 coordinates to the name of their share of a row's index."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Pictures as rows float32 [places, channels].

    `batch`, `height`, `width` and `places` are the names of int64 scalars in the graph. The index of a pixel's row is
    `of_line(picture, y) + of_x(x)`. If `padded`, the last row is zero and belongs to no pixel.
    """

    value: str
    channels: int
    batch: str
    height: str
    width: str
    places: str
    padded: bool
    of_line: Coordinate
    of_x: Coordinate


def to_rows(b: Builder, value: str, channels: int) -> Rows:
    """Turn pictures [batch, channels, height, width] into rows, line by line."""
    batch, height, width = (b.op("Squeeze", b.op("Shape", value, start=side, end=side + 1)) for side in (0, 2, 3))
    flat = b.reshaped(b.op("Transpose", value, perm=[0, 2, 3, 1]), -1, channels)
    return in_lines(b, flat, channels, batch, height, width, padded=False)


def in_lines(b: Builder, value: str, channels: int, batch: str, height: str, width: str, *, padded: bool) -> Rows:
    """Describe rows that stand line by line, one picture after the other."""
    pixels = b.op("Mul", b.op("Mul", batch, height), width)
    return Rows(
        value=value,
        channels=channels,
        batch=batch,
        height=height,
        width=width,
        places=b.op("Add", pixels, 1) if padded else pixels,
        padded=padded,
        of_line=lambda picture, y: b.op("Mul", b.op("Add", b.op("Mul", picture, height), y), width),
        of_x=lambda x: x,
    )


def joined(b: Builder, parts: Sequence[Rows]) -> tuple[str, list[str | int], str]:
    """Put the rows of all parts, which have equally many channels, below one another.

    Returns the rows, the index where each part begins, and the index of the last row. That row is zero: it belongs to a
    padded part, or was added.
    """
    begins: dict[int, str | int] = {}
    places: str | int = 0
    ordered = sorted(range(len(parts)), key=lambda index: parts[index].padded)
    for index in ordered:
        begins[index] = places
        places = b.op("Add", parts[index].places, places) if places else parts[index].places
    values = [parts[index].value for index in ordered]
    last = places
    if parts[ordered[-1]].padded:
        last = b.op("Sub", places, 1)
    else:
        values.append(b.constant(np.zeros((1, parts[0].channels), np.float32), "zeros"))
    value = values[0] if len(values) == 1 else b.op("Concat", *values, axis=0)
    return value, [begins[index] for index in range(len(parts))], str(last)


def row_indices(b: Builder, rows: Rows, begin: str | int, last: str, picture: str, y: str, x: str) -> str:
    """Compute the int64 indices of pixels in rows that begin at `begin`; pixels outside of the picture get `last`.

    Coordinates broadcast against one another.
    """
    line, column = (
        b.op("Where", b.op("And", b.op("GreaterOrEqual", at, 0), b.op("Less", at, side)), index, OUTSIDE)
        for at, side, index in ((y, rows.height, rows.of_line(picture, y)), (x, rows.width, rows.of_x(x)))
    )
    return b.op("Min", b.op("Add", b.op("Add", line, begin) if begin else line, column), last)


def line_indices(b: Builder, rows: Rows, step: int = 1, first: tuple[int, int] = (0, 0)) -> str:
    """Compute the indices [pixels] of every `step`-th pixel of every `step`-th line, line by line."""
    picture = b.reshaped(b.op("Range", 0, rows.batch, 1), -1, 1, 1)
    y, x = (
        b.op("Add", b.op("Mul", b.op("Range", 0, b.op("Div", side, step), 1), step), start)
        for side, start in zip((rows.height, rows.width), first, strict=True)
    )
    return b.reshaped(b.op("Add", rows.of_line(picture, b.reshaped(y, -1, 1)), rows.of_x(x)), -1)


def with_last_row(b: Builder, rows: Rows, indices: str) -> str:
    """Append the index of the last row if the rows are padded."""
    if not rows.padded:
        return indices
    return b.op("Concat", indices, b.reshaped(b.op("Sub", rows.places, 1), 1), axis=0)


def to_pictures(b: Builder, rows: Rows) -> str:
    """Turn rows into pictures [batch, channels, height, width]."""
    flat = b.op("Gather", rows.value, line_indices(b, rows), axis=0)
    sides = [b.reshaped(side, 1) for side in (rows.batch, rows.height, rows.width)]
    shape = b.op("Concat", *sides, b.constant(np.array([rows.channels])), axis=0)
    return b.op("Transpose", b.op("Reshape", flat, shape), perm=[0, 3, 1, 2])


def pooled(b: Builder, rows: Rows) -> Rows:
    """Take the largest of each 2x2 pixels; of an odd side, the last pixel is left out."""
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = [
        b.op("Gather", rows.value, with_last_row(b, rows, line_indices(b, rows, 2, corner)), axis=0)
        for corner in corners
    ]
    height, width = (b.op("Div", side, 2) for side in (rows.height, rows.width))
    return in_lines(b, b.op("Max", *found), rows.channels, rows.batch, height, width, padded=rows.padded)


def transposed(b: Builder, rows: Rows, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Rows:
    """Apply a transposed convolution of 2x2 with stride 2; weight is [in, out, 2, 2], bias [out].

    The four results of a pixel lie side by side in a row of 4 * out; arithmetic on indices finds their places.
    """
    channels, out = weight.shape[:2]
    lines = b.op("Gather", rows.value, line_indices(b, rows), axis=0)
    factor = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(channels, 4 * out)
    factors = [b.constant(factor, "weight")]
    if bias is not None:
        factors.append(b.constant(np.tile(bias, 4), "bias"))
    value = b.op("Gemm", lines, *factors)

    def of_line(picture: str, y: str) -> str:
        above = b.op("Add", b.op("Mul", picture, rows.height), b.op("Div", y, 2))
        return b.op("Add", b.op("Mul", above, b.op("Mul", rows.width, 4)), b.op("Mul", b.op("Mod", y, 2), 2))

    def of_x(x: str) -> str:
        return b.op("Add", b.op("Mul", b.op("Div", x, 2), 4), b.op("Mod", x, 2))

    height, width = (b.op("Mul", side, 2) for side in (rows.height, rows.width))
    return Rows(
        value=b.reshaped(value, -1, out),
        channels=out,
        batch=rows.batch,
        height=height,
        width=width,
        places=b.op("Mul", b.op("Mul", rows.batch, height), width),
        padded=False,
        of_line=of_line,
        of_x=of_x,
    )
