from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.graph import layers_of
from export.precision import judge as module
from export.precision.judge import (
    FP16_FLIPPED,
    Judge,
    calibrate,
    convert_to_fp16,
    convert_to_int8,
    extremes,
    measured,
    speed,
)
from export.proof import graph_run
from export.samples import load_samples, synthetic_samples
from runtime.card import Gate
from runtime.errors import ConfigError
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)


def to_fp16(trained, model, *keep, samples=None):
    card = replace(trained.card, precision="fp16")
    return convert_to_fp16(model, graph_run(model), card, samples or trained.samples, keep, QUIET)


def to_int8(trained, samples, *keep, values="s8"):
    card = replace(trained.card, precision="int8")
    return convert_to_int8(trained.graph, trained.exact, card, samples, keep, values, QUIET)


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
    converted = to_fp16(trained, trained.graph)
    gate = converted.gate
    assert (gate.passed, gate.kept, gate.images, gate.count) == (True, (), "data", 6)
    assert gate.flipped <= FP16_FLIPPED
    assert converted.costs == []


def test_the_dice_of_the_gate_is_that_of_training(trained):
    gate = to_fp16(trained, trained.graph).gate
    assert gate.image_dice_fp32 == pytest.approx(trained.card.training.metrics["image_dice"], abs=1e-4)
    assert gate.image_dice == pytest.approx(gate.image_dice_fp32, abs=1e-3)


def test_fp16_keeps_exactly_the_layers_that_overflow(trained, scaled):
    up = {"downs.1.conv.0.weight": 1e6, "downs.1.conv.0.bias": 1e6, "downs.1.conv.3.weight": 1e-6}
    converted = to_fp16(trained, scaled(trained.graph, up))
    assert converted.gate.kept == ("downs.1.conv.0", "downs.1.conv.3")
    assert converted.gate.passed
    assert np.isfinite(graph_run(converted.model)(trained.samples.measured[0][0][None])).all()


def test_fp16_finds_the_layers_that_hurt(trained):
    """At 4096 fp16 counts in steps of 4: the layer that gives such values and the one that takes them are found."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    converted = to_fp16(trained, model)
    assert converted.gate.kept == ("ups.3.conv.3", "final_conv")
    assert converted.gate.passed
    assert {layer for layer, _ in converted.costs[:2]} == {"ups.3.conv.3", "final_conv"}
    assert converted.costs[1][1][0] > FP16_FLIPPED > converted.costs[2][1][0]


def test_fp16_in_which_all_layers_overflow_is_no_fp16(trained, scaled):
    biases = [tensor.name for tensor in trained.graph.graph.initializer if tensor.name.endswith(".bias")]
    model = scaled(trained.graph, dict.fromkeys([*biases, "downs.0.conv.0.weight"], 1e7))
    converted = to_fp16(trained, model)
    assert converted.gate.kept == tuple(layers_of(model))
    assert (converted.gate.passed, converted.gate.flipped) == (False, 0)
    assert converted.refusal().startswith("all layers had to stay in fp32")


def test_fp16_that_fails_on_other_images_than_those_it_was_tried_on_is_refused(trained, monkeypatch):
    """Layers are tried on some of the pictures, the gate is on all."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    monkeypatch.setattr(module, "layers_to_keep", lambda *_: ([], [("final_conv", (0.25, 0.1))]))
    converted = to_fp16(trained, model)
    assert not converted.gate.passed
    assert converted.refusal().startswith(
        f"it flips {converted.gate.flipped:.4%} of the pixels and takes the image Dice"
    )
    assert converted.refusal().endswith("; alone, final_conv flips 25.000%")


def test_layers_to_keep_stay_and_are_named(trained):
    assert to_fp16(trained, trained.graph, "ups.0").gate.kept == ("ups.0",)
    assert "bottleneck.conv.0" in to_int8(trained, trained.samples, "bottleneck.conv.0").gate.kept
    for convert in (
        lambda *keep: to_fp16(trained, trained.graph, *keep),
        lambda *keep: to_int8(trained, trained.samples, *keep),
    ):
        with pytest.raises(ConfigError, match=r"--keep nothing: no such layer; expected some of downs\.0\.conv\.0, "):
            convert("nothing")
        with pytest.raises(ConfigError, match="--keep: names all of "):
            convert(*layers_of(trained.graph))


@pytest.mark.parametrize("values", ["s8", "u8"])
def test_int8_calibrated_on_fitting_images_passes(trained, values):
    converted = to_int8(trained, trained.samples, values=values)
    gate = converted.gate
    assert gate.passed
    assert 0 < gate.flipped < 0.01
    assert abs(gate.image_dice_fp32 - gate.image_dice) <= 0.002
    assert gate.kept == ("downs.0.conv.0", "ups.0", "ups.2", "final_conv")
    assert converted.notes[0] == "judged on 6 real images, which is little; give more in --data"
    assert len(converted.notes) == 1 + (values == "u8")


@pytest.mark.parametrize("masks", [True, False], ids=["by Dice", "by flipped pixels"])
def test_int8_calibrated_on_wrong_images_fails_and_names_layers(trained, flat, masks):
    wrong = load_samples(flat, trained.card)
    converted = to_int8(trained, wrong if masks else replace(wrong, labelled=False))
    gate = converted.gate
    assert not gate.passed
    assert (gate.image_dice is not None) == masks
    assert gate.flipped > 0.05
    assert f"alone, {converted.costs[0][0]} flips " in converted.refusal()
    shares = [flipped for _, (flipped, _) in converted.costs]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.01


def test_int8_without_masks_passes_by_flipped_pixels(trained):
    gate = to_int8(trained, replace(trained.samples, labelled=False)).gate
    assert (gate.passed, gate.image_dice, gate.image_dice_fp32) == (True, None, None)
    assert gate.flipped <= 0.005


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_flip_all(trained, value):
    def broken(batch):
        return np.full_like(trained.exact(batch), value)

    judge = Judge(trained.exact, trained.samples.pictures(2), trained.card)
    assert judge.cost(broken) == (1.0, 1.0)
    assert judge.cost(trained.exact) == (0.0, 0.0)
    gate, _ = measured(broken, trained.exact, trained.card, trained.samples, (), lambda _: True, QUIET)
    assert (gate.flipped, gate.passed) == (1.0, False)


def test_flipped_pixels_by_hand(trained):
    """The first eight rows of each picture say the contrary."""

    def other(batch):
        answer = trained.exact(batch).copy()
        answer[:, :, :8] = 1 - answer[:, :, :8]
        return answer

    share = 8 / trained.card.input.size[0]
    assert Judge(trained.exact, trained.samples.pictures(4), trained.card).cost(other)[0] == share
    asked = []
    gate, doubt = measured(
        other, trained.exact, trained.card, trained.samples, ("a",), lambda gate: bool(asked.append(gate)), QUIET
    )
    assert (asked, doubt) == ([gate], None)
    assert gate.image_dice_fp32 - gate.image_dice > 0.01
    assert (gate.flipped, gate.kept, gate.passed) == (pytest.approx(share), ("a",), False)


def test_synthetic_pictures_stand_in_for_real_ones(trained):
    gate = to_fp16(trained, trained.graph, samples=synthetic_samples(trained.card)).gate
    assert (gate.images, gate.count, gate.image_dice) == ("synthetic", 8, None)


def test_extremes_and_ranges_are_those_of_the_values(trained):
    names = ["downs.0.conv.0", "ups.0"]
    pictures = trained.samples.pictures(2)
    with torch.inference_mode():
        planes = [trained.segmenter.normalise(torch.from_numpy(one)[None]) for one in pictures]
        by_hand = [trained.segmenter.network.downs[0].conv[:2](one).numpy() for one in planes]
    found = extremes(trained.graph, names, pictures)
    assert found["downs.0.conv.0"] == pytest.approx(np.abs(by_hand).max(), rel=1e-4)
    mean, widest = calibrate(trained.graph, names, [(one, None) for one in pictures], QUIET)
    bounds = np.array([np.percentile(value, [0.01, 99.99]) for value in by_hand])
    assert mean["downs.0.conv.0"] == pytest.approx(tuple(bounds.mean(axis=0)), rel=1e-4)
    assert widest["downs.0.conv.0"] == pytest.approx((bounds[:, 0].min(), bounds[:, 1].max()), rel=1e-4)
    assert mean != widest


def test_speed_says_which_one_is_faster(trained, monkeypatch):
    picture = trained.samples.measured[0][0]
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock) / 1000)
    slow = lambda batch: [next(clock) for _ in range(9)]  # noqa: E731
    fast = lambda batch: None  # noqa: E731
    assert speed(fast, slow, picture) == "u8 is faster than fp32 on this CPU: 1.0 ms an image against 10.0 ms"
    assert speed(slow, fast, picture) == "u8 is no faster than fp32 on this CPU: 10.0 ms an image against 1.0 ms"


def limits_of(gate_function, card, samples, flips, exact):
    """Measure a run that flips this many pixels of each picture."""

    def run(batch):
        answer = exact(batch).copy()
        answer[0, 0].reshape(-1)[:flips] = 1 - answer[0, 0].reshape(-1)[:flips]
        return answer

    return measured(run, exact, card, samples, (), gate_function, QUIET)[0]


@pytest.mark.parametrize(("flips", "passed"), [(30, True), (31, False)])
def test_int8_without_masks_may_flip_half_a_percent(trained, flips, passed):
    """A picture has 6,144 pixels: 30 are 0.488 %, 31 are 0.505 %."""
    samples = replace(trained.samples, labelled=False)
    gate = limits_of(module.int8_is_good, trained.card, samples, flips, trained.exact)
    assert gate.flipped == flips / 6144
    assert gate.passed == passed


@pytest.mark.parametrize(("dice", "passed"), [(0.9581, True), (0.9579, False)])
def test_int8_with_masks_may_lose_two_tenths_of_a_point(dice, passed):
    gate = Gate(images="data", count=9, flipped=0.3, image_dice=dice, image_dice_fp32=0.96, kept=(), passed=False)
    assert module.int8_is_good(gate) == passed


@pytest.mark.parametrize(("share", "passed"), [(0.9e-4, True), (1.1e-4, False)])
def test_fp16_may_flip_a_hundredth_of_a_percent(trained, monkeypatch, share, passed):
    pixels = 6 * 6144
    monkeypatch.setattr(module, "flipped_pixels", lambda *_: share * pixels / 6)
    monkeypatch.setattr(module, "search_layers", lambda *_: ([], [("final_conv", (0.25, 0.1))]))
    converted = to_fp16(trained, trained.graph)
    assert converted.gate.flipped == pytest.approx(share)
    assert converted.gate.passed == passed


@pytest.mark.parametrize(
    ("largest", "kept"), [(65504 / 4 - 10, ()), (65504 / 4 + 10, ("downs.1.conv.0", "downs.1.conv.3"))]
)
def test_layers_whose_values_are_within_a_fourth_of_the_largest_are_kept(trained, monkeypatch, largest, kept):
    real = module.extremes
    names = {node.name: node for node in trained.graph.graph.node}
    between = names["downs.1.conv.3"].input[0]
    monkeypatch.setattr(
        module,
        "extremes",
        lambda model, asked, pictures: real(model, asked, pictures) | {between: largest, "downs.1.conv.0": largest},
    )
    assert to_fp16(trained, trained.graph).gate.kept == kept


def test_a_second_search_is_on_all_pictures_when_the_gate_fails(trained, monkeypatch):
    """A layer whose loss the first pictures do not show is found by the others and kept."""
    model = shifted(trained.graph, "ups.3.conv.3", "final_conv", 4096)
    monkeypatch.setattr(module, "TRIED_PICTURES", 1)
    asked = []

    def search(model, judge, needed, display, real=module.search_layers):
        asked.append(len(judge.pictures))
        return ([], []) if len(asked) == 1 else real(model, judge, needed, display)

    monkeypatch.setattr(module, "search_layers", search)
    converted = to_fp16(trained, model)
    assert asked == [1, 6]
    assert converted.gate.passed and converted.gate.kept == ("ups.3.conv.3", "final_conv")


def test_a_value_that_overflows_on_hard_pictures_alone_is_kept(trained, monkeypatch):
    """Dark images do not show what a bright one does."""
    shown = []
    real = module.extremes
    monkeypatch.setattr(
        module, "extremes", lambda model, names, pictures: shown.extend(pictures) or real(model, names, pictures)
    )
    to_fp16(trained, trained.graph)
    assert {255} in [set(np.unique(picture)) for picture in shown]
    assert {0, 255} in [set(np.unique(picture)) for picture in shown]


def test_images_that_show_one_class_alone_prove_nothing(trained):
    def empty(batch):
        return np.full_like(trained.exact(batch), 0.01)

    samples = replace(trained.samples, labelled=False)
    gate, doubt = measured(empty, empty, trained.card, samples, (), lambda _: True, QUIET)
    assert (gate.flipped, gate.passed) == (0, False)
    assert doubt.startswith("the network answers one class everywhere on the images of --data")
    assert measured(empty, empty, trained.card, synthetic_samples(trained.card), (), lambda _: True, QUIET)[0].passed


def test_images_on_which_fp32_fails_prove_nothing(trained):
    def inverse(batch):
        return 1 - trained.exact(batch)

    gate, doubt = measured(inverse, inverse, trained.card, trained.samples, (), lambda _: True, QUIET)
    assert not gate.passed
    known = trained.card.training.metrics["image_dice"]
    assert doubt == (
        f"the image Dice of fp32 on --data is {gate.image_dice_fp32:.4f}, in training {known:.4f}, so it cannot show "
        "what is lost; give images and masks of what the network was trained for"
    )
    foreign = replace(trained.card, training=None)
    _, doubt = measured(inverse, inverse, foreign, trained.samples, (), lambda _: True, QUIET)
    assert f"is {gate.image_dice_fp32:.4f}, so it cannot show" in doubt


def test_what_few_pictures_show_is_not_cut_off(trained):
    """One of nine pictures to calibrate on has the object: its values are the widest."""
    pictures = [trained.samples.calibration[0][0]] + [np.full((64, 96, 3), 20, np.uint8)] * 8
    calibration = [(picture, None) for picture in pictures]
    converted = to_int8(trained, replace(trained.samples, calibration=calibration))
    assert converted.gate.passed
