"""Conversion to int8: QuantizeLinear and DequantizeLinear around convolutions.

"s8" is what TensorRT takes: int8 with scales alone, for values and, per channel, for weights; biases stay fp32; all
values that meet in a Concat share one scale; the first and the last convolution and the transposed ones stay fp32.
"u8" is what x86 CPUs multiply fast: uint8 values with a zero point, weights of 7 bits, int32 biases, all layers, unless
that loses too much; the output of a convolution is quantised too, whoever reads it. What meets in a Concat has its
scale from the start, but for what comes out of a ReLU, whose zero is 0. In both, a MaxPool has one scale on both sides.

Symmetric per-channel weights after Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
2018.
"""

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.layers import layers_of, layers_with_weights
from export.options import Values, check_keep
from export.precision.calibration import Ranges, calibrate
from export.precision.for_cpus import for_cpus, range_of_pictures
from export.precision.gate import PrecisionCost, int8_is_good, notes_on_images
from export.precision.judge import TRIED_PICTURES, Converted, Judge, measured, tried_together
from export.proof import graph_run
from export.samples import FittedImage, Samples, spread
from runtime.card import ModelCard
from runtime.model_file.golden import NetworkFunction
from unet_core.reporting.progress import Display

INT8_MAX = 127
UINT8_MAX = 255
WEIGHT_MAX: Mapping[Values, int] = {"s8": INT8_MAX, "u8": 64}
"""Largest |weight| as an integer.

CPUs without VNNI add two products of uint8 and int8 in 16 bits. Up to 64 the sum fits, and all CPUs answer alike.
"""

BIAS_MAX = 2**30
"""Largest |bias| as an int32, which leaves room for what is added to it."""

SMALLEST_RANGE = 1e-12
"""Smallest range of values and weights: that of zeros."""

SAME_RANGE: Mapping[Values, Sequence[str]] = {"s8": ("MaxPool", "Concat"), "u8": ("MaxPool", "Concat", "DepthToSpace")}
"""Operators that only move or choose values."""

ELSEWHERE: Mapping[Values, str] = {
    "u8": "TensorRT does not take this file, whose zero points are not 0, and device cuda computes its convolutions in "
    "fp32; give --for tensorrt for TensorRT, --precision fp16 for cuda",
    "s8": "device cuda computes the convolutions of this file in fp32, with rounding between them, and gains nothing; "
    "give --precision fp16 for cuda",
}
"""Costs of int8 files in the other places; seen on the stand-in for CUDA and read of TensorRT, see docs/gpu.md."""

BLAMED_PICTURES = 8
"""Number of pictures that layers are tried on alone after a gate failed, only to name those that lose most."""

TIMED_ROUNDS = 5
"""Number of rounds in `speed`."""


@dataclass(frozen=True)
class Scale:
    """A quantisation: real = scale * (quantised - zero)."""

    scale: np.float32
    zero: NDArray[np.generic]


def convert_to_int8(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    values: Values,
    display: Display,
) -> Converted:
    """Convert to int8, calibrated on the samples, and judge the result.

    Raises:
        ConfigError: as `convert_to_fp16`.
    """
    able = quantisable(model, values)
    check_keep(keep, layers_of(model), able)
    wanted = [layer for layer in able if layer not in keep]
    inner = [layer for layer in quantisable(model, "s8") if layer in wanted]
    model, judge, found = prepared(model, wanted, card, samples, values, display)
    for layers in (wanted, inner) if values == "u8" and 0 < len(inner) < len(wanted) else (wanted,):
        ranges = min(found, key=lambda ranges: judge.cost(graph_run(to_int8(model, layers, ranges, values))))
        converted = to_int8(model, layers, ranges, values)
        run = graph_run(converted)
        kept = [layer for layer in layers_of(model) if layer not in layers]
        gate, doubt, finite = measured(run, exact, card, samples, kept, int8_is_good, display)
        if gate.passed or doubt:
            break
    costs: list[tuple[str, PrecisionCost]] = []
    if not gate.passed:
        judge = Judge(exact, samples.pictures(BLAMED_PICTURES), card)
        groups = tried_together(layers)
        costs = [
            (name, judge.cost(graph_run(to_int8(model, groups[name], ranges, values))))
            for name in display.through(groups, "finding layers that lose most", len(groups), unit="try")
        ]
        costs.sort(key=lambda cost: cost[1], reverse=True)
    notes = [*notes_on_images(gate), speed(run, exact, samples.measured[0][0], values), ELSEWHERE[values]]
    if layers != wanted and gate.passed:
        spared = ", ".join(layer for layer in wanted if layer not in layers)
        notes.insert(0, f"{spared} stay in fp32: with all layers in int8 the file loses too much")
    gate = replace(gate, layers=len(layers_of(model)))
    return Converted(model=converted, run=run, gate=gate, doubt=doubt, finite=finite, costs=costs, notes=tuple(notes))


def prepared(
    model: onnx.ModelProto,
    layers: Collection[str],
    card: ModelCard,
    samples: Samples,
    values: Values,
    display: Display,
) -> tuple[onnx.ModelProto, Judge, Sequence[Ranges]]:
    """Return the fp32 graph to convert, a judge on the pictures to calibrate on, and the ranges to choose from."""
    known = range_of_pictures(model) if values == "u8" else {}
    model = for_cpus(model) if values == "u8" else model
    pictures = [samples.calibration[index][0] for index in spread(range(len(samples.calibration)), TRIED_PICTURES)]
    mean, widest, answers = calibrate(model, values_to_calibrate(model, layers, values), pictures, display)
    return model, Judge(answers, pictures, card), ({**mean, **known}, {**widest, **known})


def speed(run: NetworkFunction, exact: NetworkFunction, picture: FittedImage, values: Values) -> str:
    """Say in a line how fast an int8 graph is on this CPU beside the fp32 one: the best of some rounds each."""
    best = [float("inf"), float("inf")]
    for _ in range(TIMED_ROUNDS):
        for index, one in enumerate((run, exact)):
            started = time.perf_counter()
            one(picture[None])
            best[index] = min(best[index], 1000 * (time.perf_counter() - started))
    verdict = "faster" if best[0] < best[1] else "no faster"
    found = f"is {verdict} than fp32 on this CPU: {best[0]:.1f} ms an image against {best[1]:.1f} ms"
    return f"int8 for CPUs {found}" if values == "u8" else f"int8 for TensorRT {found}; give --for cpu for CPUs"


def quantisable(model: onnx.ModelProto, values: Values) -> list[str]:
    """List the layers that can be int8; with "s8" all convolutions but the first, the last and the transposed ones.

    Those whose weights the graph computes are none, either.
    """
    able = layers_with_weights(model)
    if values == "u8":
        return able
    kinds = {node.name: node.op_type for node in model.graph.node}
    return [name for name in layers_of(model)[1:-1] if kinds[name] == "Conv" and name in able]


def values_to_calibrate(model: onnx.ModelProto, layers: Collection[str], values: Values) -> list[str]:
    """List the values whose ranges `to_int8` needs for these layers; values that are only moved share a range."""
    return sorted({value for made_of in origins_of(model, layers, values).values() for value in made_of})


def to_int8(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges, values: Values) -> onnx.ModelProto:
    """Return a copy with `layers` in int8."""
    converted = copy.deepcopy(model)
    graph = converted.graph
    scales = {value: scale_of(made_of, ranges, values) for value, made_of in origins_of(model, layers, values).items()}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.name in layers or values == "u8" or (node.op_type in SAME_RANGE[values] and node.output[0] in scales):
            node.input[:] = [f"{value}.dequantised" if value in scales else value for value in node.input]
        if node.name in layers:
            incoming = scales[node.input[0].removesuffix(".dequantised")]
            nodes += quantise_weights(graph, node, weights, incoming, values)
        nodes.append(node)
        for value in node.output:
            if value in scales:
                nodes += quantise_value(graph, value, scales[value])
    del graph.node[:]
    graph.node.extend(nodes)
    return converted


def origins_of(model: onnx.ModelProto, layers: Collection[str], values: Values) -> dict[str, set[str]]:
    """Find the values to hold as integers, each with the values whose ranges its scale has to cover.

    Those are the values that it is made of by moving or choosing, and with "s8" the ones that meet it in a Concat. With
    "u8" what a layer gives straight to a Concat is held as the Concat holds it, which spares rounding it twice.
    """
    makers = {value: node for node in model.graph.node for value in node.output}
    found: dict[str, set[str]] = {}

    def made_of(value: str) -> set[str]:
        if value not in found:
            moved = makers[value].input if makers[value].op_type in SAME_RANGE[values] else ()
            moved = moved if {*moved} <= {*makers} else ()  # a constant, such as coordinates, has no scale
            found[value] = set().union(*map(made_of, moved)) if moved else {value}
        return found[value]

    for node in model.graph.node:
        if node.name in layers:
            made_of(node.input[0])
        elif values == "u8" and node.op_type == "Relu" and makers[node.input[0]].name in layers:
            made_of(node.output[0])  # a CPU multiplies integers only where integers come out too
    if values == "u8":
        for node in model.graph.node:
            joined = node.input if node.op_type == "Concat" and node.output[0] in found else ()
            for value in (one for one in joined if one in makers):
                straight = [value, *(makers[value].input if makers[value].op_type == "DepthToSpace" else ())]
                if makers[straight[-1]].name in layers:
                    found.update(dict.fromkeys(straight, found[node.output[0]]))
        return found

    def joined_with(own: set[str]) -> set[str]:
        """Add the sets that share a value with this one, or with a set that was added."""
        whole: set[str] = set()
        while own != whole:
            whole = own
            own = whole.union(*(other for other in found.values() if other & whole))
        return whole

    return {value: joined_with(own) for value, own in found.items()}


def scale_of(made_of: Collection[str], ranges: Ranges, values: Values) -> Scale:
    """Return the scale that covers the ranges of all these values, and zero."""
    low = min(0.0, *(ranges[value][0] for value in made_of))
    high = max(0.0, *(ranges[value][1] for value in made_of))
    if values == "s8":
        return Scale(np.float32(max(-low, high, SMALLEST_RANGE) / INT8_MAX), np.array(0, np.int8))
    scale = np.float32(max(high - low, SMALLEST_RANGE) / UINT8_MAX)
    return Scale(scale, np.array(np.clip(round(-low / float(scale)), 0, UINT8_MAX), np.uint8))


def quantise_value(graph: onnx.GraphProto, value: str, scale: Scale) -> list[onnx.NodeProto]:
    """Make the nodes that quantise a value and dequantise it again; its int8 readers take the latter."""
    constants = add_constants(graph, value, scale.scale, scale.zero)
    quantised, dequantised = f"{value}.quantised", f"{value}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [value, *constants], [quantised], name=quantised),
        helper.make_node("DequantizeLinear", [quantised, *constants], [dequantised], name=dequantised),
    ]


def quantise_weights(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    incoming: Scale,
    values: Values,
) -> list[onnx.NodeProto]:
    """Replace a layer's weights, and with "u8" a convolution's bias, by integers; return the nodes that decode them."""
    weight, most = numpy_helper.to_array(weights[node.input[1]]), WEIGHT_MAX[values]
    axis = 1 if node.op_type == "ConvTranspose" else 0  # that of the output channels
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), SMALLEST_RANGE) / most
    with_bias = values == "u8" and len(node.input) > 2 and node.op_type == "Conv"
    if with_bias:
        bias = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64)
        # A channel with tiny weights may have a bias that overflows int32 at the scale of the weights.
        scale = np.maximum(scale, np.abs(bias) / (float(incoming.scale) * BIAS_MAX))
    scale = scale.astype(np.float32)
    integers = np.clip(np.rint(weight / np.expand_dims(scale, others)), -most, most).astype(np.int8)
    nodes = [replace_by_integers(graph, node, 1, weights[node.input[1]], integers, scale, axis)]
    if with_bias:
        bias_scale = scale * incoming.scale
        bias_integers = np.rint(bias / bias_scale).astype(np.int32)
        nodes.append(replace_by_integers(graph, node, 2, weights[node.input[2]], bias_integers, bias_scale, 0))
    return nodes


def replace_by_integers(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    index: int,
    tensor: onnx.TensorProto,
    integers: NDArray[np.generic],
    scale: NDArray[np.float32],
    axis: int,
) -> onnx.NodeProto:
    """Replace a weight, input `index` of a node, by integers with scales along an axis; return its decoder."""
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(integers, name))
    constants = add_constants(graph, name, scale, np.zeros(scale.shape, integers.dtype))
    node.input[index] = f"{name}.dequantised"
    decoded = node.input[index]
    return helper.make_node("DequantizeLinear", [name, *constants], [decoded], name=decoded, axis=axis)


def add_constants(graph: onnx.GraphProto, name: str, scale: object, zero: NDArray[np.generic]) -> Sequence[str]:
    """Add scale and zero point of a tensor to the graph; return their names."""
    names = f"{name}.scale", f"{name}.zero"
    graph.initializer.extend(
        [numpy_helper.from_array(np.asarray(scale, np.float32), names[0]), numpy_helper.from_array(zero, names[1])]
    )
    return names
