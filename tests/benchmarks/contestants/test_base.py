"""A file of somebody else's network is measured against that network in PyTorch, by its author's code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from authors import write_author
from click.testing import CliRunner
from folders import write_pair

from benchmarks.cases import folder as folder_case
from benchmarks.cases.folder import LOOP, SCRIPT, SHARED
from benchmarks.cases.parity import measure
from benchmarks.cli import main
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.pytorch import EagerContestant
from export import export_onnx
from runtime.errors import ConfigError, ProofError
from runtime.image import list_images
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.model_options import CardChanges, NetworkOptions

NETWORK = NetworkOptions(source="net.py:Net")
BATCH = np.stack([synthetic_image(32, 48, 3, seed) for seed in range(2)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """model.onnx of the trained weights in weights.pth, which also holds an average; and three images."""
    folder = tmp_path_factory.mktemp("author")
    average, raw = write_author(folder, seed=1), write_author(folder, seed=4)
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, folder / "weights.pth")
    options = replace(NETWORK, source=f"{folder / 'net.py'}:Net")
    export_onnx(folder / "weights.pth", folder / "model.onnx", network=options, changes=CardChanges(size=(32, 48)))
    for index in range(3):
        write_pair(folder, "val", f"v{index}", size=(40, 60 + index), seed=index)
    return folder


@pytest.fixture
def author(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def test_pytorch_runs_the_authors_network(author):
    model = BenchmarkModel.read(author / "model.onnx", author / "weights.pth", network=NETWORK)
    loaded = EagerContestant().load(model, 1, (2, 32, 48))
    answer = loaded(BATCH)
    assert np.abs(answer - Predictor(author / "model.onnx", "cpu").run(BATCH)).max() < 1e-5
    assert answer.std() > 0.05


def test_without_the_network_or_with_other_weights_it_is_refused(author):
    with pytest.raises(ConfigError) as caught:
        BenchmarkModel.read(author / "model.onnx", author / "weights.pth")
    assert str(caught.value).startswith(f"{author / 'model.onnx'}: its network is ")
    assert str(caught.value).endswith("which only its author's code can make; give --network")
    with pytest.raises(ProofError, match=r"answers differ by 0.*; are they the same model"):
        BenchmarkModel.read(author / "model.onnx", author / "weights.pth", network=replace(NETWORK, weights="ema"))


def test_what_the_proof_of_a_deep_network_allows_is_no_other_model(author):
    model = BenchmarkModel.read(author / "model.onnx")
    assert model.tolerance == 1e-4
    coarse = replace(model.card, proof=replace(model.card.proof, tolerance=3e-4))
    assert replace(model, card=coarse).tolerance == 3e-4


def test_parity_with_the_authors_network(author):
    images = list_images(author / "val_images")
    error, share = measure(author / "model.onnx", author / "weights.pth", images, network=NETWORK, threads=1)
    assert len(error.values) == 3 and error.facts["max_abs_error"] < 1e-5 and max(share.values) == 0
    other = replace(NETWORK, weights="ema")
    error, _ = measure(author / "model.onnx", author / "weights.pth", images, network=other, threads=1)
    assert error.facts["max_abs_error"] > 0.01


def test_scripts_run_the_authors_network(author, monkeypatch):
    seen = []
    monkeypatch.setattr(folder_case, "interleave", lambda calls, *_, **__: seen.append(calls) or {})
    images = list_images(author / "val_images")
    model = BenchmarkModel.read(author / "model.onnx", author / "weights.pth", network=NETWORK)
    folder_case.measure(model, images, folder_sizes=(3,), threads=1)
    assert {SCRIPT, SHARED, LOOP} <= seen[0].keys()


def bench(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_takes_the_network(author, tmp_path):
    given = ("--checkpoint", "weights.pth", "--network", "net.py:Net", "--data", ".", "--device", "cpu")
    done = bench("model.onnx", *given, "--part", "parity", "--quick", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "net.Net, 48x32, 1 class" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network", "net.py:Net"), "--network: is for a checkpoint; give --checkpoint too"),
        (("--weights", "ema"), "--weights: is for a checkpoint; give --checkpoint too"),
        (
            ("--checkpoint", "weights.pth", "--stride", 2),
            "--stride: goes with --network; give that too, or leave it out",
        ),
        (("--checkpoint", "weights.pth"), "which only its author's code can make; give --network"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(author, options, message):
    done = bench("model.onnx", *options, "--part", "parity")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_training_is_for_our_networks(author):
    done = bench("model.onnx", "--data", ".", "--part", "training", "--device", "cpu")
    assert done.exit_code == 1
    assert "takes U-Nets of this library, and the model is a net.Net" in done.output
