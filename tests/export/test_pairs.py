"""Pairs of inputs and outputs that cannot be used, fit nothing, or fit several readings."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from families import Mateuszbuda, Milesial, Usuyama, randomised
from forks import WIDTHS, UpFirst
from networks import make_network

from export import export_onnx
from export.cli import main
from export.pairs import load_with_pairs, read_pairs
from runtime.errors import ConfigError, ProofError
from unet_core.checkpoint import load_checkpoint, load_weights, save_checkpoint
from unet_core.model_options import CardChanges
from unet_core.networks.readings import all_readings, usual_reading
from unet_core.reporting.progress import Display


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def inputs_of(channels=3, size=(16, 24), count=2):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(1))


def write(network, name="pairs.npz", end=lambda logits: logits, **arrays):
    """Write the weights and, unless `arrays` are given, what the network answers."""
    torch.save(network.state_dict(), "net.pth")
    with torch.inference_mode():
        outputs = end(network(inputs_of())).numpy()
    np.savez(name, **(arrays or {"input": inputs_of().numpy(), "output": outputs}))


def load(**changes):
    return load_with_pairs(Path("net.pth"), "pairs.npz", Display(quiet=True), CardChanges(**changes))


@pytest.mark.parametrize("family", [Mateuszbuda, Usuyama, Milesial])
def test_a_family_that_is_read_rightly_fits_its_own_pairs(family):
    write(randomised(family(widths=WIDTHS, classes=1)))
    loaded, usual = load(), load_checkpoint("net.pth")
    assert (loaded.reference, usual.reference) == ("pairs", "reading")
    assert loaded.card == usual.card
    assert loaded.rows[0].parity.max_abs_error < 1e-6


@pytest.mark.parametrize(
    ("end", "activation"),
    [
        (lambda logits: logits, "softmax"),
        (lambda logits: logits.softmax(dim=1), "softmax"),
        (lambda logits: logits.log_softmax(dim=1), "softmax"),
        (lambda logits: logits.sigmoid(), "sigmoids"),
    ],
    ids=["logits", "softmax", "log_softmax", "sigmoids"],
)
def test_outputs_may_be_logits_or_probabilities_and_probabilities_tell_the_activation(end, activation):
    write(randomised(Milesial(widths=WIDTHS, classes=2)), end=end)
    loaded = load()
    names = ("class 0", "class 1") if activation == "sigmoids" else ("background", "foreground")
    assert (loaded.card.output.activation, loaded.card.output.classes) == (activation, names)
    assert loaded.rows[0].parity.max_abs_error < 1e-5


def test_outputs_tell_what_the_keys_of_the_tutorial_cannot():
    network = make_network(classes=3)
    write(network)
    assert load().is_ambiguous and load().activation_is_assumed
    told = load(probabilities="sigmoids")
    assert (told.card.output.activation, told.rows[0].parity.max_abs_error < 1e-5) == ("sigmoids", True)
    write(network, end=lambda logits: logits.softmax(dim=1))
    loaded = load(probabilities="softmax")
    assert (loaded.is_ambiguous, loaded.activation_is_assumed) == (False, False)
    with pytest.raises(ConfigError) as caught:
        load(probabilities="sigmoids")
    assert str(caught.value) == "--probabilities sigmoids: the outputs in pairs.npz show softmax; leave it out"


def test_outputs_of_one_class_may_lack_the_axis_of_classes():
    network = randomised(Milesial(widths=WIDTHS, classes=1))
    write(network, end=lambda logits: logits.sigmoid()[:, 0])
    assert load().rows[0].shape == (2, 16, 24)


def test_two_choices_at_once_are_found():
    network = randomised(Milesial(widths=WIDTHS, classes=1, bilinear=True))
    for module in network.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.ReLU):
                setattr(module, name, torch.nn.SiLU())
            elif isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.padding_mode = "replicate"
    write(network)
    assert "concatenation [skip, up], SiLU, align_corners=True, padding replicate" in load().notes[0]


def test_pairs_that_fit_two_readings_prove_none():
    """A network whose last block is zero answers the same, whatever comes before."""
    network = Milesial(widths=WIDTHS, classes=1).eval()
    for weights in network.up2.conv.parameters():
        weights.data.zero_()
    write(network)
    with pytest.raises(ProofError) as caught:
        load()
    assert re.fullmatch(
        r"--pairs pairs\.npz: \d+ readings of net\.pth give these outputs, such as concatenation \[skip, up\], ReLU, "
        r"padding zeros, and concatenation .*; give pairs with larger or livelier pictures, in which the network finds "
        r"something",
        str(caught.value),
    )


@pytest.mark.parametrize("bias", [-12, -60])
def test_pictures_in_which_the_network_finds_nothing_still_tell_its_reading(bias):
    """Probabilities near 0 everywhere: their differences are small, and large as a share of their range."""
    network = randomised(UpFirst())
    network.outc.conv.bias.data.fill_(bias)
    write(network, end=lambda logits: logits.sigmoid())
    assert "concatenation [up, skip], ReLU, padding zeros" in load().notes[0]


def test_inputs_that_no_image_reaches_ask_for_the_normalisation():
    network = randomised(Milesial(widths=WIDTHS, classes=1))
    for given, changes in (
        (inputs_of() * 255, {}),
        ((inputs_of() - 0.45) / 0.22, {"mean": (0.5,) * 3, "std": (0.9,) * 3}),
    ):
        with torch.inference_mode():
            write(network, input=given.numpy(), output=network(given).numpy())
        with pytest.raises(
            ConfigError, match=r"which no image reaches with --mean .*; give those of the author's program"
        ):
            load(**changes)
    assert load(mean=(0.45,) * 3, std=(0.22,) * 3).reference == "pairs"


def test_no_reading_fits_another_network():
    network = randomised(Milesial(widths=WIDTHS, classes=1))
    for module in network.modules():
        if isinstance(module, torch.nn.MaxPool2d):
            module.forward = lambda x: torch.nn.functional.avg_pool2d(x, 2)
    write(network)
    done = CliRunner().invoke(main, ["net.pth", "--pairs", "pairs.npz"])
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --pairs pairs.npz: none of 56 readings of net.pth as milesial's U-Net gives these")
    assert line.endswith("expected at most 0.0001; give --network with its author's code")


def test_outputs_of_training_mode_and_of_lower_precision_are_told():
    network = randomised(Milesial(widths=WIDTHS, classes=1))
    outputs = network.train()(inputs_of()).detach().numpy()
    network = randomised(Milesial(widths=WIDTHS, classes=1))
    write(network, input=inputs_of().numpy(), output=outputs)
    with pytest.raises(ProofError, match=r"are those of training mode; call network\.eval\(\) before it answers"):
        load()
    write(network, end=lambda logits: logits + 1e-3 * torch.randn(logits.shape) * (logits.max() - logits.min()))
    with pytest.raises(ProofError, match=r"in lower precision \(TF32, autocast\), let it answer in fp32 on the CPU"):
        load()


def arrays(**changes):
    return {"input": np.zeros((2, 3, 16, 24), np.float32), "output": np.full((2, 1, 16, 24), 0.5, np.float32)} | changes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": np.zeros(3)}, "found the arrays x, expected input and output; write it by numpy.savez"),
        (arrays(input=np.zeros((2, 3, 16, 24), np.uint8)), "input is uint8 [2, 3, 16, 24], expected floating point"),
        (
            arrays(input=np.zeros((3, 16, 24))),
            "input is float64 [3, 16, 24], expected floating point [n, channels, h, w]",
        ),
        (
            arrays(output=np.ones((2, 1, 16, 24))),
            "output holds 0 and 1 alone, so it is a mask; give logits or probabilities",
        ),
        (arrays(output=np.full((2, 1, 16, 24), np.nan)), "output holds NaN or infinite values"),
        (
            arrays(output=np.full((2, 1, 8, 24), 0.5)),
            "input is [2, 3, 16, 24] and output [2, 1, 8, 24], expected",
        ),
        (arrays(input=np.zeros((0, 3, 16, 24)), output=np.zeros((0, 1, 16, 24))), "input is float64 [0, 3, 16, 24]"),
        (
            arrays(input=np.zeros((2, 1, 16, 24))),
            "input has 1 channels and output 1, the weights in net.pth have 3 and 1",
        ),
        (
            arrays(input=np.zeros((2, 3, 15, 24)), output=np.full((2, 1, 15, 24), 0.5)),
            "inputs are 24x15, expected multiples of 4",
        ),
        (
            arrays(input=np.array([[{}]], object)),
            "is damaged or no .npz file of numbers (Object arrays cannot be loaded",
        ),
    ],
)
def test_pairs_of_another_form_are_refused(given, message):
    write(randomised(Milesial(widths=WIDTHS, classes=1)), **given)
    with pytest.raises(ConfigError) as caught:
        load()
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_a_file_that_holds_no_pairs_is_refused(content, tmp_path):
    (tmp_path / "pairs.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--pairs .*pairs\.npz: is damaged or no \.npz file"):
        read_pairs(tmp_path / "pairs.npz")
    with pytest.raises(ConfigError, match="no such file; expected an \\.npz file"):
        read_pairs(tmp_path / "none.npz")


def test_a_single_array_is_no_file_of_pairs(tmp_path):
    np.save(tmp_path / "pairs.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="found the arrays none, expected input and output"):
        read_pairs(tmp_path / "pairs.npy")


def test_a_checkpoint_with_a_card_needs_no_pairs(network, card):
    write(network)
    save_checkpoint("net.pth", network.state_dict(), card)
    with pytest.raises(ConfigError, match=r"--pairs: net\.pth has a card, which tells its network; leave it out"):
        load()


def test_pairs_contradict_a_network():
    for arguments in (["net.pth"], ["--check", "net.onnx", "--checkpoint", "net.pth"]):
        done = CliRunner().invoke(main, [*arguments, "--pairs", "pairs.npz", "--network", "net.py:Net"])
        assert (done.exit_code, done.stderr) == (
            2,
            "error: --pairs: tells how weights without a network are read; leave it out, or --network\n",
        )
    done = CliRunner().invoke(main, ["--check", "net.onnx", "--pairs", "pairs.npz"])
    assert done.stderr == "error: --pairs: is for a checkpoint to compare with; give --checkpoint too\n"
    with pytest.raises(ConfigError, match="pairs: tell how weights without a network are read"):
        export_onnx(randomised(Milesial(widths=WIDTHS)), "net.onnx", pairs="pairs.npz")


def test_each_reading_is_tried_once_and_a_family_s_own_is_one_of_them():
    torch.save(randomised(Milesial(widths=WIDTHS, bilinear=True)).state_dict(), "net.pth")
    mapped = load_weights("net.pth")
    tried = list(all_readings(mapped.config))
    assert len(tried) == len(set(tried)) == 2 * 7 * 3 * 4
    assert usual_reading(mapped) in tried
