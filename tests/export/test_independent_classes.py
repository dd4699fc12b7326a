"""Several classes, each by itself: of a project that is known, and of any network; and those that nobody can tell."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from families import Mateuszbuda, Milesial, Usuyama, randomised
from networks import make_network
from PIL import Image
from torch import nn

from export import CardChanges, NetworkOptions, export_onnx
from export.cli import main
from export.verify import check_file
from runtime.errors import ConfigError
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.evaluate import evaluate

SIZE = CardChanges(size=(32, 48))
SIX = ("class 0", "class 1", "class 2", "class 3", "class 4", "class 5")


def planes_of(image):
    """Float planes [1, channels, height, width] of a picture, as these projects feed their networks."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Save a network's weights as weights.pth in the current folder."""
    monkeypatch.chdir(tmp_path)
    return lambda network: torch.save(network.state_dict(), "weights.pth")


def export(*options):
    return CliRunner().invoke(main, ["weights.pth", "--size", "48x32", *options])


@pytest.mark.parametrize(
    ("network", "outside"),
    [(Usuyama(widths=(4, 6), classes=6), torch.sigmoid), (Mateuszbuda(widths=(4, 6), classes=6), lambda x: x)],
)
def test_the_six_sigmoids_of_a_known_project(weights, network, outside):
    weights(randomised(network))
    done = export("--threshold", "0.4")
    assert done.exit_code == 0, done.output
    assert "a sigmoid for each class (--mean, --std, --fit, --classes, --probabilities)" in " ".join(
        done.stderr.split()
    )
    predictor = Predictor("weights.onnx", "cpu")
    assert (predictor.card.output.classes, predictor.card.output.activation) == (SIX, "sigmoids")
    image = synthetic_image(32, 48, 3, seed=1)
    with torch.inference_mode():
        expected = outside(network(planes_of(image)))[0].numpy()
    result = predictor.predict(image)
    assert np.abs(result.probability - expected).max() < 1e-5
    assert np.array_equal(result.mask, result.probability > np.float32(0.4)) and result.mask.any()
    report = check_file("weights.onnx", checkpoint="weights.pth")
    assert report.max_abs_error < 1e-5


def test_classes_of_the_tutorial_are_asked_about(weights, tmp_path):
    network = make_network(classes=3)
    weights(network)
    done = export()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: weights.pth: has 3 classes, and neither its keys nor the tutorial's code tell whether a pixel has "
        "exactly one; give --probabilities softmax (one), or sigmoids (each by itself)\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
    image = synthetic_image(32, 48, 3, seed=1)
    with torch.inference_mode():
        logits = network(planes_of(image))
    for answer, expected in (("softmax", logits.softmax(dim=1)), ("sigmoids", logits.sigmoid())):
        assert export("--probabilities", answer).exit_code == 0
        predictor = Predictor("weights.onnx", "cpu")
        assert predictor.card.output.activation == answer
        assert np.abs(predictor.run(image[None])[0] - expected[0].numpy()).max() < 1e-5
        assert check_file("weights.onnx", checkpoint="weights.pth").max_abs_error < 1e-5


def test_the_softmax_of_milesial_is_told_and_may_be_denied(weights):
    weights(randomised(Milesial(widths=(4, 6), classes=2)))
    done = export()
    assert done.exit_code == 0 and "a softmax over the classes (--" in " ".join(done.stderr.split())
    assert Predictor("weights.onnx", "cpu").card.output.classes == ("background", "foreground")
    done = export("--probabilities", "sigmoids")
    assert done.exit_code == 0 and "--probabilities" not in done.stderr
    output = Predictor("weights.onnx", "cpu").card.output
    assert (output.classes, output.activation) == (("class 0", "class 1"), "sigmoids")


class Several(nn.Module):
    """A convolution to four classes, with or without a sigmoid for each."""

    def __init__(self, own):
        super().__init__()
        self.layer, self.own = nn.Conv2d(3, 4, 3, padding=1), own

    def forward(self, x):
        return self.layer(x).sigmoid() if self.own else self.layer(x)


@pytest.mark.parametrize(
    ("own", "network", "changes"),
    [
        (True, NetworkOptions(activation="sigmoids"), SIZE),
        (False, NetworkOptions(activation="none"), CardChanges(size=(32, 48), probabilities="sigmoids")),
    ],
)
def test_the_sigmoids_of_a_network_in_memory(tmp_path, own, network, changes):
    module, path = randomised(Several(own)), tmp_path / "net.onnx"
    card = export_onnx(module, path, network=network, changes=changes).card
    assert (card.output.activation, card.output.classes) == ("sigmoids", SIX[:4])
    image = synthetic_image(40, 60, 3, seed=1)
    with torch.inference_mode():
        expected = module(planes_of(image))[0]
    expected = expected if own else expected.sigmoid()
    assert np.abs(Predictor(path, "cpu").run(image[None])[0] - expected.numpy()).max() < 1e-6
    given = export_onnx(module, path, network=network, card=card).card
    assert given.output == card.output


def test_a_given_card_that_says_something_else_than_the_network(tmp_path):
    module, path = randomised(Several(True)), tmp_path / "net.onnx"
    card = export_onnx(module, path, network=NetworkOptions(activation="logits"), changes=SIZE).card
    with pytest.raises(ConfigError, match="card: has the activation softmax, the network ends in its own sigmoids"):
        export_onnx(module, path, network=NetworkOptions(activation="sigmoids"), card=card)


def test_a_raw_file_is_proved_by_sigmoids(weights):
    weights(randomised(Usuyama(widths=(4,), classes=3)))
    done = export("--raw")
    assert done.exit_code == 0, done.output
    assert check_file("weights.raw.onnx", checkpoint="weights.pth").max_abs_error < 1e-5


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision_is_judged_on_images_alone(weights, tmp_path, precision):
    weights(randomised(Usuyama(widths=(4,), classes=3)))
    for split in ("train", "val"):
        (tmp_path / f"{split}_images").mkdir()
        (tmp_path / f"{split}_masks").mkdir()
        for index in range(8):
            picture = Image.fromarray(synthetic_image(32, 48, 3, seed=index))
            picture.save(tmp_path / f"{split}_images" / f"{index}.png")
            picture.save(tmp_path / f"{split}_masks" / f"{index}.png")  # no masks for three classes
    place = ("--for", "tensorrt") if precision == "int8" else ()
    done = export("--precision", precision, *place, "--data", str(tmp_path), "--force")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("masks hold one class for each pixel") == 1
    gate = Predictor(f"weights.{precision}{'-trt' * bool(place)}.onnx", "cpu").card.proof.gate
    assert (gate.count, gate.images, gate.image_dice) == (8, "data", None)
    assert gate.flipped < 0.02


def test_masks_cannot_measure_them(weights, tmp_path):
    weights(randomised(Usuyama(widths=(4,), classes=3)))
    with pytest.raises(ConfigError) as caught:
        evaluate("weights.pth", [])
    assert str(caught.value) == (
        "weights.pth: has 3 independent classes, of which a pixel may have several, and a mask file holds one for each "
        "pixel; measure result.region(name) of runtime.predict against masks of your own"
    )
