"""Choice of each convolution's form by a model of costs: `unet-export --target cpu` without `--tune`."""

from collections.abc import Mapping, Sequence

import onnx

from export.winograd.transform import FORMS, TILE, Form, rewritable, tiles_of_block
from runtime.card import ModelCard

MARGIN = 1.05
"""Factor on the cost of all forms but direct: the model's root mean square error is 9 %, and whole networks were 4 to
6 % faster than the sum of their layers promised."""


SAME_SIZE = ("Relu", "Concat", "Add", "LeakyRelu", "Sigmoid", "Mul", "Clip", "BatchNormalization")
"""Operators whose answers have the size of what they read."""


def choose_forms(model: onnx.ModelProto, card: ModelCard) -> dict[str, Form]:
    """Choose the form of each convolution of 3x3 that costs least, for one image of the trained size.

    Args:
        model: a graph that `export.graph` built.

    Returns:
        Forms by the name of the convolution, without those that stay direct.
    """
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    able = rewritable(model)
    shapes = {node.name: weights[node.input[1]] for node in model.graph.node if node.name in able}
    sizes, found = sizes_of(model, card), dict[str, Form]()
    for name in able:
        out, channels = shapes[name][:2]
        form = min(FORMS, key=lambda one: cost(one, *sizes[name], channels, out)) if name in sizes else "direct"
        if form != "direct":
            found[name] = form
    return found


def sizes_of(model: onnx.ModelProto, card: ModelCard) -> Mapping[str, tuple[int, int]]:
    """Find the (height, width) of what each convolution reads for an image of the trained size, where it is known."""
    stride = card.input.stride
    height, width = (-(-side // stride) * stride for side in card.input.size)
    first = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    sizes = {} if first is None else {first.input[0]: (height, width)}
    found: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        known = next((sizes[value] for value in node.input if value in sizes), None)
        if known is None:
            continue
        if node.op_type == "Conv":
            found[node.name] = known
        strides: Sequence[int] = next((one.ints for one in node.attribute if one.name == "strides"), ())
        down, across = strides if len(strides) == 2 else (1, 1)
        if node.op_type in ("Conv", "MaxPool"):
            sizes[node.output[0]] = (-(-known[0] // down), -(-known[1] // across))
        elif node.op_type in ("ConvTranspose", "Resize"):
            sizes[node.output[0]] = (known[0] * max(2, down), known[1] * max(2, across))
        elif node.op_type in SAME_SIZE:
            sizes[node.output[0]] = known
    return found


def cost(form: Form, height: int, width: int, channels: int, out: int) -> float:
    """Estimate the milliseconds of a convolution [out, channels, 3, 3] over [height, width].

    Fitted to timings of 102 layers in four forms, of networks of 31, 8 and 2 million weights, at 240x160 and 480x320,
    interleaved on two cores of an AMD EPYC: the mean of two cores that share their last cache and two that do not.
    There, what one core writes and the other reads (`values`) costs twice as much. Only ratios of costs matter.
    """
    if form == "direct":
        return 4.44e-9 * 18 * height * width * channels * out
    tile, few = TILE[form], form.endswith("few")
    spots, places = (tile + 2) ** 2, tile**2 + 1
    tiles = -(-height // tile) * -(-width // tile)
    blocks = -(-tiles // tiles_of_block(channels, out))
    thin = 1 + 60 * (1 / channels + 1 / out)  # products of few channels are slow
    products = 4.1e-9 * 2 * spots * tiles * channels * out * thin
    transforms = 4.4e-9 * 2 * spots * tiles * (spots * channels + places * out)
    filters = 4e-9 * spots * channels * out  # 1e9 bytes
    values = 4e-9 * spots * tiles * (channels + out)
    moved = 40 * filters + 215 * values if few else 79 * filters * blocks + 118 * values
    return MARGIN * (products + transforms + moved + 0.35)
