import math
from dataclasses import replace

import pytest
from networks import make_card, make_network

from export.options import options_to_export, refuse_to_check
from runtime.errors import ConfigError
from unet_core.model_options import CardChanges, NetworkOptions

NETWORKS = {"colour": {}, "grey": {"in_channels": 1}, "three": {"classes": 3}}


@pytest.fixture(scope="module")
def cards():
    return {name: make_card(make_network(**config)) for name, config in NETWORKS.items()}


def test_sizes_may_be_written_as_people_do():
    assert CardChanges(size="96x64") == CardChanges(size=(64, 96))
    assert NetworkOptions(only_size="96x64").only_size == (64, 96)


def test_all_that_an_assumed_card_does_not_know_can_be_given(cards):
    changes = CardChanges(
        size=(64, 96),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fit="letterbox",
        classes=("lorry",),
        threshold=0.3,
    )
    card = changes.applied(cards["colour"], assumed=True)
    assert (card.input.size, card.input.fit) == ((64, 96), "letterbox")
    assert (card.input.mean, card.input.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (card.output.classes, card.output.threshold, card.output.activation) == (("lorry",), 0.3, "sigmoid")
    assert (card.architecture, card.weights_sha256) == (cards["colour"].architecture, cards["colour"].weights_sha256)


@pytest.mark.parametrize("assumed", [True, False])
def test_what_is_not_given_stays(cards, assumed):
    assert CardChanges().applied(cards["three"], assumed=assumed) == cards["three"]
    changed = CardChanges(threshold=0.25).applied(cards["colour"], assumed=assumed)
    assert changed.output.threshold == 0.25
    assert changed.input == cards["colour"].input


def test_several_classes_are_renamed(cards):
    card = CardChanges(classes=("sky", "road", "car")).applied(cards["three"], assumed=True)
    assert (card.output.classes, card.output.activation) == (("sky", "road", "car"), "softmax")


def test_logits_of_several_classes_may_be_independent(cards):
    changes = CardChanges(probabilities="sigmoids", threshold=0.3)
    output = changes.applied(cards["three"], assumed=True).output
    assert (output.classes, output.activation, output.threshold) == (
        ("class 0", "class 1", "class 2"),
        "sigmoids",
        0.3,
    )
    named = replace(changes, classes=("hair", "hat", "face")).applied(cards["three"], assumed=True).output
    assert (named.classes, named.overlapping) == (("hair", "hat", "face"), True)
    assert CardChanges(probabilities="softmax").applied(cards["three"], assumed=True) == cards["three"]


@pytest.mark.parametrize(
    ("activation", "count", "probabilities", "expected"),
    [
        ("logits", 1, None, "sigmoid"),
        ("none", 1, None, "sigmoid"),
        ("sigmoid", 1, None, "sigmoid"),
        ("logits", 3, None, "softmax"),
        ("none", 3, "sigmoids", "sigmoids"),
        ("softmax", 3, None, "softmax"),
        ("sigmoids", 3, None, "sigmoids"),
        ("sigmoids", 3, "sigmoids", "sigmoids"),
        ("sigmoids", 1, None, "--activation sigmoids: the network has 1 output channel, expected logits or sigmoid"),
        (
            "sigmoid",
            6,
            None,
            "--activation sigmoid: the network has 6 output channels; is it sigmoids, one for each? expected logits, "
            "softmax or sigmoids",
        ),
        (
            "softmax",
            3,
            "sigmoids",
            "--probabilities sigmoids: says what logits become, and the network gives --activation softmax; leave it "
            "out",
        ),
    ],
)
def test_the_activation_of_a_network(activation, count, probabilities, expected):
    options = NetworkOptions(activation=activation)
    if not expected.startswith("--"):
        assert options.activation_of(count, probabilities) == expected
        return
    with pytest.raises(ConfigError) as caught:
        options.activation_of(count, probabilities)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (64, 96)}, "--size: found 96x64, the checkpoint's card says 48x32; leave it out"),
        (
            {"mean": (0.5, 0.5, 0.25)},
            "--mean: found 0.5,0.5,0.25, the checkpoint's card says 0.0,0.0,0.0; leave it out",
        ),
        ({"std": (0.5,)}, "--std: found 0.5, the checkpoint's card says 1.0,1.0,1.0; leave it out"),
        ({"fit": "native"}, "--fit: found native, the checkpoint's card says stretch; leave it out"),
        ({"classes": ("a", "b")}, "--classes: found a,b, the checkpoint's card says car; leave it out"),
        (
            {"probabilities": "sigmoids"},
            "--probabilities: found sigmoids, the checkpoint's card says sigmoid; leave it out",
        ),
        ({"threshold": 0.3, "fit": "native"}, "--fit: found native, the checkpoint's card says stretch; leave it out"),
    ],
)
def test_what_training_wrote_is_not_contradicted(cards, changes, message):
    with pytest.raises(ConfigError) as caught:
        CardChanges(**changes).applied(cards["colour"], assumed=False)
    assert str(caught.value) == message


def test_what_training_wrote_may_be_repeated(cards):
    card = cards["colour"]
    same = CardChanges(size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1), fit="stretch", classes=("car",), threshold=0.5)
    assert same.applied(card, assumed=False) == card


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("colour", {"size": (0, 96)}, "--size: found 0, expected an integer from 1 to 32768"),
        ("colour", {"size": (64, 40_000)}, "--size: found 40000, expected an integer from 1 to 32768"),
        ("colour", {"mean": (0.5,)}, "--mean: found (0.5,), expected 3 values"),
        ("grey", {"mean": (0.5, 0.5, 0.5)}, "--mean: found (0.5, 0.5, 0.5), expected 1 values"),
        ("colour", {"mean": (0, math.nan, 0)}, "--mean: found nan, expected a number from -1000 to 1000"),
        ("colour", {"std": (0.2, 0.2)}, "--std: found (0.2, 0.2), expected 3 values"),
        ("colour", {"std": (0.2, 0, 0.2)}, "--std: found 0, expected a number from 1e-06 to 1000"),
        ("colour", {"fit": "crop"}, "--fit: found 'crop', expected one of stretch, letterbox, native"),
        ("colour", {"scale": 0.5}, "--scale: found 0.5, expected 1 with fit stretch"),
        ("colour", {"scale": 2.0, "fit": "native"}, "--scale: found 2.0, expected a number from 0.015625 to 1"),
        ("colour", {"threshold": 0.0}, "--threshold: found 0.0, expected a number from 1e-06 to 0.999999"),
        ("colour", {"threshold": 1.5}, "--threshold: found 1.5, expected a number from 1e-06 to 0.999999"),
        (
            "three",
            {"threshold": 0.3},
            "--threshold: is for sigmoids, and of the 3 classes a pixel has the most probable; leave it out",
        ),
        ("three", {"probabilities": "sigmoid"}, "--probabilities sigmoid: expected softmax or sigmoids"),
        ("colour", {"probabilities": "sigmoids"}, "--probabilities sigmoids: is for several classes; leave it out"),
        ("colour", {"classes": ("",)}, "--classes: found '', expected text of 1 to 200 characters"),
        ("colour", {"classes": ("a", "b")}, "--classes: found 2, the weights have 1; give a name for each"),
        ("three", {"classes": ("car",)}, "--classes: found 1, the weights have 3; give a name for each"),
        ("three", {"classes": ("a", "b", "a")}, "--classes: found ('a', 'b', 'a'), expected different names"),
    ],
)
def test_values_that_do_not_fit_name_the_flag(cards, name, changes, message):
    with pytest.raises(ConfigError) as caught:
        CardChanges(**changes).applied(cards[name], assumed=True)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stride": 8, "checkpoint_of": "m.pth"}, "--stride: goes with --network; give that too, or leave it out"),
        (
            {"network": "net.py:Net"},
            "--network: is for a checkpoint to compare with; give --checkpoint too",
        ),
    ],
)
def test_a_check_takes_a_network_with_a_checkpoint_only(given, message):
    with pytest.raises(ConfigError) as caught:
        refuse_to_check(given)
    assert str(caught.value) == message
    refuse_to_check({"network": "net.py:Net", "stride": 8, "checkpoint_of": "m.pth"})


def test_an_export_takes_the_ends_of_a_network_with_the_network_only():
    with pytest.raises(ConfigError, match=r"^--output-key: goes with --network; give that too, or leave it out$"):
        options_to_export({"output_key": "out"})
    options_to_export({"output_key": "out", "network": "net.py:Net"})


DATA = {"data": "Data"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allow": "bf16"}, "--allow bf16: needs real images to judge the answers on; give --data FOLDER"),
        ({"allow": "fp8"} | DATA, "--allow fp8: expected bf16"),
        ({"allow": "bf16", "raw": True} | DATA, "--allow bf16: --raw writes no file for it; leave out one of the two"),
        (
            {"allow": "bf16", "target": "cpu"} | DATA,
            "--allow bf16: --target cpu writes no file for it; leave out one of the two",
        ),
        (
            {"allow": "bf16", "precision": "fp16"} | DATA,
            "--allow bf16: is for fp32 and int8 files; leave it out, or --precision fp16",
        ),
        (
            {"allow": "bf16", "precision": "int8", "int8_for": "tensorrt"} | DATA,
            "--allow bf16: an int8 file for TensorRT never runs in bf16; leave it out, or give --for cpu",
        ),
        (
            {"allow": "bf16", "precision": "int8", "values": "s8"} | DATA,
            "--allow bf16: an int8 file for TensorRT never runs in bf16; leave it out, or give --for cpu",
        ),
        ({"allow": "bf16", "max_flipped": 2.0} | DATA, "max_flipped: found 2.0, expected a number from 0 to 1"),
        ({"max_flipped": 0.01} | DATA, "--max-flipped: goes with --allow bf16; leave it out"),
    ],
)
def test_bf16_is_allowed_where_a_device_may_use_it_and_images_judge_it(given, message):
    with pytest.raises(ConfigError) as caught:
        options_to_export(given)
    assert str(caught.value) == message


def test_an_int8_file_in_bf16_is_for_cpus():
    assert options_to_export({"allow": "bf16", "precision": "int8"} | DATA).int8_place == "cpu"
