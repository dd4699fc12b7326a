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

SUPPORT = Path(__file__).parents[2] / "support"


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
    assert "prove it with --network" in done.stderr
    predictor = Predictor("fork.onnx", "cpu")
    assert predictor.card.proof.reference == "reading"
    image = synthetic_image(32, 48, 3, seed=1)
    assert np.abs(predictor.run(image[None])[0] - answers(fork[0], image)).max() > 1e-3  # the reading is wrong


def test_a_fork_is_right_by_its_code(fork):
    network, name = fork
    done = export("--network", f"{SUPPORT / 'forks.py'}:{name}")
    assert "equals PyTorch within" in done.stdout
    predictor = Predictor("fork.onnx", "cpu")
    assert (predictor.card.proof.reference, predictor.card.architecture.kind) == ("module", "module")
    for size in ((32, 48), (64, 80)):
        image = synthetic_image(*size, 3, seed=1)
        assert np.abs(predictor.run(image[None])[0] - answers(network, image)).max() < 1e-5
