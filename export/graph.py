"""The ONNX graph of a network and its card: uint8 images of any size in, probabilities out; or the bare network."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx.helper import find_min_ir_version_for
from onnxscript import optimizer

from export.layers import CONVOLUTIONS, MAX_WEIGHT_BYTES, bytes_of
from export.layers import layers_of as layers_of
from export.layers import layers_with_weights as layers_with_weights
from export.options import OPSET, check_opset
from runtime.card import ModelCard, UNetConfig
from runtime.errors import ModelError, one_line
from unet_core.model import Segmenter

MOST_REDUCED = 32
"""Factor by which networks reduce a picture at most; ours are told by their depth."""

LEAST_EXAMPLE = 4 * MOST_REDUCED
"""Smallest side, in pixels, of the images that a network of unknown depth is traced on."""

GATHERING = ("Concat", "Resize")
"""Operators that begin a block of the way up; the convolution after them tells which block."""

BEFORE, AFTER = "before", "after"
"""Names of the nodes before and after the network begin with these."""


def build_graph(segmenter: Segmenter, card: ModelCard, opset: int = OPSET) -> onnx.ModelProto:
    """Export the network with its pre- and post-processing.

    The graph maps `image` uint8 [batch, height, width, channels] to `probability` float32 [batch, classes, height,
    width]; batch, height and width are free, unless the card fixes them. Then there is no arithmetic on sizes in the
    graph: padding and cropping are constants, or absent. BatchNorm is folded into the convolutions. Where pictures are
    never padded (`InputSpec.padded`), height and width have to be multiples of the stride.

    Raises:
        ConfigError: the opset is out of `OPSETS`.
        ModelError: the weights are too large for one file.
    """
    exact, fixed = not card.input.padded, card.input.fixed_shape
    shape = fixed or (2, *example_size(card, exact=exact))
    example = torch.zeros(*shape, card.architecture.in_channels, dtype=torch.uint8)
    free: dict[int, Any] = {}
    if fixed is None:
        rows, columns = free_sides(card, exact=exact)
        free = {0: torch.export.Dim.DYNAMIC, 1: rows, 2: columns}
    model = _run_exporter(segmenter, example, opset, names=("image", "probability"), free=free)
    _strip(model, ("batch", "height", "width", None) if fixed is None else None)
    # TensorRT allows a uint8 input no other reader than a Cast, not even a Shape.
    nodes = list(model.graph.node)
    cast = next(node for node in nodes if node.op_type == "Cast" and list(node.input) == ["image"])
    for node in nodes:
        if node is not cast:
            node.input[:] = [cast.output[0] if name == "image" else name for name in node.input]
    nodes.remove(cast)
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])
    return _finish(model, segmenter, segmenter, example)


def example_size(card: ModelCard, *, exact: bool) -> tuple[int, int]:
    """Return (height, width) of the images that a network is traced on; the batch is 2.

    Sides are multiples of the stride if `exact`, else none (but of 1). They are large enough for every map in the
    network to be larger than one pixel, and neither is a multiple of the other one: the exporter takes sizes of 1,
    equal ones, and sizes that divide each other for constants.
    """
    stride, (height, width) = card.input.stride, card.input.size
    if isinstance(card.architecture, UNetConfig):
        off = 0 if exact else 8
        return 2 * stride + off, 3 * stride + off
    least = max(LEAST_EXAMPLE, 2 * stride, *card.input.min_size)
    rows, columns = -(-max(least, height) // stride), -(-(max(least, width) + 2 * MOST_REDUCED) // stride)
    while rows % columns == 0 or columns % rows == 0:
        columns += 1
    off = 0 if exact else stride // 2
    return rows * stride - off, columns * stride - off


def free_sides(card: ModelCard, *, exact: bool) -> tuple[Any, Any]:
    """Return height and width as the exporter takes free sizes: any, or multiples of the stride if `exact`."""
    stride = card.input.stride
    if stride == 1 or not exact:
        return torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    rows, columns = (
        stride * torch.export.Dim(name, min=-(-least // stride), max=2**20)
        for name, least in zip(("rows", "columns"), card.input.min_size, strict=True)
    )
    return rows, columns


def build_raw_graph(segmenter: Segmenter, card: ModelCard, opset: int = OPSET) -> onnx.ModelProto:
    """Export the bare network, for programs that have pre- and post-processing of their own.

    The graph maps `image` float32 [batch, channels, height, width], normalised by the card's mean and std, to `logits`
    float32 [batch, classes, height, width]; batch is free, height and width are multiples of the stride. All three are
    constants if the card fixes them.

    Raises:
        ConfigError, ModelError: as `build_graph`.
    """
    fixed = card.input.fixed_shape
    batch, *sides = fixed or (2, *example_size(card, exact=True))
    example = torch.zeros(batch, card.architecture.in_channels, *sides)
    free: dict[int, Any] = {}
    if fixed is None:
        rows, columns = free_sides(card, exact=True)
        free = {0: torch.export.Dim.DYNAMIC, 2: rows, 3: columns}
    model = _run_exporter(segmenter.network, example, opset, names=("image", "logits"), free=free)
    _strip(model, ("batch", None, "height", "width") if fixed is None else None)
    return _finish(model, segmenter, segmenter.network, example)


def check_size(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a ModelError if the weights are too large for one file."""
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if size > MAX_WEIGHT_BYTES:
        raise ModelError(f"weights of {size} bytes: expected at most {MAX_WEIGHT_BYTES}, what one ONNX file can hold")


def check_room(model: onnx.ModelProto) -> None:
    """Raise a ModelError if a rewritten graph is too large for one file: its filters take up to four times as much."""
    size = bytes_of(model)
    if size > MAX_WEIGHT_BYTES:
        raise ModelError(
            f"--target cpu: would write weights of {size} bytes, and one ONNX file can hold {MAX_WEIGHT_BYTES}; "
            "leave it out"
        )


def fold_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph of one shape in which all that follows from sizes is computed and stored."""
    folded: onnx.ModelProto = optimizer.optimize(onnx.ModelProto.FromString(model.SerializeToString()))
    _strip_traces(folded)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def _run_exporter(
    network: torch.nn.Module, example: torch.Tensor, opset: int, *, names: tuple[str, str], free: dict[int, Any]
) -> onnx.ModelProto:
    """Run PyTorch's exporter; `names` are those of input and output, `free` the free axes of the input, if any."""
    check_opset(opset)
    check_size(network.state_dict())
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")  # deprecations inside the exporter, which a user cannot act on
        try:
            program = torch.onnx.export(
                network.cpu().eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=(free,) if free else None,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # of any type, most often about control flow in the network
            cause = error.__cause__ or error
            advice = "; --fixed-size BxHxW traces it for one batch and size" if free else ""
            raise ModelError(
                f"PyTorch's exporter cannot trace the network ({type(cause).__name__}: {one_line(str(cause))[:300]})"
                f"{advice}"
            ) from error
    if program is None:
        raise ModelError(f"the exporter gave no graph ({one_line(said.getvalue())[:200]})")
    return program.model_proto


def _strip(model: onnx.ModelProto, sizes: tuple[str | None, ...] | None) -> None:
    """Name the free `sizes` of the input, if any, and strip stack traces and paths of the exporting machine."""
    graph = model.graph
    _strip_traces(model)
    graph.name = "unet"
    # PyTorch writes a newer one whatever the opset, and older runtimes refuse the file for nothing else.
    model.ir_version = min(model.ir_version, find_min_ir_version_for(model.opset_import))
    if sizes is None:
        return
    for value, names in ((graph.input[0], sizes), (graph.output[0], ("batch", None, "height", "width"))):
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                size.dim_param = name


def _strip_traces(model: onnx.ModelProto) -> None:
    """Strip the notes that an exporter or an optimiser leaves in a graph."""
    graph = model.graph
    del graph.value_info[:]  # they carry the exporter's names for sizes; every runtime infers them again
    for part in (model, graph, *graph.node, graph.input[0], graph.output[0], *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


def _finish(
    model: onnx.ModelProto, segmenter: Segmenter, whole: torch.nn.Module, example: torch.Tensor
) -> onnx.ModelProto:
    """Give every layer weights of its own and the name of its module, and check the graph."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [node.input[1] for node in model.graph.node if node.op_type in CONVOLUTIONS]
    taken: set[str] = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input) if node.op_type in CONVOLUTIONS else ():
            if name in taken:  # the exporter made one tensor of equal ones
                own = model.graph.initializer.add()
                own.CopyFrom(tensors[name])
                node.input[index] = own.name = f"{name}.{len(model.graph.initializer)}"
            elif name in tensors:
                taken.add(name)
    network = getattr(segmenter.network, "network", segmenter.network)  # of an author's network, the one within
    rename(model, convolutions_run(whole, network, example, weights))
    onnx.checker.check_model(model, full_check=True)
    return model


def convolutions_run(
    whole: torch.nn.Module, network: torch.nn.Module, example: torch.Tensor, weights: Sequence[str]
) -> list[str]:
    """Return the name in `network` of the module that runs each convolution of a graph, in the graph's order.

    `whole` is the exported module, of which `network` is a part. It is run once, and the modules tell when they are
    called: the order in which they were made may be another one, and a shared one runs several times. Where the graph
    has other convolutions than these modules ran, the names of its `weights`, one for each convolution, tell.
    """
    called: list[str] = []
    kinds = (
        *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
        *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
    )
    names = {module: name for name, module in network.named_modules() if isinstance(module, kinds)}
    hooks = [module.register_forward_pre_hook(lambda module, _: called.append(names[module])) for module in names]
    try:
        with torch.inference_mode():
            whole(example)
    finally:
        for hook in hooks:
            hook.remove()
    if len(called) == len(weights):
        return called
    found = []
    for weight in weights:
        fitting = [name for name in names.values() if f".{weight}".endswith(f".{name}.weight")]
        found.append(max(fitting, key=len, default="convolution"))
    return found


def rename(model: onnx.ModelProto, modules: Sequence[str]) -> None:
    """Name nodes, values and weights after the modules; inputs and outputs of the graph keep their names.

    `modules` are the names of the network's convolutions, in the order in which they run.
    """
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    used: Counter[str] = Counter()

    def unique(name: str) -> str:
        used[name] += 1
        return name if used[name] == 1 else f"{name}_{used[name]}"

    for node, scope in zip(graph.node, list(_scopes(graph, modules)), strict=True):
        convolution = node.op_type in CONVOLUTIONS
        node.name = unique(scope if convolution else f"{scope}.{node.op_type.lower()}")
        for index, value in enumerate(node.input):
            if value in constants and value not in names:
                word = ("weight" if index == 1 else "bias") if convolution else "constant"
                names[value] = unique(f"{node.name}.{word}")
        for index, value in enumerate(node.output):
            if value and value not in names:
                names[value] = node.name if index == 0 else f"{node.name}.{index}"
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _scopes(graph: onnx.GraphProto, modules: Sequence[str]) -> Iterator[str]:
    """Give the module of each node: its own for a convolution, else the one of the convolution before or after it."""
    waiting = list(modules)
    seen = BEFORE
    for node in graph.node:
        if node.op_type in CONVOLUTIONS:
            seen = waiting.pop(0)
            yield seen
        elif not waiting:
            yield AFTER
        elif node.op_type in GATHERING and seen != BEFORE:
            yield waiting[0].partition(".conv")[0]
        else:
            yield seen
