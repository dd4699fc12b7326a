"""A graph for CPUs: 3x3 convolutions by Winograd's minimal filtering, in standard ONNX operators.

A convolution of F(m x m, 3 x 3) computes m x m outputs of a channel from a tile of (m + 2) x (m + 2) inputs with
(m + 2)^2 multiplications instead of 9 m^2: 36 instead of 144 for m = 4 (Lavin & Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). With tiles d, filters g and results y of one channel each,

    y = A' [(G g G') * (B' d B)] A

The form makes it fast in ONNX Runtime, as docs/winograd.md draws it: values are *rows* (`row_layout.py`). One Gather
undoes the tiles of the layer before and makes those of the next, padding included. A Scan computes as many tiles at a
time as stay in the caches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.layers import CONVOLUTIONS, has_attributes, layers_with_weights
from export.winograd.row_layout import (
    BODY,
    Builder,
    Rows,
    joined,
    pooled,
    row_indices,
    to_pictures,
    to_rows,
    transposed,
)

Form = Literal["direct", "f4", "f4-few", "f2-few"]
"""Form of a convolution: as it is, by F(4x4, 3x3), or by F(4x4, 3x3) or F(2x2, 3x3) for few tiles.

The factors of a product are the tiles and the filters. ONNX Runtime packs the second factor at every call, so with few
tiles they are the second one.
"""

FORMS: tuple[Form, ...] = get_args(Form)

TILE: Mapping[Form, int] = {"f2-few": 2, "f4": 4, "f4-few": 4}

BLOCK = 40_000
"""Channels (in and out) times tiles that are computed at a time; 36 values of each take 5.8 MB."""

HALVED: Mapping[str, Any] = {
    "kernel_shape": [2, 2],
    "strides": [2, 2],
    "pads": [0, 0, 0, 0],
    "dilations": [1, 1],
    "auto_pad": b"NOTSET",
}
"""Attributes of poolings and transposed convolutions that halve or double a picture, by squares of 2x2."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution of 3x3 with padding 1: weight float32 [out, in, 3, 3], bias float32 [out]; `block` as `BLOCK`."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    relu: bool
    form: Form
    block: int

    @property
    def tile(self) -> int:
        """Side of a tile's outputs in pixels."""
        return TILE[self.form]

    @property
    def out(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0])

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[1])


def matrices(tile: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return B' [m + 2, m + 2], G [m + 2, 3], A' [m, m + 2] for m = 2 or 4: points 0, 1, -1 (, 2, -2) and infinity."""
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
class Grid:
    """The tiles of all pictures, computed block by block.

    Each picture has `down` lines of `across` tiles; each of the `blocks` holds `many` whole lines of tiles. All fields
    but `tile` are the names of int64 scalars in the graph.
    """

    tile: int
    down: str
    across: str
    blocks: str
    many: str


def convolved(b: Builder, parts: Sequence[Rows], layer: Convolution) -> Rows:
    """Apply a convolution to the channels of all parts, which have equally many each."""
    tile, grid = layer.tile, grid_of(b, parts[0], layer)
    whole, begins, last = joined(b, parts)
    table = tile_indices(b, parts, begins, last, grid)
    size = b.op("Mul", grid.many, grid.across)  # of a block, in tiles

    def of_line(picture: str, y: str) -> str:
        line = b.op("Add", b.op("Mul", picture, grid.down), b.op("Div", y, tile))
        block = b.op("Mul", b.op("Div", line, grid.many), b.op("Mul", size, tile * tile + 1))
        inner = b.op("Mul", b.op("Mod", y, tile), b.op("Mul", size, tile))
        return b.op("Add", b.op("Add", block, inner), b.op("Mul", b.op("Mod", line, grid.many), grid.across))

    def of_x(x: str) -> str:
        return b.op("Add", b.op("Mul", b.op("Mod", x, tile), size), b.op("Div", x, tile))

    return Rows(
        value=b.reshaped(scan_blocks(b, whole, table, layer), -1, layer.out),
        channels=layer.out,
        batch=parts[0].batch,
        height=parts[0].height,
        width=parts[0].width,
        places=b.op("Mul", b.op("Mul", grid.blocks, size), tile * tile + 1),
        padded=True,
        of_line=of_line,
        of_x=of_x,
    )


def grid_of(b: Builder, rows: Rows, layer: Convolution) -> Grid:
    """Compute how many tiles there are, and how they are shared among blocks of about equal size."""
    tile = layer.tile
    down, across = (b.op("Div", b.op("Add", side, tile - 1), tile) for side in (rows.height, rows.width))
    lines = b.op("Max", b.op("Mul", rows.batch, down), 1)  # an empty batch has one line, which nobody reads
    tiles = tiles_of_block(layer.channels, layer.out, layer.block)
    most = b.op("Max", b.op("Div", tiles, across), 1)
    blocks = b.op("Div", b.op("Sub", b.op("Add", lines, most), 1), most)
    many = b.op("Div", b.op("Sub", b.op("Add", lines, blocks), 1), blocks)
    return Grid(tile=tile, down=down, across=across, blocks=blocks, many=many)


def tile_indices(b: Builder, parts: Sequence[Rows], begins: Sequence[str | int], last: str, grid: Grid) -> str:
    """Compute the indices of the rows that the tiles of each block are made of: [blocks, spots, tiles * parts]."""
    border = np.arange(-1, grid.tile + 1, dtype=np.int64)  # lines of a tile, counted from its first output
    line = b.op("Range", 0, b.op("Mul", grid.blocks, grid.many), 1)
    one = b.constant(np.ones(1, np.int64))
    shape = b.op("Concat", b.reshaped(grid.blocks, 1), one, one, b.reshaped(grid.many, 1), one, axis=0)
    picture, y = (b.op("Reshape", b.op(kind, line, grid.down), shape) for kind in ("Div", "Mod"))
    y = b.op("Add", b.op("Mul", y, grid.tile), b.constant(border.reshape(1, -1, 1, 1, 1), "border"))
    x = b.op("Range", 0, grid.across, 1)
    x = b.op("Add", b.op("Mul", x, grid.tile), b.constant(border.reshape(1, 1, -1, 1, 1), "border"))
    spots = (grid.tile + 2) ** 2
    tables = [
        b.reshaped(row_indices(b, part, begin, last, picture, y, x), 0, spots, 1, -1)
        for part, begin in zip(parts, begins, strict=True)
    ]
    # [blocks, spots, parts, tiles] -> [blocks, spots, tiles, parts]
    return b.reshaped(b.op("Transpose", b.op("Concat", *tables, axis=2), perm=[0, 1, 3, 2]), 0, spots, -1)


def tiles_of_block(channels: int, out: int, block: int = BLOCK) -> int:
    """Return the number of tiles computed at a time: they fill the caches, or take as much room as the filters."""
    return max(block, channels * out) // (channels + out)


def scan_blocks(b: Builder, rows: str, table: str, layer: Convolution) -> str:
    """Compute the results [blocks, tile * tile + 1, tiles, out] by a Scan over a table of indices; the last is zero.

    The table is [blocks, spots, tiles * parts]; the rows of its parts side by side are the channels of a tile. The Scan
    is named after layer and form, so that a file tells how it computes a layer.
    """
    tile, out, channels = layer.tile, layer.out, layer.channels
    few, spots, places = layer.form.endswith("few"), (tile + 2) ** 2, tile * tile + 1
    to_tiles, to_filters, to_outputs = matrices(tile)
    back = np.zeros((places, spots))
    back[:-1] = np.kron(to_outputs, to_outputs)
    filters = transform_filters(layer.weight, to_filters)

    def constant(values: NDArray[np.floating[Any]], word: str) -> str:
        return b.constant(values.astype(np.float32), word)

    with b.body() as nodes:
        places_of_block = b.named("places")
        value = b.op("Gather", rows, places_of_block, axis=0)
        value = b.op("MatMul", constant(np.kron(to_tiles, to_tiles), "to_tiles"), b.reshaped(value, spots, -1))
        value = b.reshaped(value, spots, -1, channels)
        if few:
            factor = b.constant(np.ascontiguousarray(filters.transpose(0, 2, 1)), "filters")
            value = b.op("MatMul", factor, b.op("Transpose", value, perm=[0, 2, 1]))
        else:
            value = b.op("MatMul", value, b.constant(filters, "filters"))
        value = b.op("MatMul", constant(back, "to_outputs"), b.reshaped(value, spots, -1))
        if few:
            value = b.op("Transpose", b.reshaped(value, places, out, -1), perm=[0, 2, 1])
        else:
            value = b.reshaped(value, places, -1, out)
        if layer.bias is not None and layer.bias.any():
            added = np.zeros((places, 1, out))
            added[:-1] = layer.bias
            value = b.op("Add", value, constant(added, "bias"))
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


def transform_filters(weight: NDArray[np.float32], to_filters: Matrix) -> NDArray[np.float32]:
    """Transform a weight [out, in, 3, 3] into filters [spots, in, out], computed in float64."""
    out, channels = weight.shape[:2]
    filters: Matrix = np.einsum("ia,ocab,jb->ijco", to_filters, weight.astype(np.float64), to_filters, optimize=True)
    return filters.reshape(-1, channels, out).astype(np.float32)


def rewritable(model: onnx.ModelProto) -> list[str]:
    """List the convolutions that can take another form than direct, by name, from the graph's input to its output."""
    able = layers_with_weights(model)
    wanted = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.name in able and has_attributes(node, wanted)
    ]


def rewrite(model: onnx.ModelProto, forms: Mapping[str, Form], block: int = BLOCK) -> onnx.ModelProto:
    """Return a copy in which convolutions are computed in other forms.

    Args:
        model: a graph that `export.graph` built.
        forms: forms by the names of convolutions, some of `rewritable(model)`; the others stay direct.
        block: as `BLOCK`.
    """
    return _Rewriting(model, forms, block).run()


class _Rewriting:
    """One walk over the nodes of a graph; a value becomes pictures, rows or both when a node needs it so."""

    def __init__(self, model: onnx.ModelProto, forms: Mapping[str, Form], block: int) -> None:
        self.model = model
        self.forms = {name: form for name, form in forms.items() if form != "direct"}
        assert self.forms.keys() <= {*rewritable(model)}, "a convolution that is not of 3x3"
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
        """Return the rewritten copy."""
        for node in self.model.graph.node:
            if node.output[0] in self.rows:  # a Relu that its convolution computes
                continue
            self.b.scope = node.name
            self.note_channels(node)
            if node.name in self.forms:
                self.rewrite_convolution(node)
            elif node.op_type == "MaxPool" and node.input[0] in self.rows and self.halves(node, {"ceil_mode": 0}):
                self.rows[node.output[0]] = pooled(self.b, self.rows[node.input[0]])
            elif self.doubles(node) and self.is_read_as_rows(node.output[0]):
                weight, bias = self.weight_and_bias(node)
                self.channels.setdefault(node.input[0], weight.shape[0])
                self.rows[node.output[0]] = transposed(self.b, self.as_rows(node.input[0]), weight, bias)
            elif self.joins(node) and node.output[0] in self.channels and self.is_read_as_rows(node.output[0]):
                self.parts[node.output[0]] = list(node.input)
            else:
                self.leave(node)
        used = {value for node in self.b.nodes for value in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(self.b.nodes)
        made.graph.initializer.extend([*kept, *self.b.constants.values()])
        return made

    def halves(self, node: onnx.NodeProto, more: Mapping[str, Any]) -> bool:
        """Return True if a node has the attributes `HALVED` and these, and a single output."""
        return len(node.output) == 1 and has_attributes(node, {**HALVED, **more})

    def doubles(self, node: onnx.NodeProto) -> bool:
        """Return True if a node is a transposed convolution by squares of 2x2, with constant weights."""
        is_square = node.op_type == "ConvTranspose" and self.halves(node, {"group": 1, "output_padding": [0, 0]})
        return is_square and all(name in self.weights for name in node.input[1:])

    def weight_and_bias(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return weight and bias of a convolution."""
        weight, *bias = (numpy_helper.to_array(self.weights[name]) for name in node.input[1:])
        return weight, bias[0] if bias else None

    def note_channels(self, node: onnx.NodeProto) -> None:
        """Note the number of channels of a node's output, if it is known."""
        out = node.output[0]
        if node.op_type in CONVOLUTIONS and node.input[1] not in self.weights:
            return
        if node.op_type == "Conv":
            self.channels[out] = self.weights[node.input[1]].dims[0]
        elif node.op_type == "ConvTranspose":
            groups = next((one.i for one in node.attribute if one.name == "group"), 1)
            self.channels[out] = self.weights[node.input[1]].dims[1] * groups
        elif node.op_type in ("Relu", "MaxPool", "Resize") and node.input[0] in self.channels:
            self.channels[out] = self.channels[node.input[0]]
        elif self.joins(node) and all(value in self.channels for value in node.input):
            self.channels[out] = sum(self.channels[value] for value in node.input)

    def is_read_as_rows(self, value: str) -> bool:
        """Return True if a convolution in another form than direct reads this value, directly or through a Concat."""
        readers = self.readers.get(value, ())
        if any(node.name in self.forms for node in readers):
            return True
        return any(self.is_read_as_rows(node.output[0]) for node in readers if self.joins(node))

    def joins(self, node: onnx.NodeProto) -> bool:
        """Return True if a node puts the channels of pictures one after the other."""
        return node.op_type == "Concat" and has_attributes(node, {"axis": 1})

    def as_rows(self, value: str) -> Rows:
        """Return a value as rows."""
        if value not in self.rows:
            self.pictures[value] = self.as_pictures(value)
            self.rows[value] = to_rows(self.b, self.pictures[value], self.channels[value])
        return self.rows[value]

    def as_pictures(self, value: str) -> str:
        """Return the name under which a value is pictures [batch, channels, height, width]."""
        if value in self.pictures:
            return self.pictures[value]
        if value not in self.rows and value not in self.parts:
            return value
        if value in self.parts:
            self.pictures[value] = self.b.op("Concat", *map(self.as_pictures, self.parts[value]), axis=1)
        else:
            self.pictures[value] = to_pictures(self.b, self.rows[value])
        return self.pictures[value]

    def rewrite_convolution(self, node: onnx.NodeProto) -> None:
        """Compute a convolution in its form, together with the Relu that follows it."""
        readers = self.readers[node.output[0]]
        relu = readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else None
        self.channels.setdefault(node.input[0], self.weights[node.input[1]].dims[1])
        values = self.parts.get(node.input[0], [node.input[0]])
        if len({self.channels[value] for value in values}) > 1:
            values = [node.input[0]]
        parts = [self.as_rows(value) for value in values]
        weight, bias = self.weight_and_bias(node)
        layer = Convolution(
            weight=weight, bias=bias, relu=relu is not None, form=self.forms[node.name], block=self.block
        )
        rows = convolved(self.b, parts, layer)
        self.rows[node.output[0] if relu is None else relu.output[0]] = rows
        if relu is not None:
            self.channels[relu.output[0]] = self.channels[node.output[0]]

    def leave(self, node: onnx.NodeProto) -> None:
        """Copy a node as it is, reading pictures."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.as_pictures(value) for value in node.input]
        self.b.nodes.append(copy)
