"""Networks with the keys of a known family and another meaning: not called equal by their keys, right by their code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from families import randomised
from forks import FORKS

from export.cli import main
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(params=FORKS)
def fork(request, tmp_path, monkeypatch):
    """A fork's network and, in the current folder, its weights."""
    monkeypatch.chdir(tmp_path)
    network = randomised(FORKS[request.param]())
    torch.save(network.state_dict(), "fork.pth")
    return network, FORKS[request.param].__name__


def answers(network, image):
    """Probabilities [1, height, width] that the author's program gives."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return network(planes).sigmoid()[0].numpy()


def export(*options):
    done = CliRunner().invoke(main, ["fork.pth", "--size", "48x32", *options])
    assert done.exit_code == 0, done.output
    return done


def test_a_fork_is_not_called_equal_by_its_keys(fork):
    done = export()
    assert "equals PyTorch" not in done.output
    assert "equals this library's reading of fork.pth as " in done.stdout
    assert "names cannot show activation, concatenation order, padding or interpolation" in done.stderr
    assert "unet-export proves it with --network, or with --pairs" in done.stderr
    predictor = Predictor("fork.onnx", "cpu")
    assert predictor.card.proof.reference == "reading"
    image = synthetic_image(32, 48, 3, seed=1)
    assert np.abs(predictor.run(image[None])[0] - answers(fork[0], image)).max() > 1e-3  # the reading is wrong
    check = ["--check", "fork.onnx", "--checkpoint", "fork.pth", "--network", f"{SUPPORT / 'forks.py'}:{fork[1]}"]
    done = CliRunner().invoke(main, check)
    assert done.exit_code == 1 and "fork.onnx: is off by " in done.stderr
    assert done.stderr.endswith("its weights were read in the wrong way, export them again by --network or --pairs\n")


def is_right(network):
    """Compare the exported file with the author's network, also at sizes that nothing was proved at."""
    predictor = Predictor("fork.onnx", "cpu")
    for size in ((32, 48), (64, 80)):
        image = synthetic_image(*size, 3, seed=1)
        assert np.abs(predictor.run(image[None])[0] - answers(network, image)).max() < 1e-5
    return predictor.card


def test_a_fork_is_right_by_its_code(fork):
    network, name = fork
    done = export("--network", f"{SUPPORT / 'forks.py'}:{name}")
    assert "equals PyTorch within" in done.stdout
    card = is_right(network)
    assert (card.proof.reference, card.architecture.kind) == ("module", "module")


READ = {
    "UpFirst": "milesial's U-Net with concatenation [up, skip], ReLU, padding zeros",
    "TutorialUpFirst": "the tutorial's U-Net with concatenation [up, skip], ReLU, padding zeros",
    "with_leaky_relu": "the tutorial's U-Net with concatenation [skip, up], LeakyReLU(0.1), padding zeros",
    "with_free_corners": "milesial's U-Net with concatenation [skip, up], ReLU, align_corners=False, padding zeros",
    "with_reflected_borders": "the tutorial's U-Net with concatenation [skip, up], ReLU, padding reflect",
}


def test_a_fork_is_right_by_pairs_of_inputs_and_outputs(fork):
    network, name = fork
    inputs = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.savez("pairs.npz", input=inputs.numpy(), output=network(inputs).numpy())
    done = export("--pairs", "pairs.npz")
    assert "equals its author's outputs within" in done.stdout
    assert f"fork.pth was read as {READ[name]}, which gives the 2 outputs in pairs.npz within" in done.stderr
    assert "tell them apart" not in done.stderr and "names cannot show" not in done.stderr
    card = is_right(network)
    assert card.proof.reference == "pairs"
    first = card.proof.rows[0]
    assert (first.shape, first.images) == ((2, 32, 48), "pairs")
    assert card.architecture.kind == ("unet" if "UpFirst" in name else "module")
    checked = CliRunner().invoke(main, ["--check", "fork.onnx", "--checkpoint", "fork.pth", "--pairs", "pairs.npz"])
    assert checked.exit_code == 0, checked.output
    assert "equals the reading of fork.pth that fits pairs.npz within" in checked.stdout


def export_trained(trained, *options):
    """Export the weights of a trained network that concatenates [up, skip], without their card."""
    state_dict = {name: value.clone() for name, value in trained.segmenter.network.state_dict().items()}
    for step, width in enumerate(reversed(trained.card.architecture.widths)):
        key = f"ups.{2 * step + 1}.conv.0.weight"
        state_dict[key] = torch.cat([state_dict[key][:, width:], state_dict[key][:, :width]], dim=1)
    torch.save(state_dict, "other.pth")
    mean, std = (",".join(map(str, value)) for value in (trained.card.input.mean, trained.card.input.std))
    size = ("--size", "96x64", "--mean", mean, "--std", std)
    return CliRunner().invoke(main, ["other.pth", "--data", str(trained.data), *size, *options])


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_image_dice_of_a_wrong_reading_warns_and_pairs_mend_it(trained, in_folder):
    wrong = export_trained(trained)
    (found,) = (line for line in wrong.stdout.splitlines() if line.startswith("image Dice of PyTorch's answers in "))
    (warned,) = (line for line in wrong.stderr.splitlines() if "as of a network that finds nothing there" in line)
    assert float(found.rpartition(": ")[2]) < 0.5
    assert warned.startswith(f"note: the image Dice on --data is {found.rpartition(': ')[2]}, as of a network")
    assert warned.endswith("its weights are read in the wrong way: prove the reading by --network or --pairs")
    inputs = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.savez("pairs.npz", input=inputs.numpy(), output=trained.segmenter.network(inputs).numpy())
    right = export_trained(trained, "--pairs", "pairs.npz")
    assert "as of a network that finds nothing" not in right.stderr
    (found,) = (line for line in right.stdout.splitlines() if line.startswith("image Dice of PyTorch's answers in "))
    assert float(found.rpartition(": ")[2]) > 0.9
    assert "concatenation [up, skip], ReLU, padding zeros" in right.stderr
