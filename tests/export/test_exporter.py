import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from folders import write_pair
from networks import make_card, make_network

from export import ExportReport, export_onnx, exporter
from export.cli import main
from export.exporter import default_path
from runtime.errors import ModelError, OutputError, ProofError
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint
from unet_core.evaluate import evaluate
from unet_core.model import Segmenter
from unet_core.pairs import find_pairs


@pytest.fixture
def checkpoint(tmp_path, network, card):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One exported model for all tests that only look at it: an export takes seconds."""
    checkpoint = tmp_path_factory.mktemp("exported") / "model.pth"
    network = make_network()
    save_checkpoint(checkpoint, network.state_dict(), make_card(network))
    return export_onnx(checkpoint)


def test_the_file_carries_card_proof_and_golden_sample(exported, card):
    assert isinstance(exported, ExportReport)
    assert exported.path.name == "model.onnx"
    assert exported.size == exported.path.stat().st_size
    predictor = Predictor(exported.path, "cpu")
    assert predictor.card == exported.card
    assert (predictor.card.architecture, predictor.card.input) == (card.architecture, card.input)
    assert predictor.card.proof.max_abs_error < 2e-6
    assert predictor.report.golden_error < 2e-6
    assert [entry.key for entry in onnx.load(exported.path).metadata_props] == ["unet.card", "unet.golden"]


def test_the_card_is_plain_json_without_paths(exported):
    text = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}["unet.card"]
    card = json.loads(text)
    assert card["schema"] == 1
    assert card["proof"]["tolerance"] == 1e-4
    assert len(card["proof"]["rows"]) == 8
    assert str(exported.path.parent) not in text


def test_predictions_equal_pytorchs_on_images_of_any_size(exported, network, card):
    predictor = Predictor(exported.path, "cpu")
    for height, width in ((1, 1), (7, 50), (32, 48), (90, 61)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
        result = predictor.predict(image)
        assert result.probability.shape == (1, height, width)
        if (height, width) == card.input.size:
            with torch.inference_mode():
                expected = Segmenter(network, card).eval()(torch.from_numpy(image)[None]).numpy()[0]
            assert np.abs(result.probability - expected).max() < 2e-6


def test_evaluation_gives_the_same_numbers_for_both_files(exported, tmp_path):
    for index in range(4):
        write_pair(tmp_path, "val", f"v{index}", size=(40 + index, 70), seed=index)
    pairs = find_pairs(tmp_path, "val")
    of_checkpoint = evaluate(exported.path.with_suffix(".pth"), pairs, device="cpu").summary()
    assert evaluate(exported.path, pairs, device="cpu").summary() == pytest.approx(of_checkpoint, abs=5e-5)


def test_command_line_says_nothing_but_the_proof_and_writes_the_same_bytes(exported, tmp_path):
    """In a process of its own: the exporter's chatter would go past pytest's capture."""
    target = tmp_path / "sub" / "out.onnx"
    command = [sys.executable, "-m", "export.cli", str(exported.path.with_suffix(".pth")), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert len(lines) == 1 + 8 + 1
    assert lines[1].startswith("1x1x1 ")
    assert lines[-1].startswith(f"{target}: 0.1 MB, equals PyTorch within ")
    assert target.read_bytes() == exported.path.read_bytes()


def test_help_needs_no_pytorch():
    code = "import sys, export.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["model.pth", "model.pth.tar", "model.pt", "model"])
def test_the_default_name_stands_beside_the_checkpoint(name):
    assert default_path(Path("runs") / name) == Path("runs/model.onnx")


def test_multi_class_grey_tutorial_checkpoints_export(tmp_path):
    torch.save({"state_dict": make_network(classes=3, in_channels=1).state_dict(), "optimizer": {}}, tmp_path / "m.tar")
    result = Predictor(export_onnx(tmp_path / "m.tar").path, "cpu").predict(np.zeros((10, 20, 3), np.uint8))
    assert result.probability.shape == (3, 10, 20)
    assert np.allclose(result.probability.sum(axis=0), 1, atol=1e-5)


def test_a_failed_proof_writes_nothing(checkpoint, monkeypatch):
    checkpoint.with_suffix(".onnx").write_bytes(b"older file")
    monkeypatch.setattr("export.proof.MAX_ERROR", 0.0)
    result = CliRunner().invoke(main, [str(checkpoint)])
    assert result.exit_code == ProofError.exit_code == 1
    assert result.stderr.startswith("error: the exported graph is not the network")
    assert checkpoint.with_suffix(".onnx").read_bytes() == b"older file"
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["model.onnx", "model.pth"]


def test_a_file_that_the_runtime_refuses_is_not_left_behind(checkpoint, exported, monkeypatch):
    monkeypatch.setattr(exporter, "build_graph", lambda *_: onnx.load(exported.path))
    monkeypatch.setattr(exporter, "set_metadata", lambda model, entries: model.ClearField("metadata_props"))
    with pytest.raises(ModelError, match="without a card"):
        export_onnx(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("spoil", ["missing", "folder", "empty", "foreign", "unwritable", "target is a folder"])
def test_bad_input_is_one_line_and_exit_code_2(checkpoint, tmp_path, spoil):
    target = tmp_path / "out.onnx"
    if spoil == "missing":
        checkpoint, message = tmp_path / "no.pth", "no.pth: no such file"
    elif spoil == "folder":
        checkpoint, message = tmp_path, "is a folder, expected a checkpoint"
    elif spoil == "empty":
        checkpoint.write_bytes(b"")
        message = "is empty (0 bytes)"
    elif spoil == "foreign":
        torch.save({"layer1.weight": torch.ones(3)}, checkpoint)
        message = "is not a U-Net that is known here (tutorial, milesial, mateuszbuda, usuyama): found the keys layer1"
    elif spoil == "unwritable":
        (tmp_path / "file").write_text("")
        target, message = tmp_path / "file" / "out.onnx", "cannot create this folder"
    else:
        target.mkdir()
        message = "out.onnx: is a folder, expected a file name"
    result = CliRunner().invoke(main, [str(checkpoint), "-o", str(target)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not target.is_file()


def test_a_checkpoint_is_never_overwritten_by_its_export(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match=r"model\.pth: expected a name that ends in \.onnx"):
        export_onnx(checkpoint, checkpoint)
    assert checkpoint.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_before_the_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "build_graph", lambda *_: pytest.fail("worked first"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError):
        export_onnx(checkpoint, tmp_path / "folder.onnx")
