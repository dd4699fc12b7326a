"""Which form each convolution takes, by a model of what the forms cost: `unet-export --target cpu` without `--tune`."""

from collections.abc import Mapping

import onnx

from export.winograd.transform import FORMS, TILE, Form, convolutions, tiles_of_block
from runtime.card import ModelCard

MARGIN = 1.05
"""Another form than direct has to promise that much more; the model is off by 9 %, root of the mean square, and
whole networks were 4 to 6 % faster than the sum of their layers promised."""


def chosen(model: onnx.ModelProto, card: ModelCard) -> dict[str, Form]:
    """The form of each convolution of 3x3 that costs least, for one image as trained.

    Args:
        model: a graph that `export.graph` built.

    Returns:
        By the name of the convolution; those that stay direct are not in it.
    """
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes = {node.name: weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
    sizes, found = sizes_of(model, card), dict[str, Form]()
    for name in convolutions(model):
        out, channels = shapes[name][:2]
        form = min(FORMS, key=lambda one: cost(one, *sizes[name], channels, out)) if name in sizes else "direct"
        if form != "direct":
            found[name] = form
    return found


def sizes_of(model: onnx.ModelProto, card: ModelCard) -> Mapping[str, tuple[int, int]]:
    """Height and width of what each convolution reads, where an image is as trained and that is known."""
    stride = card.input.stride
    height, width = (-(-side // stride) * stride for side in card.input.size)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    sizes = {first.input[0]: (height, width)}
    found: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        known = next((sizes[value] for value in node.input if value in sizes), None)
        if known is None:
            continue
        if node.op_type == "Conv":
            found[node.name] = known
        if node.op_type in ("Conv", "Relu", "Concat"):
            sizes[node.output[0]] = known
        elif node.op_type == "MaxPool":
            sizes[node.output[0]] = (known[0] // 2, known[1] // 2)
        elif node.op_type in ("ConvTranspose", "Resize"):
            sizes[node.output[0]] = (known[0] * 2, known[1] * 2)
    return found


def cost(form: Form, height: int, width: int, channels: int, out: int) -> float:
    """Milliseconds of a convolution [out, channels, 3, 3] over [height, width], about.

    Fitted to timings of 102 layers in four forms, of networks of 31, 8 and 2 million weights, at 240x160 and
    480x320, in turns on two cores of an AMD EPYC: the mean of two cores that share their last cache and two that
    do not, where what one core wrote and the other reads (`values`) is twice as dear; only their ratios matter.
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
