"""Export of a network that was trained here on images of many channels, and measured on them."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from many_channels import write_channels
from networks import make_card, make_network

import runtime
from export.cli import main
from export.samples import load_samples
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint

SUFFIXES = (".tif", ".npy", ".npz")


@pytest.fixture
def folder(tmp_path):
    """Four pairs to train on and two to validate, of five channels in three formats."""
    for index in range(6):
        split = "train" if index < 4 else "val"
        write_channels(tmp_path / "bands", split, f"{split}{index}", suffix=SUFFIXES[index % 3], seed=index)
    return tmp_path / "bands"


@pytest.fixture
def network():
    return make_network(in_channels=5)


@pytest.fixture
def checkpoint(network, tmp_path):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), make_card(network))
    return tmp_path / "model.pth"


def test_a_network_of_five_channels_is_exported_with_its_data_and_proved_again(network, checkpoint, folder, tmp_path):
    done = CliRunner().invoke(main, [str(checkpoint), "--data", str(folder)])
    assert done.exit_code == 0, done.stderr
    model = tmp_path / "model.onnx"
    predictor = Predictor(model, "cpu")
    card = predictor.card
    assert (card.architecture.in_channels, card.input.channels, card.architecture.kind) == (5, "raw", "unet")
    assert {row.images for row in card.proof.rows} == {"synthetic", "data"}
    (image,) = onnx.load(model).graph.input
    assert [size.dim_value for size in image.type.tensor_type.shape.dim][3] == 5
    for path in sorted((folder / "val_images").iterdir()):
        (index,) = (int(letter) for letter in path.stem if letter.isdigit())
        array, _ = write_channels(tmp_path / "again", "val", path.stem, suffix=path.suffix, seed=index)
        found = runtime.predict(path, model=model, device="cpu").probability
        assert np.array_equal(found, predictor.predict(array).probability)
    checked = CliRunner().invoke(main, ["--check", str(model), "--checkpoint", str(checkpoint), "--data", str(folder)])
    assert checked.exit_code == 0, checked.stderr
    assert "equals PyTorch" in checked.stdout


def test_calibration_and_gate_see_real_images_of_five_channels(network, folder):
    samples = load_samples(folder, make_card(network))
    assert (samples.labelled, samples.images) == (True, "data")
    assert [pair.image.name for pair in samples.measured.pairs] == ["val4.npy", "val5.npz"]
    assert [pair.image.name for pair in samples.calibration.pairs] == [
        "train0.tif",
        "train1.npy",
        "train2.npz",
        "train3.tif",
    ]
    assert samples.measured[0][0].shape == (32, 48, 5)
    assert not load_samples(folder / "train_images", make_card(network)).labelled


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision_of_five_channels_is_judged_on_images(checkpoint, folder, precision):
    done = CliRunner().invoke(main, [str(checkpoint), "--precision", precision, "--data", str(folder), "--force"])
    assert done.exit_code == 0, done.stderr
    (file,) = (path for path in checkpoint.parent.glob("*.onnx") if precision in path.name)
    gate = Predictor(file, "cpu").card.proof.gate
    assert (gate.images, gate.count) == ("data", 2)
