"""A graph for CPUs: 3x3 convolutions by Winograd's minimal filtering, in standard ONNX operators.

A convolution of F(m x m, 3 x 3) computes m x m outputs of a channel from a tile of (m + 2) x (m + 2) inputs with
(m + 2)^2 multiplications instead of 9 m^2: 36 instead of 144 for m = 4 (Lavin & Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). With tiles d, filters g and results y of one channel each,

    y = A' [(G g G') * (B' d B)] A

What makes it fast in ONNX Runtime is the form, which docs/winograd.md draws: values are *rows* (`row_layout.py`); one
Gather undoes the tiles of the layer before and makes those of the next, padding included; and a Scan does so many
tiles at a time that they stay in the caches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.winograd.row_layout import BODY, Builder, Rows, joined, picture_of, pooled, rows_of, table_of, transposed

Form = Literal["direct", "f4", "f4-few", "f2-few"]
"""How a convolution is computed: as it is, by F(4x4, 3x3), or by F(4x4, 3x3) or F(2x2, 3x3) where tiles are few.

The factors of a product are the tiles and the filters. ONNX Runtime packs the second one at every call; where tiles are
few, that is them.
"""

FORMS: tuple[Form, ...] = get_args(Form)

TILE: Mapping[Form, int] = {"f2-few": 2, "f4": 4, "f4-few": 4}

BLOCK = 40_000
"""Channels, in and out, times tiles that are computed at a time: 36 values of each are 5.8 MB."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One of 3x3 with padding 1: weight float32 [out, in, 3, 3], bias float32 [out]; `block` as `BLOCK`."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    relu: bool
    form: Form
    block: int

    @property
    def tile(self) -> int:
        return TILE[self.form]

    @property
    def out(self) -> int:
        return int(self.weight.shape[0])

    @property
    def channels(self) -> int:
        return int(self.weight.shape[1])


def matrices(tile: int) -> tuple[Array, Array, Array]:
    """B' [m + 2, m + 2], G [m + 2, 3], A' [m, m + 2] for m of 2 or 4: points 0, 1, -1 (, 2, -2) and infinity."""
    if tile == 2:
        inputs = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
        filters = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]
        outputs = [[1, 1, 1, 0], [0, 1, -1, -1]]
    else:
        inputs = [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
        filters = [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
        outputs = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    return np.array(inputs, np.float64), np.array(filters, np.float64), np.array(outputs, np.float64)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The tiles of all pictures: so many `down` and `across` each; `blocks` of as `many` whole lines of tiles each.

    All but `tile` are the names of int64 scalars in the graph.
    """

    tile: int
    down: str
    across: str
    blocks: str
    many: str


def convolved(b: Builder, parts: Sequence[Rows], layer: Convolution) -> Rows:
    """The convolution over the channels of all parts, which are equally many each."""
    tile, grid = layer.tile, _grid_of(b, parts[0], layer)
    whole, begins, last = joined(b, parts)
    table = _table(b, parts, begins, last, grid)
    size = b.op("Mul", grid.many, grid.across)  # of a block, in tiles

    def of_line(picture: str, y: str) -> str:
        line = b.op("Add", b.op("Mul", picture, grid.down), b.op("Div", y, tile))
        block = b.op("Mul", b.op("Div", line, grid.many), b.op("Mul", size, tile * tile + 1))
        inner = b.op("Mul", b.op("Mod", y, tile), b.op("Mul", size, tile))
        return b.op("Add", b.op("Add", block, inner), b.op("Mul", b.op("Mod", line, grid.many), grid.across))

    def of_x(x: str) -> str:
        return b.op("Add", b.op("Mul", b.op("Mod", x, tile), size), b.op("Div", x, tile))

    return Rows(
        value=b.reshaped(_blocks(b, whole, table, layer), -1, layer.out),
        channels=layer.out,
        batch=parts[0].batch,
        height=parts[0].height,
        width=parts[0].width,
        places=b.op("Mul", b.op("Mul", grid.blocks, size), tile * tile + 1),
        padded=True,
        of_line=of_line,
        of_x=of_x,
    )


def _grid_of(b: Builder, rows: Rows, layer: Convolution) -> _Grid:
    tile = layer.tile
    down, across = (b.op("Div", b.op("Add", side, tile - 1), tile) for side in (rows.height, rows.width))
    lines = b.op("Max", b.op("Mul", rows.batch, down), 1)  # no pictures have one, which nobody reads
    tiles = tiles_of_block(layer.channels, layer.out, layer.block)
    blocks, many = _shared(b, lines, b.op("Max", b.op("Div", tiles, across), 1))
    return _Grid(tile=tile, down=down, across=across, blocks=blocks, many=many)


def _table(b: Builder, parts: Sequence[Rows], begins: Sequence[str | int], last: str, grid: _Grid) -> str:
    """Which rows the tiles of each block are made of: indices [blocks, spots, tiles * parts]."""
    line = b.op("Range", 0, b.op("Mul", grid.blocks, grid.many), 1)
    one = b.constant(np.ones(1, np.int64))
    shape = b.op("Concat", b.reshaped(grid.blocks, 1), one, one, b.reshaped(grid.many, 1), one, axis=0)
    picture, y = (b.op("Reshape", b.op(kind, line, grid.down), shape) for kind in ("Div", "Mod"))
    y = b.op("Add", b.op("Mul", y, grid.tile), _border(b, grid.tile, (1, -1, 1, 1, 1)))
    x = b.op("Range", 0, grid.across, 1)
    x = b.op("Add", b.op("Mul", x, grid.tile), _border(b, grid.tile, (1, 1, -1, 1, 1)))
    spots = (grid.tile + 2) ** 2
    tables = [
        b.reshaped(table_of(b, part, begin, last, picture, y, x), 0, spots, 1, -1)
        for part, begin in zip(parts, begins, strict=True)
    ]
    # [blocks, spots, parts, tiles] -> [blocks, spots, tiles, parts]
    return b.reshaped(b.op("Transpose", b.op("Concat", *tables, axis=2), perm=[0, 1, 3, 2]), 0, spots, -1)


def tiles_of_block(channels: int, out: int, block: int = BLOCK) -> int:
    """How many tiles are computed at a time: so many that they fill the caches, or weigh as much as the filters."""
    return max(block, channels * out) // (channels + out)


def _shared(b: Builder, number: str, most: str) -> tuple[str, str]:
    """Into how many parts of how many each a number is shared; none has more than `most`, and all are alike."""
    parts = b.op("Div", b.op("Sub", b.op("Add", number, most), 1), most)
    return parts, b.op("Div", b.op("Sub", b.op("Add", number, parts), 1), parts)


def _border(b: Builder, tile: int, shape: tuple[int, ...]) -> str:
    """Where the lines of a tile are from its first output on: -1 to `tile`."""
    return b.constant(np.arange(-1, tile + 1, dtype=np.int64).reshape(shape), "border")


def _blocks(b: Builder, rows: str, table: str, layer: Convolution) -> str:
    """The results [blocks, tile * tile + 1, tiles, out], the last of each tile zero: a Scan over a table of indices.

    The table is [blocks, spots, tiles * parts]; the channels of a tile are those of its parts' rows side by side.

    It is named after layer and form, so that a file tells how it computes a layer.
    """
    tile, out, channels = layer.tile, layer.out, layer.channels
    few, spots, places = layer.form.endswith("few"), (tile + 2) ** 2, tile * tile + 1
    to_tiles, to_filters, to_outputs = matrices(tile)
    back = np.zeros((places, spots))
    back[:-1] = np.kron(to_outputs, to_outputs)
    filters = _filters(layer.weight, to_filters)
    with b.body() as nodes:
        places_of_block = b.named("places")
        value = b.op("Gather", rows, places_of_block, axis=0)
        value = b.op("MatMul", _constant(b, np.kron(to_tiles, to_tiles), "to_tiles"), b.reshaped(value, spots, -1))
        value = b.reshaped(value, spots, -1, channels)
        if few:
            factor = b.constant(np.ascontiguousarray(filters.transpose(0, 2, 1)), "filters")
            value = b.op("MatMul", factor, b.op("Transpose", value, perm=[0, 2, 1]))
        else:
            value = b.op("MatMul", value, b.constant(filters, "filters"))
        value = b.op("MatMul", _constant(b, back, "to_outputs"), b.reshaped(value, spots, -1))
        if few:
            value = b.op("Transpose", b.reshaped(value, places, out, -1), perm=[0, 2, 1])
        else:
            value = b.reshaped(value, places, -1, out)
        if layer.bias is not None and layer.bias.any():
            added = np.zeros((places, 1, out))
            added[:-1] = layer.bias
            value = b.op("Add", value, _constant(b, added, "bias"))
        if layer.relu:
            value = b.op("Relu", value)
    body = helper.make_graph(
        nodes,
        b.named(BODY),
        [helper.make_tensor_value_info(places_of_block, onnx.TensorProto.INT64, [spots, None])],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [places, None, out])],
    )
    name = b.named(layer.form)
    b.nodes.append(helper.make_node("Scan", [table], [name], name=name, body=body, num_scan_inputs=1))
    return name


def _constant(b: Builder, values: NDArray[np.floating[Any]], word: str) -> str:
    return b.constant(values.astype(np.float32), word)


def _filters(weight: NDArray[np.float32], to_filters: Array) -> NDArray[np.float32]:
    """Filters [spots, in, out] of a weight [out, in, 3, 3], computed in float64."""
    out, channels = weight.shape[:2]
    filters: Array = np.einsum("ia,ocab,jb->ijco", to_filters, weight.astype(np.float64), to_filters, optimize=True)
    return filters.reshape(-1, channels, out).astype(np.float32)


def convolutions(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that can take another form than direct, from the graph's input to its output."""
    wanted = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1]}
    found = []
    for node in model.graph.node:
        given = {one.name: list(one.ints) for one in node.attribute}
        group = next((one.i for one in node.attribute if one.name == "group"), 1)
        if node.op_type == "Conv" and group == 1 and all(given.get(name) == wanted[name] for name in wanted):
            found.append(node.name)
    return found


def rewrite(model: onnx.ModelProto, forms: Mapping[str, Form], block: int = BLOCK) -> onnx.ModelProto:
    """A copy in which convolutions are computed in these forms, by the names of their nodes; "direct" without one.

    Args:
        model: a graph that `export.graph` built.
        forms: of `convolutions(model)` or some of them.
        block: as `BLOCK`.
    """
    return _Rewriting(model, forms, block).run()


class _Rewriting:
    """One walk over the nodes; each value is there as a picture, as rows, or both, once somebody has asked."""

    def __init__(self, model: onnx.ModelProto, forms: Mapping[str, Form], block: int) -> None:
        self.model = model
        self.forms = {name: form for name, form in forms.items() if form != "direct"}
        assert self.forms.keys() <= {*convolutions(model)}, "a convolution that is not of 3x3"
        self.block = block
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        names = [name for node in model.graph.node for name in (node.name, *node.output)]
        self.b = Builder([*self.weights, *names])
        self.rows: dict[str, Rows] = {}
        self.pictures: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {}
        self.channels: dict[str, int] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.output[0] in self.rows:  # its Relu is done with a convolution
                continue
            self.b.scope = node.name
            self._channels(node)
            if node.name in self.forms:
                self._winograd(node)
            elif node.op_type == "MaxPool" and node.input[0] in self.rows:
                self.rows[node.output[0]] = pooled(self.b, self.rows[node.input[0]])
            elif node.op_type == "ConvTranspose" and self._wanted_as_rows(node.output[0]):
                weight, bias = self._weights(node)
                self.channels.setdefault(node.input[0], weight.shape[0])
                self.rows[node.output[0]] = transposed(self.b, self._rows(node.input[0]), weight, bias)
            elif node.op_type == "Concat" and node.output[0] in self.channels and self._wanted_as_rows(node.output[0]):
                self.parts[node.output[0]] = list(node.input)
            else:
                self._leave(node)
        used = {value for node in self.b.nodes for value in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(self.b.nodes)
        made.graph.initializer.extend([*kept, *self.b.constants.values()])
        return made

    def _weights(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Weight and bias of a convolution."""
        weight, *bias = (numpy_helper.to_array(self.weights[name]) for name in node.input[1:])
        return weight, bias[0] if bias else None

    def _channels(self, node: onnx.NodeProto) -> None:
        """Note how many channels its output has, where that is known."""
        out = node.output[0]
        if node.op_type == "Conv":
            self.channels[out] = self.weights[node.input[1]].dims[0]
        elif node.op_type == "ConvTranspose":
            self.channels[out] = self.weights[node.input[1]].dims[1]
        elif node.op_type in ("Relu", "MaxPool", "Resize") and node.input[0] in self.channels:
            self.channels[out] = self.channels[node.input[0]]
        elif node.op_type == "Concat" and all(value in self.channels for value in node.input):
            self.channels[out] = sum(self.channels[value] for value in node.input)

    def _wanted_as_rows(self, value: str) -> bool:
        """Whether a convolution in another form than direct reads it, through a Concat or not."""
        readers = self.readers.get(value, ())
        if any(node.name in self.forms for node in readers):
            return True
        return any(self._wanted_as_rows(node.output[0]) for node in readers if node.op_type == "Concat")

    def _rows(self, value: str) -> Rows:
        if value not in self.rows:
            self.pictures[value] = self._picture(value)
            self.rows[value] = rows_of(self.b, self.pictures[value], self.channels[value])
        return self.rows[value]

    def _picture(self, value: str) -> str:
        if value in self.pictures:
            return self.pictures[value]
        if value not in self.rows and value not in self.parts:
            return value
        if value in self.parts:
            self.pictures[value] = self.b.op("Concat", *map(self._picture, self.parts[value]), axis=1)
        else:
            self.pictures[value] = picture_of(self.b, self.rows[value])
        return self.pictures[value]

    def _winograd(self, node: onnx.NodeProto) -> None:
        readers = self.readers[node.output[0]]
        relu = readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else None
        self.channels.setdefault(node.input[0], self.weights[node.input[1]].dims[1])
        values = self.parts.get(node.input[0], [node.input[0]])
        if len({self.channels[value] for value in values}) > 1:
            values = [node.input[0]]
        parts = [self._rows(value) for value in values]
        weight, bias = self._weights(node)
        layer = Convolution(
            weight=weight, bias=bias, relu=relu is not None, form=self.forms[node.name], block=self.block
        )
        rows = convolved(self.b, parts, layer)
        self.rows[node.output[0] if relu is None else relu.output[0]] = rows
        if relu is not None:
            self.channels[relu.output[0]] = self.channels[node.output[0]]

    def _leave(self, node: onnx.NodeProto) -> None:
        """Take the node over, reading pictures."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._picture(value) for value in node.input]
        self.b.nodes.append(copy)
