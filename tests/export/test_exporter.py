import errno
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from folders import write_pair
from masks import names_in
from networks import make_card, make_network

from export import ExportReport, export_onnx, exporter
from export.cli import main
from export.options import ExportOptions
from runtime.devices import availability
from runtime.errors import CheckpointError, ConfigError, ModelError, OutputError
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges
from unet_core.reporting.progress import Display


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
    assert [entry.key for entry in onnx.load(exported.path).metadata_props] == [
        "unet.card",
        "unet.golden",
        "unet.digest",
    ]
    assert predictor.report.integrity == "verified" and onnx.load(exported.path).producer_name == "unet-deploy"


def test_the_card_is_plain_json_without_paths(exported):
    text = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}["unet.card"]
    card = json.loads(text)
    assert card["schema"] == 2
    assert card["proof"]["tolerance"] == 1e-4
    assert len(card["proof"]["rows"]) == 9
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
    """Runs in a process of its own: the exporter's chatter would go past pytest's capture."""
    target = tmp_path / "sub" / "out.onnx"
    command = [sys.executable, "-m", "export.cli", str(exported.path.with_suffix(".pth")), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert done.stderr == "".join(f"note: {note}\n" for note in exported.notes)
    assert len(lines) == 1 + 9 + 1
    assert lines[1].startswith("1 of 1x1 ")
    assert lines[-1].startswith(f"{target}: 0.2 MB, equals PyTorch within ")
    assert target.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize("name", ["model.pth", "model.pth.tar", "model.pt", "model"])
def test_the_default_name_stands_beside_the_checkpoint(name):
    assert exporter.default_path(Path("runs") / name, ExportOptions()) == Path("runs/model.onnx")


def test_multi_class_grey_tutorial_checkpoints_export(tmp_path):
    torch.save({"state_dict": make_network(classes=3, in_channels=1).state_dict(), "optimizer": {}}, tmp_path / "m.tar")
    report = export_onnx(tmp_path / "m.tar", changes=CardChanges(probabilities="softmax"))
    result = Predictor(report.path, "cpu").predict(np.zeros((10, 20, 3), np.uint8))
    assert result.probability.shape == (3, 10, 20)
    assert np.allclose(result.probability.sum(axis=0), 1, atol=1e-5)


def test_fp16_and_int8_files_carry_their_gate_and_the_runtime_takes_them(at_hand, trained, tmp_path):
    sizes = [export_onnx(at_hand).size]
    for kind, asked in (("fp16", {}), ("int8-trt", {"int8_for": "tensorrt"}), ("int8-cpu", {"values": "u8"})):
        kind, name = kind.partition("-")[0], f"model.{kind}.onnx"
        report = export_onnx(at_hand, precision=kind, data=trained.data, **asked)
        predictor = Predictor(report.path, "cpu")
        assert report.path.name == name
        assert (predictor.card, predictor.card.precision) == (report.card, kind)
        assert (predictor.card.proof.tolerance, predictor.card.proof.gate.passed) == (None, True)
        assert predictor.card.proof.gate.image_dice == pytest.approx(
            trained.card.training.metrics["image_dice"], abs=2e-3
        )
        assert any(row.images == "data" for row in predictor.card.proof.rows)
        sizes.append(report.size)
    assert sizes[1] < sizes[0]
    assert report.notes[0].startswith("judged on 6 real images") and report.notes[1].startswith("int8 for CPUs is ")


@pytest.mark.parametrize(
    ("missing", "name", "note"),
    [
        ("no NVIDIA driver", "cpu", "for CPUs, since TensorRT does not run here; --for tensorrt writes the other"),
        (None, "trt", "for TensorRT, which runs here; --for cpu writes the other"),
    ],
)
def test_int8_alone_is_for_what_runs_here_and_says_so(at_hand, trained, monkeypatch, capsys, missing, name, note):
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: missing if device.kind == "tensorrt" else None
    )
    assert exporter.default_path(at_hand, ExportOptions(precision="int8", data=".")).name == f"model.int8-{name}.onnx"
    export_onnx(at_hand, precision="int8", data=trained.data, display=Display())
    assert names_in(at_hand.parent) == [f"model.int8-{name}.onnx", "model.pth"]
    assert f"note: --precision int8: is written {note}\n" in capsys.readouterr().err


def test_the_same_bytes_twice_in_every_precision(at_hand, trained, tmp_path):
    for kind in ("fp16", "int8"):
        files = [export_onnx(at_hand, tmp_path / f"{n}.onnx", precision=kind, data=trained.data).path for n in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_wrong_images_to_calibrate_on_are_refused_forced_and_forgotten(at_hand, trained, flat, tmp_path):
    target = tmp_path / "model.int8-trt.onnx"
    target.write_bytes(b"older file")
    arguments = [str(at_hand), "--precision", "int8", "--for", "tensorrt", "--data"]
    refused = CliRunner().invoke(main, [*arguments, str(flat)])
    assert refused.exit_code == 1
    table = [line.split() for line in refused.stdout.splitlines()]
    assert table[0] == ["judged", "on", "6", "real", "images", "found", "limit", "verdict"]
    assert table[1][:4] == ["pixels", "flipped", "against", "fp32"] and table[1][5:] == ["not", "judged"]
    assert table[2][:4] == ["image", "Dice", "of", "fp32"] and table[2][-1] == "PASS"
    assert [*table[3][:3], *table[3][4:]] == ["image", "Dice", "lost", "at", "most", "0.0020", "FAILED"]
    assert refused.stderr.startswith(f"error: {target}: not written, int8 loses too much: it flips ")
    assert re.search(r"takes the image Dice from 0\.99\d\d to 0\.\d{4}; alone, \S+ flips \d", refused.stderr)
    assert refused.stderr.endswith("; --force writes it all the same\n") and refused.stderr.count("\n") == 1
    assert target.read_bytes() == b"older file"
    gate = json.loads((tmp_path / "model.int8-trt.refused.json").read_text())["card"]["proof"]["gate"]
    assert not gate["passed"]
    forced = CliRunner().invoke(main, [*arguments, str(flat), "--force"])
    assert forced.exit_code == 0
    assert "WHICH IS TOO MUCH: it was forced" in forced.stdout
    assert Predictor(target, "cpu").card.proof.gate.passed is False
    assert names_in(tmp_path) == ["model.int8-trt.onnx", "model.pth"]
    assert CliRunner().invoke(main, [*arguments, str(trained.data)]).exit_code == 0
    assert Predictor(target, "cpu").card.proof.gate.passed is True


def test_weights_that_overflow_fp16_stay_in_fp32_and_the_file_says_so(trained, tmp_path):
    """The way from the checkpoint: two layers scaled against each other, so that fp32 computes what it did."""
    state = dict(load_checkpoint(trained.checkpoint).state_dict)
    for name in ("weight", "bias"):
        state[f"downs.1.conv.1.{name}"] = state[f"downs.1.conv.1.{name}"] * 1e6
    state["downs.1.conv.3.weight"] = state["downs.1.conv.3.weight"] * 1e-6
    card = replace(trained.card, weights_sha256=weights_sha256(state))
    save_checkpoint(tmp_path / "model.pth", state, card)
    done = CliRunner().invoke(main, [str(tmp_path / "model.pth"), "--precision", "fp16", "--data", str(trained.data)])
    assert done.exit_code == 0, done.stderr
    assert ", with downs.1.conv.0, downs.1.conv.3 in fp32" in done.stdout
    predictor = Predictor(tmp_path / "model.fp16.onnx", "cpu")
    assert predictor.card.proof.gate.kept == ("downs.1.conv.0", "downs.1.conv.3")


def test_a_network_that_answers_nan_is_blamed_itself(trained, tmp_path):
    state = dict(load_checkpoint(trained.checkpoint).state_dict)
    for layer in ("downs.0.conv.1", "downs.1.conv.1", "bottleneck.conv.1"):
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * 1e30
    save_checkpoint(tmp_path / "model.pth", state, replace(trained.card, weights_sha256=weights_sha256(state)))
    with pytest.raises(
        CheckpointError, match=r"model\.pth: PyTorch answers NaN to a batch of \[1, .*train the network"
    ):
        export_onnx(tmp_path / "model.pth")
    assert names_in(tmp_path) == ["model.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "--precision fp8: expected fp32, fp16, int8"),
        ({"precision": "int8"}, "--precision int8: needs real images to calibrate on; give --data FOLDER"),
        ({"precision": "fp16", "raw": True}, "--raw: writes fp32 only; leave out --precision fp16"),
        ({"keep": ("ups.0",)}, "--keep: an fp32 file keeps all layers; give --precision fp16 or int8"),
        ({"force": True}, "--force: an fp32 file that differs from the network is never written; leave it out"),
        (
            {"precision": "fp16", "values": "u8"},
            "--values u8: is for int8 files; give --precision int8, or leave it out",
        ),
        ({"values": "s4"}, "--values s4: expected s8 or u8"),
        ({"int8_for": "gpu"}, "--for gpu: expected cpu or tensorrt"),
        ({"int8_for": "cpu"}, "--for cpu: is for int8 files; give --precision int8, or leave it out"),
        (
            {"int8_for": "cpu", "precision": "int8", "values": "s8"},
            "--for cpu: has the values u8; leave out --values s8",
        ),
        ({"opset": 17}, "--opset 17: expected 18 to 23"),
        ({"precision": "fp16", "keep": ("up",)}, "--keep up: no such layer; expected some of downs.0.conv.0, "),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(trained, tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        export_onnx(trained.checkpoint, tmp_path / "m.onnx", **options)
    assert str(caught.value).startswith(message)
    assert names_in(tmp_path) == []


def test_a_full_disk_leaves_the_older_file(at_hand, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"older file")

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OutputError, match=r"model\.onnx: cannot be written \(no space left on device\); free some space"
    ):
        export_onnx(at_hand)
    assert (tmp_path / "model.onnx").read_bytes() == b"older file"
    assert names_in(tmp_path) == ["model.onnx", "model.pth"]


def test_a_model_above_2_gb_is_one_line(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("export.graph.MAX_WEIGHT_BYTES", 1000)
    done = CliRunner().invoke(main, [str(trained.checkpoint), "-o", str(tmp_path / "m.onnx")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "bytes: expected at most 1000, what one ONNX file can hold" in done.stderr
    assert names_in(tmp_path) == []


def test_a_file_that_the_runtime_refuses_is_not_left_behind(checkpoint, exported, monkeypatch):
    monkeypatch.setattr(exporter, "build_graph", lambda *_: onnx.load(exported.path))
    monkeypatch.setattr(exporter, "set_model_props", lambda model, entries: model.ClearField("metadata_props"))
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
        message = "is not a U-Net that is known here (the tutorial, milesial, mateuszbuda, usuyama): found the keys"
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


@pytest.mark.parametrize("opset", [21, 22])
def test_an_opset_whose_max_pool_cuda_cannot_compute_is_noted(checkpoint, opset):
    notes = export_onnx(checkpoint, opset=opset).notes
    said = (
        f"--opset {opset}: ONNX Runtime's CUDA provider has no kernel for MaxPool, so a part of the network would run "
        "on the CPU, and device cuda refuses the file; leave --opset out for GPUs"
    )
    assert (said in notes) == (opset == 22)
