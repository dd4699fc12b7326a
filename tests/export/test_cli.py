import json

import pytest
from click.testing import CliRunner
from folders import write_pair

from export import cli, exporter
from export.cli import main
from runtime.card import Parity, ProofRow
from runtime.errors import ProofError
from unet_core.pairs import Layout


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of `export_onnx`, which does nothing here."""
    calls = []

    def export_onnx(*arguments, **options):
        calls.append((arguments, options))
        raise ProofError("asked")

    monkeypatch.setattr(exporter, "export_onnx", export_onnx)
    return calls


def test_all_options_reach_the_export(asked, tmp_path):
    given = ("--precision", "int8", "--data", tmp_path, "--keep", "ups.0,ups.2", "--values", "u8", "--force")
    done = run("m.pth", "-o", "o.onnx", *given, "--opset", 21, "--size", "48x32", "--mean", "0,0,0", "--threshold", 0)
    assert (done.exit_code, done.stderr) == (1, "error: asked\n")
    ((paths, options),) = asked
    assert [str(path) for path in paths] == ["m.pth", "o.onnx"]
    changes = options.pop("changes")
    assert (changes.size, changes.mean, changes.threshold, changes.std) == ((32, 48), (0, 0, 0), 0.0, None)
    del options["display"]
    assert options == {
        "precision": "int8",
        "data": tmp_path,
        "keep": ("ups.0", "ups.2"),
        "values": "u8",
        "force": True,
        "opset": 21,
        "layout": Layout(),
        "ignore_index": None,
    }


def test_what_is_not_given_is_left_to_the_export(asked):
    run("m.pth")
    ((_, options),) = asked
    assert options.keys() == {"changes", "display"}


def test_masks_are_read_as_in_the_run_that_left_its_settings(asked, tmp_path):
    settings = {"masks": "labels", "ignore_index": 7, "val_share": 0.3, "group": "-"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    done = run(tmp_path / "m.pth", "--precision", "fp16", "--data", tmp_path, "--ignore-index", 0)
    assert done.stderr.startswith(f"note: {tmp_path / 'config.json'}: --masks 'labels'")
    assert asked[0][1]["layout"] == Layout(masks="labels", val_share=0.3, group="-")
    assert asked[0][1]["ignore_index"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.pth", "--device", "cpu"], "--device: goes with --check; leave it out"),
        (["m.pth", "--checkpoint", "n.pth"], "--checkpoint: goes with --check; leave it out"),
        (["m.pth", "--masks", "m"], "--masks: goes with --data and --precision fp16 or int8; leave it out"),
        (
            ["m.pth", "--data", "d", "--ignore-index", "0"],
            "--ignore-index: goes with --data and --precision fp16 or int8; ",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_one_line(arguments, message):
    done = run(*arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize("arguments", [[], ["m.pth", "--check", "m.onnx"]])
def test_either_a_checkpoint_or_a_file_to_check(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.endswith("Give a CHECKPOINT to export, or --check FILE.\n")


@pytest.mark.parametrize("checkpoint", [".", "/", "nowhere.pth"])
def test_what_is_no_checkpoint_is_one_line(checkpoint, tmp_path):
    write_pair(tmp_path, "val", "v")
    done = run(checkpoint, "--precision", "fp16", "--data", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {checkpoint}: ")


def test_folders_of_images_that_cannot_be_used_are_one_line(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"\xff\xd8")
    for precision in ("fp32", "fp16", "int8"):
        for name in ("none", "empty", "damaged"):
            arguments = ("--precision", precision, "--data", tmp_path / name, "-o", tmp_path / "o.onnx")
            done = run(trained.checkpoint, *arguments)
            assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert {"none": "no such folder", "empty": "has no images", "damaged": "a.jpg"}[name] in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_table_by_hand():
    figures = Parity(max_abs_error=1.2e-5, flipped=0.0625, iou=0.5, flip_distance=0.0)
    lines = cli.table((ProofRow(shape=(3, 20, 30), images="data", parity=figures),)).splitlines()
    assert lines[1].split() == ["3x20x30", "data", "1.2e-05", "6.2500%", "0.500000", "0.0e+00"]
    assert len(lines[0]) == len(lines[1])


def test_a_model_card_and_a_triton_repository_are_made_of_the_file(trained, tmp_path):
    file = tmp_path / "model.onnx"
    done = run(trained.checkpoint, "-o", file, "--card", "--triton", tmp_path / "models")
    assert done.exit_code == 0, done.output
    (repository,) = (tmp_path / "models").iterdir()
    assert done.stdout.splitlines()[-2:] == [f"model card: {tmp_path / 'model.md'}", f"Triton: {repository}"]
    assert (repository / "1" / "model.onnx").read_bytes() == file.read_bytes()
    assert (tmp_path / "model.md").read_text().startswith("---\n")


def test_a_raw_export_has_neither_card_nor_repository(tmp_path):
    done = run("m.pth", "--raw", "--card")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--raw: has neither card nor golden sample for --card or --triton" in done.stderr
