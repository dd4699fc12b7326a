"""From a network and its card to an ONNX graph: uint8 images of any size in, probabilities out; or the bare network."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch

from runtime.card import ModelCard
from runtime.errors import ConfigError, ModelError, one_line
from unet_core.model import Segmenter

OPSET = 20
"""The newest that both TensorRT 10 and ONNX Runtime take well."""

OPSETS = (18, 23)
"""First and last that can be asked for: the exporter's own, and the newest that the tests run."""

MAX_BYTES = 2**31 - 2**20
"""A protobuf message holds at most 2 GiB; a little is left for graph and card."""


def build_graph(segmenter: Segmenter, card: ModelCard, opset: int = OPSET) -> onnx.ModelProto:
    """Export the network with its pre- and post-processing.

    The graph maps `image` uint8 [batch, height, width, channels] to `probability` float32 [batch, classes, height,
    width]; batch, height and width are free. BatchNorm is folded into the convolutions.

    Raises:
        ConfigError: the opset is out of `OPSETS`.
        ModelError: the weights are too large for one file.
    """
    # Batch 2 and unequal sides: sizes of 1, or equal ones, would be taken for constants.
    example = torch.zeros(2, 2 * card.input.stride + 8, 3 * card.input.stride + 8, card.architecture.in_channels)
    dynamic = torch.export.Dim.DYNAMIC
    model = _exported(
        segmenter,
        example.to(torch.uint8),
        opset,
        names=("image", "probability"),
        free={0: dynamic, 1: dynamic, 2: dynamic},
    )
    _tidy(model, ("batch", "height", "width", None))
    _cast_first(model)
    return _checked(model, segmenter)


def build_raw_graph(segmenter: Segmenter, card: ModelCard, opset: int = OPSET) -> onnx.ModelProto:
    """Export the bare network, for programs that have pre- and post-processing of their own.

    The graph maps `image` float32 [batch, channels, height, width], normalised by the card's mean and std, to `logits`
    float32 [batch, classes, height, width]; batch is free, height and width are multiples of the stride.

    Raises:
        ConfigError, ModelError: as `build_graph`.
    """
    stride = card.input.stride
    example = torch.zeros(2, card.architecture.in_channels, 2 * stride, 3 * stride)
    height, width = (stride * torch.export.Dim(name, min=1, max=2**20) for name in ("rows", "columns"))
    free = {0: torch.export.Dim.DYNAMIC, 2: height, 3: width}
    model = _exported(segmenter.network, example, opset, names=("image", "logits"), free=free)
    _tidy(model, ("batch", None, "height", "width"))
    return _checked(model, segmenter)


def check_opset(opset: int) -> None:
    """Raise a ConfigError if the opset is out of `OPSETS`."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[1]}")


def check_size(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a ModelError if one file cannot hold the weights."""
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if size > MAX_BYTES:
        raise ModelError(f"weights of {size} bytes: expected at most {MAX_BYTES}, what one ONNX file can hold")


def check_room(model: onnx.ModelProto) -> None:
    """Raise a ModelError if a rewritten graph is too large for one file: filters weigh up to four times as much."""
    size = bytes_of(model)
    if size > MAX_BYTES:
        raise ModelError(
            f"--target cpu: would write weights of {size} bytes, and one ONNX file can hold {MAX_BYTES}; leave it out"
        )


def bytes_of(model: onnx.ModelProto) -> int:
    """Bytes of a graph's weights and other constants."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _exported(
    network: torch.nn.Module, example: torch.Tensor, opset: int, *, names: tuple[str, str], free: dict[int, Any]
) -> onnx.ModelProto:
    check_opset(opset)
    check_size(network.state_dict())
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")  # the exporter's own deprecations are nothing a user can act on
        program = torch.onnx.export(
            network.cpu().eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=(free,),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ModelError(f"the exporter gave no graph ({one_line(said.getvalue())[:200]})")
    return program.model_proto


def _checked(model: onnx.ModelProto, segmenter: Segmenter) -> onnx.ModelProto:
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    _unshare(model)
    # Modules are listed as they were made, and `UNet` makes them as they run.
    rename(model, [name for name, module in segmenter.network.named_modules() if isinstance(module, kinds)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _tidy(model: onnx.ModelProto, sizes: tuple[str | None, ...]) -> None:
    """Name the free sizes of the input, and strip stack traces and paths of the exporting machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]  # carry the exporter's names for sizes; every runtime infers them again
    model.ClearField("doc_string")
    model.graph.ClearField("doc_string")
    model.graph.name = "unet"
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value, names in (
        (model.graph.input[0], sizes),
        (model.graph.output[0], ("batch", None, "height", "width")),
    ):
        del value.metadata_props[:]
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                size.dim_param = name
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.ClearField("doc_string")


def _unshare(model: onnx.ModelProto) -> None:
    """Give every convolution weights of its own: the exporter makes one of equal ones, and a layer has its own name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input) if node.op_type in CONVOLUTIONS else ():
            if name in taken:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensors[name])
                node.input[place] = copy.name = f"{name}.{len(model.graph.initializer)}"
            elif name in tensors:
                taken.add(name)


def _cast_first(model: onnx.ModelProto) -> None:
    """Let a Cast be the only reader of the image: TensorRT allows uint8 inputs no other operator, not even Shape."""
    nodes = list(model.graph.node)
    cast = next(node for node in nodes if node.op_type == "Cast" and list(node.input) == ["image"])
    for node in nodes:
        if node is not cast:
            node.input[:] = [cast.output[0] if name == "image" else name for name in node.input]
    nodes.remove(cast)
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])


def set_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    """Replace the file's metadata."""
    del model.metadata_props[:]
    for key, value in sorted(entries.items()):
        model.metadata_props.add(key=key, value=value)


CONVOLUTIONS = ("Conv", "ConvTranspose")

GATHERING = ("Concat", "Resize")
"""Operators that begin a block of the way up; the convolution after them tells which."""

BEFORE, AFTER = "before", "after"


def rename(model: onnx.ModelProto, modules: Sequence[str]) -> None:
    """Name nodes, values and weights; inputs and outputs of the graph keep their names.

    `modules` are the names of the network's convolutions, in the order in which they run.
    """
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    used: Counter[str] = Counter()
    for node, scope in zip(graph.node, list(_scopes(graph, modules)), strict=True):
        node.name = _once(scope if node.op_type in CONVOLUTIONS else f"{scope}.{node.op_type.lower()}", used)
        for place, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = _once(_constant_name(node, place), used)
        for place, value in enumerate(node.output):
            if value and value not in names:
                names[value] = node.name if place == 0 else f"{node.name}.{place}"
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _scopes(graph: onnx.GraphProto, modules: Sequence[str]) -> Iterator[str]:
    """Where each node stands: in its own module if it is a convolution, else after the last one or before the next."""
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


def _constant_name(node: onnx.NodeProto, place: int) -> str:
    if node.op_type in CONVOLUTIONS:
        return f"{node.name}.{'weight' if place == 1 else 'bias'}"
    return f"{node.name}.constant"


def _once(name: str, used: Counter[str]) -> str:
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name]}"
