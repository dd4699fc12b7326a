"""Conversion to fp16: the search for the layers that have to stay in fp32, and the copy of the graph.

Inputs, outputs, and the nodes before and after the network stay as they are. A layer is a convolution, known by its
name; the operators between two layers take the type of the values that they read.

A CPU multiplies in fp32 whatever the file says. So what a GPU will answer is estimated on a graph in fp32 that rounds
to fp16 every weight and every value that the fp16 graph keeps: products are exact there and sums are in fp32, as
tensor cores can do it (Micikevicius et al., "Mixed Precision Training", 2018). A sum of products is rounded before the
bias is added, and again after it: ONNX Runtime's CUDA provider asks cuDNN for a convolution in fp16 with sums in fp32,
and adds the bias by another call (its conv.cc; seen on the stand-in). A library that sums in fp16 loses more.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.layers import CONVOLUTIONS, layers_of, layers_with_weights
from export.options import check_keep
from export.precision.calibration import extremes
from export.precision.gate import FP16_FLIPPED, PrecisionCost, fp16_is_good, notes_on_images
from export.precision.judge import MOST_TRIED, TRIED_PICTURES, Converted, Judge, Judgement, measured, tried_together
from export.proof import cases, graph_run
from export.samples import FittedImage, Samples
from runtime.card import ModelCard
from runtime.model_file.golden import NetworkFunction
from unet_core.reporting.progress import Display

FOLLOWERS = ("Relu", "MaxPool", "Concat", "Resize")
"""Operators that are fp16 if all values that they read are."""

TF32_SPLIT = 2.0**13 + 1
"""Factor that splits the 24 significant bits of fp32 into the 11 of TF32 and the 13 others."""

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""Factor by which a value may grow on other images before it overflows fp16."""


def convert_to_fp16(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    display: Display,
) -> Converted:
    """Convert to fp16, and judge the result. Layers that overflow, or that flip too many pixels, stay in fp32.

    Raises:
        ConfigError: a layer to keep is not in the graph, or all are to be kept.
    """
    layers = layers_of(model)
    able = layers_with_weights(model)
    check_keep(keep, layers, able)
    tried = samples.pictures(TRIED_PICTURES)
    seen = [*tried, *(image for case in cases(card) for image in case.images)]
    needed = {*keep, *overflowing(model, seen), *(layer for layer in layers if layer not in able)}
    kept, costs = search_layers(model, Judge(exact, tried, card), needed, display)

    def judged(kept: Sequence[str]) -> Judgement:
        run = graph_run(emulate_half(model, kept))
        return measured(run, exact, card, samples, kept, lambda gate: fp16_is_good(gate, layers), display)

    gate, doubt, finite = judged(kept)
    if gate.flipped > FP16_FLIPPED:
        kept, costs = search_layers(model, Judge(exact, samples.pictures(len(samples.measured)), card), needed, display)
        gate, doubt, finite = judged(kept)
    return Converted(
        model=to_half(model, kept),
        run=graph_run(emulate_half(model, kept)),
        gate=replace(gate, layers=len(layers)),
        doubt=doubt,
        finite=finite,
        costs=costs,
        twin=emulate_half(model, kept, weights_only=True),
        notes=(*notes_on_images(gate), *note_on_tf32(model, kept, Judge(exact, tried, card))),
    )


def note_on_tf32(model: onnx.ModelProto, kept: Collection[str], judge: Judge) -> list[str]:
    """Say if the layers that were kept in fp32 lose too much in TF32, in which GPUs multiply them by default."""
    if not kept or (flipped := judge.cost(graph_run(emulate_half(model, kept, tf32=True)))[0]) <= FP16_FLIPPED:
        return []
    return [
        f"GPUs with TF32 multiply the layers that stay in fp32 with no more bits than fp16: {flipped:.4%} of the "
        "pixels flip there; ProviderOptions(tf32=False) avoids that, and takes the tensor cores from all layers"
    ]


def search_layers(
    model: onnx.ModelProto, judge: Judge, needed: Collection[str], display: Display
) -> tuple[list[str], list[tuple[str, PrecisionCost]]]:
    """Search for the layers to keep in fp32 with `layers_to_keep`, judged by the graph that rounds."""
    layers = layers_of(model)
    with display.bar("finding layers that fp16 can hold", min(len(layers), MOST_TRIED) + 1, unit="try") as advance:

        def cost(kept: Collection[str]) -> PrecisionCost:
            advance(1)
            return judge.cost(graph_run(emulate_half(model, kept)))

        return layers_to_keep(layers, needed, cost, FP16_FLIPPED)


def layers_to_keep(
    layers: Sequence[str], needed: Collection[str], cost: Callable[[Collection[str]], PrecisionCost], limit: float
) -> tuple[list[str], list[tuple[str, PrecisionCost]]]:
    """Choose the layers to keep in fp32: as few as flip at most `limit` (0..1) of the pixels.

    Each layer is tried alone in fp16; of more than `MOST_TRIED`, neighbours are tried together. Then a bisection finds
    how many have to be kept, costliest first.

    Args:
        layers: all layers, in order.
        needed: layers to keep in any case.
        cost: returns the cost of keeping these layers.

    Returns:
        The layers to keep, and the cost of each other one (or those tried together, see `tried_together`) alone,
        costliest first; empty if the `needed` are enough.
    """
    if cost(needed)[0] <= limit:
        return [layer for layer in layers if layer in needed], []
    groups = tried_together([layer for layer in layers if layer not in needed])
    costs = {name: cost([layer for layer in layers if layer not in group]) for name, group in groups.items()}
    ranked = sorted(groups, key=lambda name: costs[name], reverse=True)

    def costliest(many: int) -> list[str]:
        return [layer for name in ranked[:many] for layer in groups[name]]

    low, high = 0, len(ranked)  # keeping `high` of them is enough: nothing is fp16 then
    while high - low > 1:
        middle = (low + high) // 2
        if cost([*needed, *costliest(middle)])[0] <= limit:
            high = middle
        else:
            low = middle
    kept = {*needed, *costliest(high)}
    return [layer for layer in layers if layer in kept], [(name, costs[name]) for name in ranked]


def overflowing(model: onnx.ModelProto, pictures: Sequence[FittedImage]) -> list[str]:
    """List the layers that fp16 cannot hold: a weight, or `HEADROOM` times a value on a picture, is too large.

    Before the bias is added, a value may be larger than the layer's output by as much as the bias.
    """
    able = layers_with_weights(model)
    layers = [node for node in model.graph.node if node.name in able]
    seen = extremes(model, sorted({name for node in layers for name in (node.input[0], node.output[0])}), pictures)
    weights = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0)) for tensor in model.graph.initializer
    }
    biases = {node.name: max((weights[name] for name in node.input[2:]), default=0.0) for node in layers}
    return [
        node.name
        for node in layers
        if not max(weights[name] for name in node.input[1:]) <= LARGEST
        or not HEADROOM * max(seen[node.input[0]], seen[node.output[0]] + biases[node.name]) <= LARGEST
    ]


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return a copy with all layers but `keep` in fp16."""
    return HalfConversion(model, keep, emulate=False).run()


def emulate_half(
    model: onnx.ModelProto, keep: Collection[str] = (), *, weights_only: bool = False, tf32: bool = False
) -> onnx.ModelProto:
    """Return an fp32 copy that rounds where the copy of `to_half` does.

    With `weights_only` it rounds as a CPU computes that copy; with `tf32` also what the layers in `keep` multiply.
    """
    return HalfConversion(model, keep, emulate=True, weights_only=weights_only, tf32=tf32).run()


class HalfConversion:
    """One walk over the nodes of a copy, which inserts a cast where a value and its reader differ in type."""

    def __init__(
        self,
        model: onnx.ModelProto,
        keep: Collection[str],
        *,
        emulate: bool,
        weights_only: bool = False,
        tf32: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.keep, self.emulate, self.weights_only, self.tf32 = keep, emulate, weights_only, tf32
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.half: set[str] = set()
        """Values that are fp16."""
        self.cast: set[str] = set()
        """Names under which values were cast already."""
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        """Convert the copy and return it."""
        graph = self.model.graph
        for node in list(graph.node):
            pictures = node.input if node.op_type == "Concat" else node.input[:1]
            if node.op_type in CONVOLUTIONS:
                is_half = node.name not in self.keep
            else:
                is_half = node.op_type in FOLLOWERS and len(node.output) == 1 and self.half.issuperset(pictures)
            if is_half:
                self.convert(node, set(pictures))
            else:
                self.leave(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        return self.model

    def convert(self, node: onnx.NodeProto, pictures: Collection[str]) -> None:
        """Let a node compute in fp16: cast the pictures that it reads, round its weights."""
        for index, value in enumerate(node.input):
            if value in pictures:
                node.input[index] = self.as_type(value, TensorProto.FLOAT16)
            elif node.op_type in CONVOLUTIONS:
                self.round_weight(self.weights[value])
        (output,) = node.output
        self.half.add(output)
        if not self.emulate or self.weights_only:
            self.nodes.append(node)
            return
        exact = node.output[0] = f"{output}.exact"
        self.nodes += [*self.with_bias_apart(node), *rounding_nodes(exact, output)]

    def with_bias_apart(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Take the bias out of a convolution, and add it after the sum of products was rounded."""
        if node.op_type not in CONVOLUTIONS or len(node.input) < 3:
            return [node]
        (output,), bias = node.output, node.input.pop()
        axes = len(self.weights[node.input[1]].dims) - 2
        planes = numpy_helper.to_array(self.weights[bias]).reshape(-1, *[1] * axes)  # [channels, 1, 1]
        self.weights[bias].CopyFrom(numpy_helper.from_array(planes, bias))
        products, rounded = f"{output}.products", f"{output}.products.half"
        node.output[0] = products
        add = helper.make_node("Add", [rounded, bias], [output], name=f"{output}.add")
        return [node, *rounding_nodes(products, rounded), add]

    def leave(self, node: onnx.NodeProto) -> None:
        """Let a node compute in fp32."""
        for index, value in enumerate(node.input):
            if value in self.half:
                node.input[index] = self.as_type(value, TensorProto.FLOAT)
        if self.tf32 and node.op_type in CONVOLUTIONS:
            for index, value in enumerate(node.input[:2]):
                node.input[index] = self.as_tf32(value)
        self.nodes.append(node)

    def as_tf32(self, value: str) -> str:
        """Return the name under which a value of fp32 has no more bits than TF32 multiplies."""
        name = f"{value}.tf32"
        if name not in self.cast:
            self.cast.add(name)
            split = numpy_helper.from_array(np.array(TF32_SPLIT, np.float32), f"{name}.split")
            self.model.graph.initializer.append(split)
            self.nodes += tf32_nodes(value, split.name, name)
        return name

    def round_weight(self, weight: onnx.TensorProto) -> None:
        """Round a weight to fp16 in place."""
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # layers with such weights are kept, or the proof shows it
            rounded = values.astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32) if self.emulate else rounded, weight.name))

    def as_type(self, value: str, kind: int) -> str:
        """Return the name under which a value has another type, casting it if it has not."""
        if (value in self.half) == (kind == TensorProto.FLOAT16) or (self.emulate and kind == TensorProto.FLOAT):
            return value
        if self.weights_only:
            return value
        name = f"{value}.{'half' if kind == TensorProto.FLOAT16 else 'single'}"
        if name not in self.cast:
            self.cast.add(name)
            self.nodes += rounding_nodes(value, name) if self.emulate else [cast_node(value, name, kind)]
        return name


def cast_node(value: str, name: str, kind: int) -> onnx.NodeProto:
    """Make a node that casts a value to another type, under another name."""
    return helper.make_node("Cast", [value], [name], name=f"{name}.cast", to=kind)


def tf32_nodes(value: str, split: str, name: str) -> list[onnx.NodeProto]:
    """Make the nodes that round a value to TF32 by Veltkamp's splitting (Dekker, 1971); `split` is `TF32_SPLIT`."""
    large, rest = f"{name}.large", f"{name}.rest"
    return [
        helper.make_node("Mul", [value, split], [large], name=large),
        helper.make_node("Sub", [large, value], [rest], name=rest),
        helper.make_node("Sub", [large, rest], [name], name=name),
    ]


def rounding_nodes(value: str, name: str) -> list[onnx.NodeProto]:
    """Make the nodes that cast a value to fp16 and back."""
    half = f"{name}.rounded"
    return [cast_node(value, half, TensorProto.FLOAT16), cast_node(half, name, TensorProto.FLOAT)]
