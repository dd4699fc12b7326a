"""From a network and its card to an ONNX graph: uint8 images of any size in, probabilities out."""

import contextlib
import io
import warnings

import onnx
import torch

from runtime.card import ModelCard
from runtime.console import one_line
from runtime.errors import ModelError
from unet_core.model import Segmenter

OPSET = 20
"""The newest that both TensorRT 10 and ONNX Runtime take well."""

MAX_BYTES = 2**31 - 2**20
"""A protobuf message holds at most 2 GiB; a little is left for graph and card."""


def build_graph(segmenter: Segmenter, card: ModelCard) -> onnx.ModelProto:
    """Export the network with its pre- and post-processing.

    The graph maps `image` uint8 [batch, height, width, channels] to `probability` float32 [batch, classes, height,
    width]; batch, height and width are free. BatchNorm is folded into the convolutions.

    Raises:
        ModelError: the weights are too large for one file.
    """
    size = sum(weight.numel() * weight.element_size() for weight in segmenter.state_dict().values())
    if size > MAX_BYTES:
        raise ModelError(f"weights of {size} bytes: expected at most {MAX_BYTES}, what one ONNX file can hold")
    # Batch 2 and unequal sides: sizes of 1, or equal ones, would be taken for constants.
    example = torch.zeros(2, 2 * card.input.stride + 8, 3 * card.input.stride + 8, card.architecture.in_channels)
    dynamic = torch.export.Dim.DYNAMIC
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")  # the exporter's own deprecations are nothing a user can act on
        program = torch.onnx.export(
            segmenter.cpu().eval(),
            (example.to(torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["probability"],
            dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ModelError(f"the exporter gave no graph ({one_line(said.getvalue())[:200]})")
    model = program.model_proto
    _tidy(model)
    _cast_first(model)
    onnx.checker.check_model(model)
    return model


def _tidy(model: onnx.ModelProto) -> None:
    """Name the free sizes, and strip stack traces and paths of the exporting machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]  # carry the exporter's names for sizes; every runtime infers them again
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "unet"
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value, names in (
        (model.graph.input[0], ("batch", "height", "width", None)),
        (model.graph.output[0], ("batch", None, "height", "width")),
    ):
        del value.metadata_props[:]
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                size.dim_param = name
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


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
