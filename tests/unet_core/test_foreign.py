"""Every family's network against ours with its weights, and what is not mapped."""

import re
from dataclasses import replace

import pytest
import torch
from families import Mateuszbuda, Milesial, OlderMilesial, Usuyama, randomised
from networks import make_card, make_network

from runtime.card import UNetConfig
from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import load_checkpoint, save_checkpoint
from unet_core.foreign import recognise
from unet_core.model import UNet

VARIANTS = [
    (Milesial, {}, "transpose"),
    (Milesial, {"bilinear": True}, "bilinear"),
    (Milesial, {"bias": True}, "transpose"),
    (Milesial, {"bilinear": True, "bias": True, "classes": 1, "channels": 1}, "bilinear"),
    (Milesial, {"widths": (8, 16), "classes": 1}, "transpose"),
    (Milesial, {"widths": (5,), "classes": 4}, "transpose"),
    (Mateuszbuda, {}, "transpose"),
    (Mateuszbuda, {"widths": (3, 5), "channels": 1}, "transpose"),
    (Usuyama, {}, "bilinear-wide"),
    (Usuyama, {"widths": (5, 3, 6, 4), "channels": 1}, "bilinear-wide"),
    (Usuyama, {"classes": 6}, "bilinear-wide"),
    (Mateuszbuda, {"classes": 2}, "transpose"),
]


@pytest.mark.parametrize(("network_class", "settings", "up"), VARIANTS)
def test_ours_answers_as_theirs(tmp_path, network_class, settings, up):
    theirs = randomised(network_class(**settings))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    loaded = load_checkpoint(tmp_path / "theirs.pth")
    defaults = {"widths": (4, 6, 10), "classes": 1} if network_class is Usuyama else {"widths": (4, 6, 10, 14)}
    expected = {"channels": 3, "classes": 2 if network_class is Milesial else 1} | defaults | settings
    assert loaded.card.architecture == UNetConfig(
        in_channels=expected["channels"], classes=expected["classes"], widths=expected["widths"], up=up
    )
    assert loaded.family == network_class.__name__.lower()
    assert loaded.card_is_assumed
    several = "softmax" if network_class is Milesial else "sigmoids"
    assert loaded.card.output.activation == ("sigmoid" if expected["classes"] == 1 else several)
    assert not loaded.is_ambiguous
    x = torch.rand(2, expected["channels"], 32, 48, dtype=torch.float64)  # float64: what differs is no rounding
    with torch.inference_mode():
        answer, ours = theirs.double()(x), loaded.network().double()(x)
    ours = ours.sigmoid() if network_class is Mateuszbuda else ours
    assert (answer - ours).abs().max() < 1e-6
    assert answer.std() > 0.1


def milesial(**settings):
    return dict(randomised(Milesial(widths=(4, 6), **settings)).state_dict())


def prefixed(weights, prefix):
    return {f"{prefix}{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {}},
        lambda weights: {"model": weights},
        lambda weights: prefixed(weights, "module."),
        lambda weights: {"model": prefixed(weights, "_orig_mod.module.") | {"mask_values": [0, 255]}},
        lambda weights: {"state_dict": prefixed(weights, "model.") | {"criterion.weight": torch.ones(2)}},
        lambda weights: {"network": {"weights": prefixed(weights, "net.")}},
        lambda weights: {"params": weights, "ema": {name: value + 1 for name, value in weights.items()}},
        lambda weights: prefixed(weights, "module.") | {"n_averaged": torch.tensor(3)},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap):
    weights = milesial()
    torch.save(wrap(weights), tmp_path / "x.pth")
    loaded, plain = load_checkpoint(tmp_path / "x.pth"), recognise(weights)
    assert loaded.state_dict.keys() == plain.state_dict.keys()
    assert all(torch.equal(value, plain.state_dict[key]) for key, value in loaded.state_dict.items())


def test_of_weights_and_their_average_one_is_chosen(tmp_path):
    weights, average = milesial(), {name: value + 1 for name, value in milesial().items()}
    torch.save({"model": weights, "model_ema": prefixed(average, "module.")}, tmp_path / "x.pth")
    for choice, expected in ((None, weights), ("raw", weights), ("ema", average)):
        loaded = load_checkpoint(tmp_path / "x.pth", weights=choice)
        assert torch.equal(loaded.state_dict["final_conv.bias"], expected["outc.conv.bias"])
        assert ("the moving average" in loaded.notes[0][:20]) == (choice == "ema")
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"--weights ema: .*x\.pth has no moving average of its weights"):
        load_checkpoint(tmp_path / "x.pth", weights="ema")


def test_mask_values_are_told_and_two_classes_stay_a_softmax(tmp_path):
    torch.save(milesial() | {"mask_values": [0, 255]}, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded.card.output.classes == ("background", "foreground")
    assert loaded.card.output.activation == "softmax"
    assert loaded.notes_on(loaded.card.input)[:2] == (
        "in its masks the classes background, foreground had the values [0, 255]",
        "its programs show the network images at half of their own size, as --fit native --scale 0.5 does",
    )


@pytest.mark.parametrize(
    ("network", "does"),
    [
        (Milesial(widths=(4, 6), classes=1), "milesial's own code pads maps on the way up with zeros"),
        (UNet(UNetConfig(widths=(4, 6))), "the tutorial's own code resizes maps on the way up"),
    ],
)
def test_sizes_at_which_the_projects_own_code_does_something_else_are_told(tmp_path, network, does):
    torch.save(network.state_dict(), tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    spec = loaded.card.input
    notes = loaded.notes_on(spec)
    without_advice = tuple(note for note in notes if note != loaded.advice)
    told = (
        f"{does} where a side is no multiple of 4, and here pictures are padded by repeating their edge, so answers "
        "differ; they do not at a --size of such multiples"
    )
    assert told not in notes
    assert loaded.notes_on(replace(spec, size=(32, 50))) == (*notes, told)
    assert loaded.notes_on(replace(spec, fit="native")) == (*without_advice, told)


def test_several_classes_of_the_tutorial_are_ambiguous_unless_a_card_tells(tmp_path):
    network = make_network(classes=3)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded.is_ambiguous and loaded.activation_is_assumed
    save_checkpoint(tmp_path / "y.pth", network.state_dict(), make_card(network))
    loaded = load_checkpoint(tmp_path / "y.pth")
    assert not loaded.is_ambiguous and not loaded.activation_is_assumed and not loaded.odd_sizes
    torch.save(make_network().state_dict(), tmp_path / "z.pth")
    assert not load_checkpoint(tmp_path / "z.pth").is_ambiguous


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        (Milesial(widths=(4,), classes=1), ("foreground",)),
        (Milesial(widths=(4,), classes=3), ("class 0", "class 1", "class 2")),
        (Mateuszbuda(widths=(4,), classes=2), ("class 0", "class 1")),
    ],
)
def test_names_of_classes(network, classes):
    assert recognise(network.state_dict()).classes == classes


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.float64, "float64")])
def test_other_floating_types_become_float32_and_it_is_said(dtype, name):
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in milesial().items()}
    mapped = recognise(weights)
    assert mapped.state_dict["final_conv.weight"].dtype == torch.float32
    assert torch.equal(mapped.state_dict["final_conv.weight"], weights["outc.conv.weight"].float())
    assert mapped.notes[-1] == f"weights stored as {name} are float32 here"


def test_missing_counters_start_at_zero():
    weights = milesial()
    counters = [key for key in weights if key.endswith("num_batches_tracked")]
    del weights[counters[0]]
    mapped = recognise(weights).state_dict
    assert mapped["downs.0.conv.1.num_batches_tracked"] == 0
    assert mapped["downs.0.conv.4.num_batches_tracked"] == 3
    assert mapped["downs.0.conv.1.num_batches_tracked"].dtype == torch.int64


def test_usuyama_gets_a_norm_that_changes_nothing():
    network = randomised(Usuyama(widths=(4,)))
    mapped = recognise(network.state_dict())
    assert torch.equal(mapped.state_dict["downs.0.conv.1.bias"], network.dconv_down1[0].bias)
    assert mapped.state_dict["downs.0.conv.1.running_var"].unique().item() == pytest.approx(1 - 1e-5, abs=1e-7)
    assert mapped.notes == ("has no BatchNorm: layers were added that change nothing until it is trained further",)


MISFITS = [
    (
        {"up1.conv.double_conv.1.weight": None},
        "milesial's U-Net, but 1 key does not fit: up1.conv.double_conv.1.weight: none, expected [6]",
    ),
    ({"attention.weight": torch.ones(2, 3)}, "1 key does not fit: attention.weight: [2, 3], expected none"),
    ({"outc.conv.bias": torch.ones(3)}, "1 key does not fit: outc.conv.bias: [3], expected [2]"),
    (
        {"inc.double_conv.1.bias": torch.ones(4, dtype=torch.int32)},
        "inc.double_conv.1.bias: [4] of int32, expected [4]",
    ),
    (
        {"inc.double_conv.0.bias": torch.ones(4)},
        "9 keys do not fit: down1.maxpool_conv.1.double_conv.0.bias: none, exp",
    ),
    ({"outc.conv.weight": None}, "1 key does not fit: outc.conv.weight: none, expected a weight of 4 dimensions"),
    ({"outc.conv.weight": torch.ones(2)}, "outc.conv.weight: [2], expected a weight of 4 dimensions"),
    ({"inc.double_conv.0.weight": None}, "1 key does not fit: inc.double_conv.0.weight: none, expected a weight of 4"),
    (
        {"down1.maxpool_conv.1.double_conv.0.weight": None},
        "1 key does not fit: down1.maxpool_conv.1.double_conv.0.weight: none, expected a weight of 4 dimensions",
    ),
    (
        {"inc.double_conv.0.weight": torch.ones(4, 17, 3, 3)},
        "milesial's U-Net, but architecture.in_channels: found 17, expected an integer from 1 to 16",
    ),
    ({"a\nb": torch.ones(1)}, r"1 key does not fit: 'a\nb': [1], expected none"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_what_does_not_fit_is_named_with_the_family(tmp_path, change, message):
    weights = {key: value for key, value in (milesial() | change).items() if value is not None}
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'}: looks like milesial's U-Net, but ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_misfits_are_counted_and_ten_are_shown_each_way():
    weights = {key: value for key, value in milesial().items() if not key.startswith("up2.")}
    weights |= {f"extra{index:02}": torch.ones(1) for index in range(11)}
    with pytest.raises(CheckpointError) as caught:
        recognise(weights)
    assert str(caught.value) == (
        "looks like milesial's U-Net, but 23 keys do not fit: "
        "up2.conv.double_conv.0.weight: none, expected [4, 8, 3, 3]; "
        "up2.conv.double_conv.1.bias: none, expected [4]; "
        "up2.conv.double_conv.1.running_mean: none, expected [4]; "
        "up2.conv.double_conv.1.running_var: none, expected [4]; "
        "up2.conv.double_conv.1.weight: none, expected [4]; "
        "up2.conv.double_conv.3.weight: none, expected [4, 4, 3, 3]; "
        "up2.conv.double_conv.4.bias: none, expected [4]; "
        "up2.conv.double_conv.4.running_mean: none, expected [4]; "
        "up2.conv.double_conv.4.running_var: none, expected [4]; "
        "up2.conv.double_conv.4.weight: none, expected [4]; "
        + "; ".join(f"extra{index:02}: [1], expected none" for index in range(10))
        + "; ..."
    )


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("inc.double_conv.0.weight", "milesial's"),
        ("encoder1.enc1conv1.bias", "mateuszbuda's"),
        ("dconv_up1.0.bias", "usuyama's"),
        ("downs.0.conv.1.weight", "the tutorial's"),
    ],
)
def test_the_family_is_guessed_from_a_single_key(key, family):
    with pytest.raises(CheckpointError, match=f"^looks like {family} U-Net, but 1 key does not fit: "):
        recognise({key: torch.ones(4), "x": torch.ones(4)})


def test_too_many_levels_are_refused():
    with pytest.raises(CheckpointError, match=r"usuyama's U-Net, but architecture\.widths: found \(1, 1, .*1 to 8 val"):
        recognise(Usuyama(widths=(1,) * 9).state_dict())


def test_nothing_known():
    with pytest.raises(CheckpointError) as caught:
        recognise({"conv1.weight": torch.ones(1), "x" * 200: torch.ones(1)})
    assert str(caught.value) == (
        "is not a U-Net that is known here (the tutorial, milesial, mateuszbuda, usuyama): found the keys "
        "conv1.weight, 'xxxxxxxxxxxx...xxxxxxxxxxxxx'; other networks are exported with the code that makes them: "
        "unet-export --network FILE.py:NAME"
    )


def test_a_network_that_shares_a_name_with_a_family_is_not_taken_for_it():
    """MONAI's BasicUNet has a final_conv, as the tutorial's."""
    weights = {f"conv_{index}.conv_0.conv.weight": torch.ones(1) for index in range(3)}
    with pytest.raises(CheckpointError, match=r"^is not a U-Net that is known here"):
        recognise(weights | {"final_conv.weight": torch.ones(1)})


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("renamed", [True, False])
def test_milesials_older_network_is_named(bilinear, renamed):
    network = randomised(OlderMilesial(bilinear=bilinear))
    weights = network.state_dict()
    if renamed:  # as between November 2019 and March 2020
        weights = {
            re.sub(r"^(inc|up\d)\.conv\.conv", r"\1.double_conv", key)
            .replace("up1.double", "up1.conv.double")
            .replace("up2.double", "up2.conv.double")
            .replace("mpconv.1.conv", "maxpool_conv.1.double_conv"): value
            for key, value in weights.items()
        }
        assert "up1.conv.double_conv.0.weight" in weights and "down1.maxpool_conv.1.double_conv.0.weight" in weights
    with pytest.raises(CheckpointError) as caught:
        recognise(weights)
    assert str(caught.value) == (
        "is milesial's U-Net from before March 2020, whose layers after upsampling are narrower than today's; it is "
        "exported with the code of that time: unet-export --network FILE.py:UNet"
    )


def test_weights_that_are_not_finite_keep_their_own_name(tmp_path):
    torch.save(milesial() | {"outc.conv.bias": torch.tensor([0, torch.inf])}, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"x\.pth: outc\.conv\.bias holds NaN or infinite weights; use an earlier"
    ):
        load_checkpoint(tmp_path / "x.pth")
