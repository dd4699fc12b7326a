from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import make_card, make_network
from onnx import TensorProto, helper, numpy_helper

from export.graph import build_graph
from export.layers import layers_of
from export.precision import int8
from export.precision.calibration import calibrate
from export.precision.for_cpus import for_cpus, range_of_pictures
from export.precision.int8 import BIAS_MAX, convert_to_int8, quantisable, speed, to_int8, values_to_calibrate
from export.proof import graph_run
from export.samples import load_samples, synthetic_samples
from runtime.errors import ConfigError
from unet_core.model import Segmenter, UNet, UNetConfig
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)

BOTH = pytest.mark.parametrize("values", ["s8", "u8"])


@pytest.fixture(scope="module")
def graphs(trained):
    """The fp32 graphs that are converted."""
    return {"s8": trained.graph, "u8": for_cpus(trained.graph)}


@pytest.fixture(scope="module")
def ranges(trained, graphs):
    names = {
        name
        for values, graph in graphs.items()
        for name in values_to_calibrate(graph, quantisable(graph, values), values)
    }
    pictures = [picture for picture, _ in trained.samples.calibration]
    return {**calibrate(graphs["u8"], sorted(names), pictures, QUIET).mean, **range_of_pictures(trained.graph)}


@pytest.fixture(scope="module")
def converted(graphs, ranges):
    return {values: to_int8(graph, quantisable(graph, values), ranges, values) for values, graph in graphs.items()}


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes_of(model):
    return {node.name: node for node in model.graph.node}


def scale_of(model, value):
    """Scale and zero point that a value is quantised with."""
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == value)
    return tuple(weights_of(model)[name].item() for name in node.input[1:])


INNER = [
    "downs.0.conv.3",
    "downs.1.conv.0",
    "downs.1.conv.3",
    "bottleneck.conv.0",
    "bottleneck.conv.3",
    "ups.1.conv.0",
    "ups.1.conv.3",
    "ups.3.conv.0",
    "ups.3.conv.3",
]


def test_s8_takes_all_convolutions_but_the_first_the_last_and_the_transposed_ones_u8_takes_all_layers(trained):
    assert quantisable(trained.graph, "s8") == INNER
    assert quantisable(trained.graph, "u8") == layers_of(trained.graph)
    assert {*layers_of(trained.graph)} - {*INNER} == {"downs.0.conv.0", "ups.0", "ups.2", "final_conv"}


@BOTH
def test_valid_with_the_same_inputs_and_outputs_and_no_name_twice(trained, converted, values):
    model = converted[values]
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.input, model.graph.output) == (trained.graph.graph.input, trained.graph.graph.output)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def test_other_layers_are_untouched_by_s8(trained, converted):
    before, after = weights_of(trained.graph), weights_of(converted["s8"])
    for layer in ("downs.0.conv.0", "ups.0", "ups.2", "final_conv"):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            assert np.array_equal(before[name], after[name])
            assert name in nodes_of(converted["s8"])[layer].input


def test_u8_holds_transposed_convolutions_with_a_scale_for_each_output_channel_and_their_bias_in_fp32(
    trained, converted
):
    before, after = weights_of(trained.graph), weights_of(converted["u8"])
    for layer in ("ups.0", "ups.2"):
        exact, integers, scale = (
            before[f"{layer}.weight"],
            after[f"{layer}.weight"],
            after[f"{layer}.weight.scale"],
        )
        assert (integers.dtype, scale.shape) == (np.int8, (exact.shape[1],))  # [in, out, 2, 2]
        assert np.abs(integers * scale[None, :, None, None] - exact).max() <= scale.max() / 2 * 1.0001
        assert np.array_equal(before[f"{layer}.bias"], after[f"{layer}.bias"])


def test_u8_reads_the_picture_as_its_bytes(converted):
    """The card's mean is 0 and its deviation 1, so a byte is its own quantised value."""
    model = converted["u8"]
    value = nodes_of(model)["downs.0.conv.0"].input[0].removesuffix(".dequantised")
    assert scale_of(model, value) == (np.float32(1 / 255), 0)


def test_u8_holds_what_a_layer_gives_to_a_concat_as_the_concat_does(converted):
    model = converted["u8"]
    for level, up in (("downs.1", "ups.0"), ("downs.0", "ups.2")):
        concat = f"ups.{int(up[4:]) + 1}.concat"
        assert scale_of(model, up) == scale_of(model, concat) != scale_of(model, f"{level}.conv.3.relu")


def test_s8_is_symmetric_with_a_scale_for_each_channel_and_biases_in_fp32(trained, converted):
    weights = weights_of(converted["s8"])
    zeros = [value for name, value in weights.items() if name.endswith(".zero")]
    assert zeros and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    for layer in INNER:
        integers, scale = weights[f"{layer}.weight"], weights[f"{layer}.weight.scale"]
        exact = weights_of(trained.graph)[f"{layer}.weight"]
        assert (integers.dtype, integers.min() >= -127) == (np.int8, True)
        assert scale.shape == (len(exact),)
        assert np.abs(integers * scale[:, None, None, None] - exact).max() <= scale.max() / 2 * 1.0001
        assert weights[f"{layer}.bias"].dtype == np.float32


def test_u8_keeps_weights_to_7_bits_and_biases_as_int32(trained, converted):
    weights = weights_of(converted["u8"])
    for layer in [*INNER, "downs.0.conv.0", "final_conv"]:
        integers, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        assert (integers.dtype, int(np.abs(integers).max())) == (np.int8, 64)
        assert bias.dtype == np.int32
        assert np.allclose(bias * weights[f"{layer}.bias.scale"], weights_of(trained.graph)[f"{layer}.bias"], atol=1e-3)
    assert all(value.dtype == np.uint8 for name, value in weights.items() if name.endswith("relu.zero"))


def test_s8_has_one_scale_for_all_that_meets_in_a_concat_and_around_a_maxpool(converted):
    model = converted["s8"]
    for level, up in (("downs.1", "ups.0"), ("downs.0", "ups.2")):
        concat = f"ups.{int(up[4:]) + 1}.concat"
        values = [f"{level}.conv.3.relu", f"{level}.conv.3.maxpool", up, concat]
        assert len({scale_of(model, value) for value in values}) == 1
        assert list(nodes_of(model)[concat].input) == [f"{level}.conv.3.relu.dequantised", f"{up}.dequantised"]
    assert scale_of(model, "ups.1.concat") != scale_of(model, "ups.3.concat")


def test_u8_has_one_scale_around_a_maxpool_and_gives_the_relus_of_a_concat_the_zero_0(converted):
    model = converted["u8"]
    for level in ("downs.0", "downs.1"):
        assert scale_of(model, f"{level}.conv.3.relu") == scale_of(model, f"{level}.conv.3.maxpool")
        assert scale_of(model, f"{level}.conv.3.relu")[1] == 0
    assert scale_of(model, "ups.2")[1] > 0


def test_the_scale_is_what_was_calibrated(converted, ranges):
    group = ("downs.1.conv.3.relu", "ups.0")
    largest = max(abs(bound) for value in group for bound in ranges[value])
    assert scale_of(converted["s8"], "ups.1.concat") == (pytest.approx(largest / 127), 0)
    low, high = (bound([ranges[value][at] for value in group]) for at, bound in enumerate((min, max)))
    scale, zero = scale_of(converted["u8"], "ups.1.concat")
    assert scale == pytest.approx((high - low) / 255)
    assert zero == round(-low / scale)


def test_onnx_runtime_multiplies_integers_in_every_layer_of_u8(converted, tmp_path, trained):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(converted["u8"].SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == len(["downs.0.conv.0", *INNER])  # the last one gives logits, which are no integers
    assert kinds["QLinearConcat"] == 2
    assert kinds["Relu"] == kinds["FusedConv"] == 0


def observed(model, names, picture):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    # Unoptimised: these are values that an optimised graph does not have.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(names), {"image": picture[None]})


@BOTH
def test_one_layer_by_hand_in_integers(trained, converted, values):
    """A pixel of downs.1.conv.3: integers multiplied and added, then scaled."""
    model, weights = converted[values], weights_of(converted[values])
    picture = trained.samples.measured[0][0]
    entering, leaving = observed(model, ["downs.1.conv.0.relu", "downs.1.conv.3"], picture)
    scale, zero = scale_of(model, "downs.1.conv.0.relu")
    low, high = (-128, 127) if values == "s8" else (0, 255)
    integers = np.clip(np.rint(entering / np.float32(scale)) + zero, low, high).astype(np.int64) - zero
    patch = integers[0, :, 9:12, 4:7]  # [channels, 3, 3]
    for channel in range(leaving.shape[1]):
        total = int((patch * weights["downs.1.conv.3.weight"][channel]).sum())
        weight_scale = weights["downs.1.conv.3.weight.scale"][channel]
        bias = weights["downs.1.conv.3.bias"][channel]
        if values == "u8":
            bias = bias * weights["downs.1.conv.3.bias.scale"][channel]
        assert leaving[0, channel, 10, 5] == pytest.approx(total * scale * weight_scale + bias, rel=1e-4, abs=1e-5)


@BOTH
def test_answers_stay_near_those_of_fp32(trained, converted, values):
    picture = trained.samples.measured[0][0][None]
    assert 1e-4 < np.abs(graph_run(converted[values])(picture) - trained.exact(picture)).mean() < 0.02


@BOTH
def test_channels_of_no_weights_keep_their_bias(trained, graphs, ranges, scaled, values):
    """A bias in units of a scale that is almost zero is no int32."""
    model = scaled(graphs[values], {"downs.1.conv.0.weight": 0})
    model = scaled(model, {"ups.1.conv.0.weight": 1e-12})
    converted = to_int8(model, quantisable(model, values), ranges, values)
    (value,) = observed(converted, ["downs.1.conv.0"], trained.samples.measured[0][0])
    assert np.allclose(value.mean(axis=(0, 2, 3)), weights_of(trained.graph)["downs.1.conv.0.bias"], rtol=1e-3)
    biases = [tensor for name, tensor in weights_of(converted).items() if name.endswith(".bias")]
    assert all(np.abs(bias.astype(np.int64)).max() <= 1.001 * BIAS_MAX for bias in biases if bias.dtype == np.int32)


@BOTH
def test_values_that_are_always_zero_keep_what_follows_them(trained, ranges, scaled, values):
    model = scaled(trained.graph, {"bottleneck.conv.0.weight": 0, "bottleneck.conv.0.bias": 0})
    of_zeros = ranges | {"bottleneck.conv.0.relu": (0.0, 0.0)}
    picture = trained.samples.measured[0][0]
    converted = to_int8(model, ["bottleneck.conv.3"], of_zeros, values)
    found, expected = (observed(one, ["bottleneck.conv.3"], picture)[0] for one in (converted, model))
    assert np.abs(expected).max() > 0.01
    assert np.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "network",
    [
        make_network(up="bilinear"),
        make_network(up="bilinear-wide", classes=3, in_channels=1),
        UNet(UNetConfig(widths=(5,))),
    ],
    ids=["bilinear", "bilinear-wide", "fresh, whose folded biases are zero and left out"],
)
def test_every_architecture(network):
    card = make_card(network.eval())
    model, samples = build_graph(Segmenter(network, card).eval(), card), synthetic_samples(card)
    pictures = [picture for picture, _ in samples.calibration]
    picture = pictures[0][None]
    exact = graph_run(model)(picture)
    for values, graph in (("s8", model), ("u8", for_cpus(model))):
        layers = quantisable(graph, values)
        ranges = calibrate(graph, values_to_calibrate(graph, layers, values), pictures, QUIET).mean
        converted = to_int8(graph, layers, ranges, values)
        onnx.checker.check_model(converted, full_check=True)
        assert np.abs(graph_run(converted)(picture) - exact).mean() < 0.01


def int8_of(trained, samples, *keep, values="s8"):
    card = replace(trained.card, precision="int8")
    return convert_to_int8(trained.graph, trained.exact, card, samples, keep, values, QUIET)


@pytest.mark.parametrize("values", ["s8", "u8"])
def test_int8_calibrated_on_fitting_images_passes(trained, values):
    converted = int8_of(trained, trained.samples, values=values)
    gate = converted.gate
    assert gate.passed
    assert 0 < gate.flipped < 0.01
    assert abs(gate.image_dice_fp32 - gate.image_dice) <= 0.002
    assert gate.kept == (("downs.0.conv.0", "ups.0", "ups.2", "final_conv") if values == "s8" else ())
    assert converted.notes[0] == "judged on 6 real images, which is little; give more in --data"
    assert len(converted.notes) == 3
    elsewhere = {
        "s8": "device cuda computes the convolutions of this file in fp32, with rounding between them, and gains "
        "nothing; give --precision fp16 for cuda",
        "u8": "TensorRT does not take this file, whose zero points are not 0, and device cuda computes its "
        "convolutions in fp32; give --for tensorrt for TensorRT, --precision fp16 for cuda",
    }
    assert converted.notes[-1] == elsewhere[values]


@pytest.mark.parametrize("masks", [True, False], ids=["by Dice", "by flipped pixels"])
def test_int8_calibrated_on_wrong_images_fails_and_names_layers(trained, flat, masks):
    wrong = load_samples(flat, trained.card)
    converted = int8_of(trained, wrong if masks else replace(wrong, labelled=False))
    gate = converted.gate
    assert not gate.passed
    assert (gate.image_dice is not None) == masks
    assert gate.flipped > 0.05
    assert f"alone, {converted.costs[0][0]} flips " in converted.refusal()
    shares = [flipped for _, (flipped, _) in converted.costs]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.01


def test_int8_without_masks_passes_by_flipped_pixels(trained):
    gate = int8_of(trained, replace(trained.samples, labelled=False)).gate
    assert (gate.passed, gate.image_dice, gate.image_dice_fp32) == (True, None, None)
    assert gate.flipped <= 0.005


def test_where_all_layers_lose_too_much_the_inner_ones_are_int8(trained, monkeypatch):
    """As if only a file of nine layers were good enough."""
    monkeypatch.setattr(int8, "int8_is_good", lambda gate: len(gate.kept) == 4)
    converted = int8_of(trained, trained.samples, values="u8")
    assert converted.gate.kept == ("downs.0.conv.0", "ups.0", "ups.2", "final_conv")
    assert converted.gate.passed
    assert converted.notes[0] == (
        "downs.0.conv.0, ups.0, ups.2, final_conv stay in fp32: with all layers in int8 the file loses too much"
    )
    monkeypatch.setattr(int8, "int8_is_good", lambda gate: False)
    assert not int8_of(trained, trained.samples, values="u8").gate.passed


def test_what_few_pictures_show_is_not_cut_off(trained):
    """One of nine pictures to calibrate on has the object: its values are the widest."""
    pictures = [trained.samples.calibration[0][0]] + [np.full((64, 96, 3), 20, np.uint8)] * 8
    calibration = [(picture, None) for picture in pictures]
    converted = int8_of(trained, replace(trained.samples, calibration=calibration))
    assert converted.gate.passed


def test_speed_says_which_one_is_faster(trained, monkeypatch):
    picture = trained.samples.measured[0][0]
    clock = iter(range(1000))
    monkeypatch.setattr(int8.time, "perf_counter", lambda: next(clock) / 1000)
    slow = lambda batch: [next(clock) for _ in range(9)]  # noqa: E731
    fast = lambda batch: None  # noqa: E731
    found = "int8 for CPUs is faster than fp32 on this CPU: 1.0 ms an image against 10.0 ms"
    assert speed(fast, slow, picture, "u8") == found
    found = (
        "int8 for TensorRT is no faster than fp32 on this CPU: 10.0 ms an image against 1.0 ms; give --for cpu for CPUs"
    )
    assert speed(slow, fast, picture, "s8") == found


def test_layers_to_keep_stay_and_are_named(trained):
    assert "bottleneck.conv.0" in int8_of(trained, trained.samples, "bottleneck.conv.0").gate.kept
    with pytest.raises(ConfigError, match=r"--keep nothing: no such layer; expected some of downs\.0\.conv\.0, "):
        int8_of(trained, trained.samples, "nothing")
    with pytest.raises(ConfigError, match="--keep: names all of "):
        int8_of(trained, trained.samples, *layers_of(trained.graph))


@BOTH
def test_a_constant_beside_a_layer_s_values_has_no_scale_of_its_own(graphs, ranges, trained, values):
    """As coordinates have, which files of a fixed size hold."""
    model = onnx.ModelProto.FromString(graphs[values].SerializeToString())
    last = next(node for node in model.graph.node if node.name == "final_conv")
    before, after = last.input[0], list(model.graph.node).index(last)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([array, array[:, :1]], axis=1), weight.name))
    height, width = trained.card.input.size
    constant = numpy_helper.from_array(np.full((1, 1, height, width), 3, np.float32), "coordinates")
    model.graph.initializer.append(constant)
    model.graph.node.insert(after, helper.make_node("Concat", [before, "coordinates"], ["both"], name="both", axis=1))
    last.input[0] = "both"
    layers = [*quantisable(model, values), "final_conv"]
    names = values_to_calibrate(model, layers, values)
    assert "both" in names and "coordinates" not in names
    picture = trained.samples.calibration[0][0]
    converted = to_int8(model, layers, calibrate(model, names, [picture], QUIET).widest, values)
    onnx.checker.check_model(converted, full_check=True)
    assert np.abs(graph_run(converted)(picture[None]) - graph_run(model)(picture[None])).max() < 0.1
