import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from networks import make_card, make_network
from onnx import TensorProto, helper, numpy_helper

from export.graph import build_graph
from export.layers import layers_of
from export.precision import fp16, judge
from export.precision.fp16 import convert_to_fp16, emulate_half, layers_to_keep, overflowing, to_half
from export.precision.gate import FP16_FLIPPED
from export.precision.judge import MOST_TRIED
from export.proof import graph_run
from export.samples import synthetic_samples
from runtime.errors import ConfigError
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)


def types_of(model):
    """The element type of every value and weight."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def test_the_network_is_fp16_and_what_is_around_it_is_not(trained):
    half = to_half(trained.graph)
    onnx.checker.check_model(half, full_check=True)
    assert (half.graph.input, half.graph.output) == (trained.graph.graph.input, trained.graph.graph.output)
    types = types_of(half)
    for node in half.graph.node:
        kinds = {types[value] for value in (*node.input, *node.output) if value in types}
        inside = not node.name.startswith(("before.", "after.")) and node.op_type != "Cast"
        assert kinds == {TensorProto.FLOAT16} if inside else node.op_type == "Cast" or TensorProto.FLOAT16 not in kinds
    names = [node.name for node in half.graph.node]
    assert len(set(names)) == len(names)
    assert graph_run(half)(trained.samples.measured[0][0][None]).dtype == np.float32


def test_each_way_between_the_types_is_one_cast(trained):
    kept = "bottleneck.conv.0"
    added = [node for node in to_half(trained.graph, [kept]).graph.node if node.op_type == "Cast"][1:]
    # into the network, into and out of the layer that is kept, out of the network
    assert [(node.input[0], node.attribute[0].i) for node in added] == [
        ("before.pad", TensorProto.FLOAT16),
        ("downs.1.conv.3.maxpool", TensorProto.FLOAT),
        ("bottleneck.conv.0.relu", TensorProto.FLOAT16),
        ("final_conv", TensorProto.FLOAT),
    ]


def test_the_graph_is_not_changed_in_place(trained):
    before = trained.graph.SerializeToString(deterministic=True)
    to_half(trained.graph)
    emulate_half(trained.graph)
    assert trained.graph.SerializeToString(deterministic=True) == before


def test_half_the_bytes(trained):
    def bytes_of(model):
        return sum(len(numpy_helper.to_array(tensor).tobytes()) for tensor in model.graph.initializer)

    assert bytes_of(to_half(trained.graph)) < 0.55 * bytes_of(trained.graph)
    assert bytes_of(to_half(trained.graph, layers_of(trained.graph))) == bytes_of(trained.graph)


def rounded(value):
    return value.half().float()


def with_bias(products, bias):
    """As the CUDA provider does it: a convolution in fp16, whose result is rounded, and then the sum with the bias."""
    return rounded(rounded(products) + bias[:, None, None])


def in_half_by_hand(network, x):
    """A U-Net's logits where weights and the result of every operation are rounded to fp16."""

    def conv(x, convolution, norm):
        with torch.no_grad():
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight = rounded(convolution.weight * factor[:, None, None, None])
            bias = rounded(norm.bias - norm.running_mean * factor)
        return torch.relu(with_bias(torch.nn.functional.conv2d(x, weight, padding=1), bias))

    def block(x, layers):
        return conv(conv(x, *layers[:2]), *layers[3:5])

    skips, x = [], rounded(x)
    for down in network.downs:
        x = block(x, down.conv)
        skips.append(x)
        x = torch.max_pool2d(x, 2)
    x = block(x, network.bottleneck.conv)
    for up, double in zip(network.ups[::2], network.ups[1::2], strict=True):
        x = with_bias(torch.nn.functional.conv_transpose2d(x, rounded(up.weight), stride=2), rounded(up.bias))
        x = block(torch.cat([skips.pop(), x], dim=1), double.conv)
    final = network.final_conv
    return with_bias(torch.nn.functional.conv2d(x, rounded(final.weight)), rounded(final.bias))


def test_emulation_rounds_as_fp16_does(trained):
    """Against PyTorch by hand; sums differ in order, so a value may be rounded to its neighbour now and then."""
    picture = trained.samples.measured[0][0]
    with torch.inference_mode():
        planes = trained.segmenter.normalise(torch.from_numpy(picture)[None])
        by_hand = in_half_by_hand(trained.segmenter.network, planes).sigmoid().numpy()
    emulated, exact = graph_run(emulate_half(trained.graph))(picture[None]), trained.exact(picture[None])
    assert np.abs(emulated - by_hand).mean() < 0.2 * np.abs(exact - by_hand).mean()
    assert np.abs(emulated - exact).max() > 1e-5


def one_layer(operator, weights, bias):
    """A graph of one convolution of 1x1: uint8 [batch, height, width, 2] -> float32 [batch, 1, height, width]."""
    shape = (1, 2, 1, 1) if operator == "Conv" else (2, 1, 1, 1)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(operator, ["planes", "weight", "bias"], ["probability"], name="layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "h", "w", 2])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1, "h", "w"])],
        [
            numpy_helper.from_array(np.array(weights, np.float32).reshape(shape), "weight"),
            numpy_helper.from_array(np.array([bias], np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_the_bias_is_added_after_the_products_are_rounded(operator):
    """fp16 counts in steps of 2 from 2048: 2048.75 is rounded to 2048, and 2048.5 again; 2049.25 would be 2050."""
    picture = np.ones((1, 3, 4, 2), np.uint8)
    model = one_layer(operator, (2048, 0.75), 0.5)
    assert (graph_run(model)(picture) == 2049.25).all()
    emulated = emulate_half(model)
    assert (graph_run(emulated)(picture) == 2048).all()
    onnx.checker.check_model(emulated, full_check=True)
    assert (graph_run(emulate_half(model, weights_only=True))(picture) == 2049.25).all()  # as a CPU computes the file


@pytest.mark.parametrize(("picture", "weight", "answer"), [(1, 2049, 2048), (1, 2051, 2052), (255, 257, 255 * 257)])
def test_kept_layers_multiply_11_bits_in_tf32_and_add_their_bias_in_fp32(picture, weight, answer):
    model = one_layer("Conv", (weight, 0), 0.0625)
    pictures = np.full((1, 3, 4, 2), picture, np.uint8)
    assert (graph_run(emulate_half(model, ["layer"]))(pictures) == picture * weight + 0.0625).all()
    emulated = emulate_half(model, ["layer"], tf32=True)
    assert (graph_run(emulated)(pictures) == answer + 0.0625).all()
    onnx.checker.check_model(emulated, full_check=True)


def test_a_layer_overflows_where_its_bias_only_hides_it():
    pictures = [np.ones((3, 4, 2), np.uint8)]
    assert overflowing(one_layer("Conv", (15_000, 0), -15_000), pictures) == []
    assert overflowing(one_layer("Conv", (20_000, 0), -20_000), pictures) == ["layer"]


def test_nothing_is_rounded_where_all_is_kept(trained):
    picture = trained.samples.measured[0][0][None]
    emulated = graph_run(emulate_half(trained.graph, layers_of(trained.graph)))(picture)
    assert np.array_equal(emulated, trained.exact(picture))


@pytest.mark.parametrize("config", [{"up": "bilinear"}, {"classes": 3, "in_channels": 1, "widths": (5,)}], ids=str)
def test_every_architecture_is_valid_in_fp16(config):
    network = make_network(**config)
    card = make_card(network)
    model = build_graph(Segmenter(network, card).eval(), card)
    picture = np.random.default_rng(0).integers(0, 256, (1, 20, 30, network.config.in_channels)).astype(np.uint8)
    exact = graph_run(model)(picture)
    for keep in ((), layers_of(model)[1:2]):
        half = to_half(model, keep)
        onnx.checker.check_model(half, full_check=True)
        assert np.abs(graph_run(half)(picture) - exact).max() < 5e-3
        assert np.abs(graph_run(emulate_half(model, keep))(picture) - exact).max() < 5e-3


def overflowing_in(model, trained):
    return overflowing(model, trained.samples.pictures(2))


def test_values_that_overflow_name_the_layers_on_both_sides(trained, scaled):
    """relu(a x) = a relu(x), so these graphs compute what the first one computes."""
    assert overflowing_in(trained.graph, trained) == []
    up = {"downs.1.conv.0.weight": 1e6, "downs.1.conv.0.bias": 1e6, "downs.1.conv.3.weight": 1e-6}
    assert overflowing_in(scaled(trained.graph, up), trained) == ["downs.1.conv.0", "downs.1.conv.3"]


def test_a_weight_above_65504_names_its_layer(trained, scaled):
    model = scaled(trained.graph, {"ups.1.conv.0.weight": 1e9, "downs.0.conv.0.weight": 0, "downs.0.conv.0.bias": 0})
    zeros = dict.fromkeys((tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".bias")), 0)
    assert overflowing_in(scaled(model, zeros), trained) == ["ups.1.conv.0"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_overflow(trained, monkeypatch, bad):
    monkeypatch.setattr(fp16, "extremes", lambda model, names, pictures: dict.fromkeys(names, bad))
    assert overflowing_in(trained.graph, trained) == layers_of(trained.graph)


LAYERS = list("abcdef")


def added(costs):
    """A loss in which the layers that are not kept add up."""
    return lambda kept: (sum(cost for layer, cost in costs.items() if layer not in kept), 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_as_few_layers_are_kept_as_by_trying_all_numbers(seed):
    random = np.random.default_rng(seed)
    costs = dict(zip(LAYERS, random.permutation([2**n for n in range(6)]).tolist(), strict=True))
    limit = float(random.integers(1, 60))
    kept, ranked = layers_to_keep(LAYERS, [], added(costs), limit)
    order = sorted(LAYERS, key=lambda layer: -costs[layer])
    fewest = next(count for count in range(7) if added(costs)(order[:count])[0] <= limit)
    assert kept == [layer for layer in LAYERS if layer in order[:fewest]]
    assert [layer for layer, _ in ranked] == order
    assert dict(ranked) == {layer: (costs[layer], 0.0) for layer in LAYERS}


def test_nothing_is_tried_alone_where_nothing_hurts():
    tried = []
    assert layers_to_keep(LAYERS, ["e", "b"], lambda kept: tried.append(kept) or (0.0, 0.0), 0.1) == (["b", "e"], [])
    assert tried == [["e", "b"]]


@pytest.mark.parametrize("count", [25, 31, 100, 500])
def test_a_deep_network_is_searched_in_few_tries(count):
    """Layers that follow one another are tried together, and kept together."""
    layers, tries = [f"layer{index}" for index in range(count)], []
    costs = dict.fromkeys(layers, 1e-9) | {"layer20": 1.0, "layer3": 0.5}

    def cost(kept):
        tries.append(kept)
        return added(costs)(kept)

    kept, ranked = layers_to_keep(layers, [], cost, 1e-3)
    together = -(-count // MOST_TRIED)
    assert len(tries) <= 1 + MOST_TRIED + 5
    assert {"layer3", "layer20"} <= set(kept) and len(kept) <= 2 * together
    assert (
        ranked[0][0]
        == f"layer{20 // together * together} to layer{min(20 // together * together + together, count) - 1}"
    )


def test_layers_that_overflow_stay_in_fp32_while_the_others_are_tried():
    """In fp16 they would answer NaN, and all others would look alike."""

    def cost(kept):
        return (1.0, 1.0) if "c" not in kept else added({"a": 0.1, "b": 0.0, "d": 0.3, "e": 0.0, "f": 0.0})(kept)

    kept, ranked = layers_to_keep(LAYERS, ["c"], cost, 0.2)
    assert kept == ["c", "d"]
    assert ranked[:2] == [("d", (0.3, 0.0)), ("a", (0.1, 0.0))]


def test_all_layers_are_kept_where_each_one_hurts_too_much():
    kept, ranked = layers_to_keep(LAYERS, ["c"], lambda kept: (float(len(set(kept)) < 6), 0.0), 0.1)
    assert kept == LAYERS
    assert len(ranked) == 5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_enough_even_where_costs_make_no_order(seed):
    """Errors may cancel: keeping one more layer may cost more."""
    random = np.random.default_rng(seed)
    losses = {}

    def loss(kept):
        return losses.setdefault(frozenset(kept), (0.0 if len(set(kept)) == 6 else random.uniform(), 0.0))

    kept, _ = layers_to_keep(LAYERS, [], loss, 0.3)
    assert losses.get(frozenset(kept), (0.0,))[0] <= 0.3


def fp16_of(trained, model, *keep, samples=None):
    card = replace(trained.card, precision="fp16")
    return convert_to_fp16(model, graph_run(model), card, samples or trained.samples, keep, QUIET)


def shifted(model, layer, reader, distance):
    """The same function with a layer's values so much higher, where fp16 is coarse; its reader's bias undoes that."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    bias, undoing = tensors[f"{layer}.bias"], tensors[f"{reader}.bias"]
    weight = numpy_helper.to_array(tensors[f"{reader}.weight"]).astype(np.float64)
    for tensor, change in ((bias, distance), (undoing, -distance * weight.sum(axis=(1, 2, 3)))):
        changed = (numpy_helper.to_array(tensor) + change).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return copy


def test_fp16_of_a_healthy_network_is_fp16_throughout(trained):
    converted = fp16_of(trained, trained.graph)
    gate = converted.gate
    assert (gate.passed, gate.kept, gate.images, gate.count) == (True, (), "data", 6)
    assert gate.flipped <= FP16_FLIPPED
    assert converted.costs == []


def test_the_dice_of_the_gate_is_that_of_training(trained):
    gate = fp16_of(trained, trained.graph).gate
    assert gate.image_dice_fp32 == pytest.approx(trained.card.training.metrics["image_dice"], abs=1e-4)
    assert gate.image_dice == pytest.approx(gate.image_dice_fp32, abs=1e-3)


def test_fp16_keeps_exactly_the_layers_that_overflow(trained, scaled):
    up = {"downs.1.conv.0.weight": 1e6, "downs.1.conv.0.bias": 1e6, "downs.1.conv.3.weight": 1e-6}
    converted = fp16_of(trained, scaled(trained.graph, up))
    assert converted.gate.kept == ("downs.1.conv.0", "downs.1.conv.3")
    assert converted.gate.passed
    assert len(converted.notes) == 1  # TF32 has the range of fp32
    assert np.isfinite(graph_run(converted.model)(trained.samples.measured[0][0][None])).all()


def test_fp16_finds_the_layers_that_hurt(trained):
    """At 4096 fp16 counts in steps of 4: the layer that gives such values and the one that takes them are found."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    converted = fp16_of(trained, model)
    assert converted.gate.kept == ("ups.3.conv.3", "final_conv")
    assert converted.gate.passed
    assert {layer for layer, _ in converted.costs[:2]} == {"ups.3.conv.3", "final_conv"}
    assert converted.costs[1][1][0] > FP16_FLIPPED > converted.costs[2][1][0]
    assert re.fullmatch(  # TF32 counts in steps of 4 there, too
        r"GPUs with TF32 multiply the layers that stay in fp32 with no more bits than fp16: \d\.\d{4}% of the pixels "
        r"flip there; ProviderOptions\(tf32=False\) avoids that, and takes the tensor cores from all layers",
        converted.notes[-1],
    )


def test_fp16_in_which_all_layers_overflow_is_no_fp16(trained, scaled):
    biases = [tensor.name for tensor in trained.graph.graph.initializer if tensor.name.endswith(".bias")]
    model = scaled(trained.graph, dict.fromkeys([*biases, "downs.0.conv.0.weight"], 1e7))
    converted = fp16_of(trained, model)
    assert converted.gate.kept == tuple(layers_of(model))
    assert (converted.gate.passed, converted.gate.flipped) == (False, 0)
    assert converted.refusal().startswith("all layers had to stay in fp32")


def test_fp16_that_fails_on_other_images_than_those_it_was_tried_on_is_refused(trained, monkeypatch):
    """Layers are tried on some of the pictures, the gate is on all."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    monkeypatch.setattr(fp16, "layers_to_keep", lambda *_: ([], [("final_conv", (0.25, 0.1))]))
    converted = fp16_of(trained, model)
    assert not converted.gate.passed
    assert converted.refusal().startswith(
        f"it flips {converted.gate.flipped:.4%} of the pixels and takes the image Dice"
    )
    assert converted.refusal().endswith("; alone, final_conv flips 25.000%")


def test_synthetic_pictures_stand_in_for_real_ones(trained):
    gate = fp16_of(trained, trained.graph, samples=synthetic_samples(trained.card)).gate
    assert (gate.images, gate.count, gate.image_dice) == ("synthetic", 8, None)


@pytest.mark.parametrize(("share", "passed"), [(0.9e-4, True), (1.1e-4, False)])
def test_fp16_may_flip_a_hundredth_of_a_percent(trained, monkeypatch, share, passed):
    pixels = 6 * 6144
    monkeypatch.setattr(judge, "count_flipped", lambda *_: share * pixels / 6)
    monkeypatch.setattr(fp16, "search_layers", lambda *_: ([], [("final_conv", (0.25, 0.1))]))
    converted = fp16_of(trained, trained.graph)
    assert converted.gate.flipped == pytest.approx(share)
    assert converted.gate.passed == passed


@pytest.mark.parametrize(
    ("largest", "kept"), [(65504 / 4 - 10, ()), (65504 / 4 + 10, ("downs.1.conv.0", "downs.1.conv.3"))]
)
def test_layers_whose_values_are_within_a_fourth_of_the_largest_are_kept(trained, monkeypatch, largest, kept):
    real = fp16.extremes
    names = {node.name: node for node in trained.graph.graph.node}
    between = names["downs.1.conv.3"].input[0]
    monkeypatch.setattr(
        fp16,
        "extremes",
        lambda model, asked, pictures: real(model, asked, pictures) | {between: largest, "downs.1.conv.0": largest},
    )
    assert fp16_of(trained, trained.graph).gate.kept == kept


def test_a_second_search_is_on_all_pictures_when_the_gate_fails(trained, monkeypatch):
    """A layer whose loss the first pictures do not show is found by the others and kept."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    monkeypatch.setattr(fp16, "TRIED_PICTURES", 1)
    asked = []

    def search(model, judge, needed, display, real=fp16.search_layers):
        asked.append(len(judge.pictures))
        return ([], []) if len(asked) == 1 else real(model, judge, needed, display)

    monkeypatch.setattr(fp16, "search_layers", search)
    converted = fp16_of(trained, model)
    assert asked == [1, 6]
    assert converted.gate.passed and converted.gate.kept == ("ups.3.conv.3", "final_conv")


def test_a_value_that_overflows_on_hard_pictures_alone_is_kept(trained, monkeypatch):
    """Dark images do not show what a bright one does."""
    shown = []
    real = fp16.extremes
    monkeypatch.setattr(
        fp16, "extremes", lambda model, names, pictures: shown.extend(pictures) or real(model, names, pictures)
    )
    fp16_of(trained, trained.graph)
    assert {255} in [set(np.unique(picture)) for picture in shown]
    assert {0, 255} in [set(np.unique(picture)) for picture in shown]


def test_layers_to_keep_stay_and_are_named(trained):
    assert fp16_of(trained, trained.graph, "ups.0").gate.kept == ("ups.0",)
    with pytest.raises(ConfigError, match=r"--keep nothing: no such layer; expected some of downs\.0\.conv\.0, "):
        fp16_of(trained, trained.graph, "nothing")
    with pytest.raises(ConfigError, match="--keep: names all of "):
        fp16_of(trained, trained.graph, *layers_of(trained.graph))
