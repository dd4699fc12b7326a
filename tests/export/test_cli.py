import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from folders import write_pair
from networks import make_card, make_network
from onnx_files import gate_of, write_onnx

from export import exporter
from export.cli import main
from export.console_report import parity_table
from export.options import ExportOptions
from runtime.card import Parity, ProofRow
from runtime.errors import ProofError
from runtime.image_files.limits import LimitsByOption
from unet_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unet_core.data.pairs import Layout
from unet_core.model_options import CardChanges


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def loaded(monkeypatch):
    """A checkpoint that every name loads."""
    network = make_network()
    checkpoint = Checkpoint(state_dict=network.state_dict(), card=make_card(network), extra={})
    monkeypatch.setattr("unet_core.networks.checkpoint.open_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr("export.cli.require_weights", lambda _: None)
    return checkpoint


@pytest.fixture
def asked(loaded, monkeypatch):
    """Arguments of the calls of `export_loaded` by the command; it does nothing here."""
    calls = []

    def export_loaded(*arguments):
        calls.append(arguments[:-1])
        raise ProofError("asked")

    monkeypatch.setattr(exporter, "export_loaded", export_loaded)
    return calls


def test_all_options_reach_the_export(asked, loaded, tmp_path):
    given = ("--precision", "int8", "--data", tmp_path, "--keep", "ups.0,ups.2", "--values", "u8", "--force")
    given += ("--max-pixels", 300_000_000)
    done = run(
        "m.pth", "-o", "o.onnx", *given, "--opset", 21, "--size", "48x32", "--mean", "0,0,0", "--threshold", 0.25
    )
    assert (done.exit_code, done.stderr) == (1, "error: asked\n")
    options = ExportOptions(
        precision="int8",
        data=tmp_path,
        keep=("ups.0", "ups.2"),
        values="u8",
        force=True,
        limits=LimitsByOption(pixels=300_000_000, file_bytes=1_610_612_736, memory=3_221_225_472),
        opset=21,
        layout=Layout(),
        ignore_index=None,
        changes=CardChanges(size=(32, 48), mean=(0, 0, 0), threshold=0.25),
    )
    assert asked == [(loaded, Path("m.pth"), Path("o.onnx"), options)]


def test_what_is_not_given_is_left_to_the_export(asked, loaded):
    run("m.pth")
    assert asked == [(loaded, Path("m.pth"), None, ExportOptions())]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("none", None)])
def test_masks_are_read_as_in_the_run_that_left_its_settings(asked, tmp_path, text, value):
    settings = {"masks": "labels", "ignore_index": 7, "val_share": 0.3, "group": "-"}  # older runs have no class_offset
    (tmp_path / "config.json").write_text(json.dumps(settings))
    done = run(tmp_path / "m.pth", "--precision", "fp16", "--data", tmp_path, "--ignore-index", text)
    assert done.stderr.startswith(f"note: {tmp_path / 'config.json'}: --masks 'labels'")
    assert asked[0][3].layout == Layout(masks="labels", val_share=0.3, group="-")
    assert asked[0][3].ignore_index == value
    (tmp_path / "config.json").write_text(json.dumps(settings | {"class_offset": 2}))
    run(tmp_path / "m.pth", "--precision", "fp16", "--data", tmp_path)
    assert asked[1][3].layout == Layout(masks="labels", class_offset=2, val_share=0.3, group="-")
    run(tmp_path / "m.pth", "--precision", "fp16", "--data", tmp_path, "--class-offset", "1")
    assert asked[2][3].layout.class_offset == 1


def test_masks_that_are_no_labels_yet_are_read_by_flags(asked, tmp_path):
    """Weights of other projects have no settings beside them."""
    given = ("--precision", "fp16", "--data", tmp_path)
    run(tmp_path / "m.pth", *given, "--mask-threshold", "128")
    run(tmp_path / "m.pth", *given, "--colours", "car=#ff0000,background=#0000ff")
    assert [one[3].layout for one in asked] == [
        Layout(mask_threshold=128),
        Layout(colours=("car=#ff0000", "background=#0000ff")),
    ]


def test_bad_pairs_are_left_out_as_in_the_run(asked, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**asdict(Layout()), "ignore_index": None, "skip_bad": True}))
    done = run(tmp_path / "m.pth", "--precision", "fp16", "--data", tmp_path)
    assert done.stderr.startswith(f"note: {tmp_path / 'config.json'}: --skip-bad, as in training; ")
    assert asked[0][3].skip_bad is True


def test_levels_of_a_checkpoint_without_a_card_are_given(asked, tmp_path):
    run(tmp_path / "m.pth", "--levels", "0,4095")
    assert asked[0][3].changes == CardChanges(levels=(0, 4095))
    done = run(tmp_path / "m.pth", "--levels", "4095,0")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: --levels: found (4095, 0), expected the value of black first, and a larger one of white\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.pth", "--max-pixels", "9"], "--max-pixels: goes with --data; leave it out"),
        (["m.pth", "--device", "cpu"], "--device: goes with --check; leave it out"),
        (["m.pth", "--checkpoint", "n.pth"], "--checkpoint: goes with --check; leave it out"),
        (["m.pth", "--triton-name", "car"], "--triton-name: goes with --triton; leave it out"),
        (["m.pth", "--masks", "m"], "--masks: goes with --data; leave it out"),
        (["m.pth", "--ignore-index", "0"], "--ignore-index: goes with --data; leave it out"),
        (["m.pth", "--mask-threshold", "9"], "--mask-threshold: goes with --data; leave it out"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_one_line(arguments, message):
    done = run(*arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")


WITHOUT = """
import sys
heavy = {"torch", "onnx", "onnxruntime", "numpy", "cv2", "PIL", "rich", "safetensors", "albumentations", "matplotlib"}
for name in heavy:
    sys.modules[name] = None
from export.cli import main
main(sys.argv[1:], standalone_mode=True)
"""


def run_without_heavy_modules(*arguments):
    """Run the command where no package but click can be imported."""
    return subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
    done = run_without_heavy_modules("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Write CHECKPOINT" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.pth", "--precision", "int8"], "--precision int8: needs real images to calibrate on; give --data FOLDER"),
        (["m.pth", "--opset", "17"], "--opset 17: expected 18 to 23"),
        (["m.pth", "--tune", "--triton", "models"], "--tune: chooses layers for --target cpu; "),
        (["m.pth", "--device", "cpu"], "--device: goes with --check; leave it out"),
        (["m.pth", "--threshold", "2"], "--threshold: found 2.0, expected a number from 1e-06 to 0.999999"),
        (["--check", "m.onnx", "--force"], "--force: has no meaning with --check; leave it out"),
        (["gone.pth"], "gone.pth: no such file; expected a checkpoint"),
    ],
    ids=str,
)
def test_contradictions_are_refused_before_pytorch_is_imported(arguments, message):
    done = run_without_heavy_modules(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")


def test_card_and_repository_are_written_from_one_load_of_the_checkpoint(trained, tmp_path, monkeypatch):
    loads = []

    def load(path, **options):
        loads.append(path)
        return load_checkpoint(path, **options)

    for module in ("unet_core.checkpoint", "unet_core.networks.checkpoint"):
        monkeypatch.setattr(f"{module}.load_checkpoint", load)
    monkeypatch.setattr(exporter, "build_graph", lambda *_: trained.graph)
    done = run(trained.checkpoint, "-o", tmp_path / "m.onnx", "--card", "--triton", tmp_path / "models")
    assert (done.exit_code, len(loads)) == (0, 1)


@pytest.mark.parametrize("arguments", [[], ["m.pth", "--check", "m.onnx"]])
def test_either_a_checkpoint_or_a_file_to_check(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.endswith("Give either a CHECKPOINT to export, or --check FILE.\n")


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


def test_pictures_of_too_many_pixels_are_refused_with_the_option_that_takes_them(trained, tmp_path):
    write_pair(tmp_path, "val", "v")
    done = run(trained.checkpoint, "--data", tmp_path, "--max-pixels", 1_535, "-o", tmp_path / "o.onnx")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: 1 of 1 pairs cannot be used, fix or remove them: has 48 x 32 pixels, expected at most 1535 in all, "
        "make it smaller, or allow more with --max-pixels 1536: "
    )
    assert not (tmp_path / "o.onnx").exists()


def test_table_by_hand():
    figures = Parity(max_abs_error=1.2e-5, flipped=0.0625, iou=0.5, flip_distance=0.0)
    lines = parity_table((ProofRow(shape=(3, 20, 30), images="data", parity=figures),)).splitlines()
    assert lines[1].split() == ["3", "of", "30x20", "data", "1.2e-05", "6.2500%", "0.500000", "0.0e+00"]
    assert len(lines[0]) == len(lines[1])


def test_a_model_card_and_a_triton_repository_are_made_of_the_file(trained, tmp_path):
    file = tmp_path / "model.onnx"
    done = run(trained.checkpoint, "-o", file, "--card", "--triton", tmp_path / "models")
    assert done.exit_code == 0, done.output
    (repository,) = (tmp_path / "models").iterdir()
    assert done.stdout.splitlines()[-2:] == [f"model card: {tmp_path / 'model.md'}", f"Triton: {repository}"]
    assert (repository / "1" / "model.onnx").read_bytes() == file.read_bytes()
    assert (tmp_path / "model.md").read_text().startswith("---\n")


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained network's file in a folder of its own, and the repository to put it into."""
    (tmp_path / "run").mkdir()
    shutil.copy(trained.checkpoint, tmp_path / "run" / "model.pth")
    return tmp_path / "run" / "model.pth", tmp_path / "models"


def put_folder_at_the_card(run_folder, repository):
    (run_folder / "model.md").mkdir()


def put_file_at_the_repository(run_folder, repository):
    repository.write_text("mine")


def put_foreign_model(run_folder, repository):
    (repository / "run").mkdir(parents=True)
    (repository / "run" / "mine").write_text("mine")


@pytest.mark.parametrize(
    ("put", "options", "message"),
    [
        (put_folder_at_the_card, [], "model.md: is a folder, expected a file name"),
        (put_file_at_the_repository, [], "models: cannot create this folder"),
        (put_foreign_model, [], "models/run: holds mine, which unet-export does not write"),
        (lambda *_: None, ["--triton-name", "a/b"], "name of the model on Triton: found 'a/b'"),
    ],
)
def test_what_cannot_follow_the_export_is_refused_before_it(copied, put, options, message):
    checkpoint, repository = copied
    put(checkpoint.parent, repository)
    before = sorted(checkpoint.parent.parent.rglob("*"))
    done = run(checkpoint, "--card", "--triton", repository, *options)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert sorted(checkpoint.parent.parent.rglob("*")) == before


def test_an_export_that_fails_leaves_no_empty_repository(copied):
    checkpoint, repository = copied
    done = run(checkpoint, "--triton", repository, "--size", "8x8")
    assert done.exit_code == 2 and "--size" in done.stderr
    assert not repository.exists()


def test_a_name_that_triton_does_not_take_is_changed_and_said(trained, tmp_path):
    loaded = load_checkpoint(trained.checkpoint)
    save_checkpoint(tmp_path / "model.pth", loaded.state_dict, replace(loaded.card, name="my run (2)"))
    done = run(tmp_path / "model.pth", "--triton", tmp_path / "models")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"Triton: {tmp_path / 'models' / 'my_run_2'}\n")
    assert done.stderr == (
        "note: Triton refuses the name 'my run (2)', so the model is my_run_2 there; --triton-name gives another one\n"
    )
    named = run(tmp_path / "model.pth", "--triton", tmp_path / "models", "--triton-name", "car")
    assert (named.exit_code, named.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["car", "my_run_2"]


@pytest.mark.parametrize(
    ("precision", "gate", "verdict"),
    [
        (
            "fp16",
            {"kept": ("ups.0",)},
            "fp16, answers 0.0020% of the pixels of 8 real images otherwise than fp32, with ups.0 in fp32",
        ),
        (
            "fp16",
            {"passed": False, "flipped": 1.04e-4},
            "answers 0.0104% of the pixels of 8 real images otherwise than fp32, WHICH IS TOO MUCH: it was forced; "
            "allowed are 0.01% of the pixels",
        ),
        (
            "fp16",
            {"passed": False, "flipped": 0.0, "kept": tuple(map(str, range(13)))},
            "fp16, holds no layer in fp16: all had to stay in fp32; it was forced",
        ),
        (
            "fp16",
            {"passed": False, "flipped": 0.0, "kept": ("ups.0",)},
            "fp16, answers 0.0000% of the pixels of 8 real images otherwise than fp32; it was forced, since the images "
            "cannot show what is lost",
        ),
        (
            "int8",
            {"passed": False, "flipped": 0.0, "image_dice": 0.05, "image_dice_fp32": 0.05},
            "an image Dice of 0.0500 instead of 0.0500; it was forced, since the images cannot show what is lost",
        ),
        (
            "int8",
            {"passed": False, "flipped": 0.001, "image_dice": 0.3, "image_dice_fp32": 0.4},
            "an image Dice of 0.3000 instead of 0.4000 (10.0000 points less); it was forced, since the images cannot "
            "show what is lost",
        ),
        (
            "int8",
            {"passed": False, "flipped": 0.001, "image_dice": 0.9, "image_dice_fp32": 0.95},
            "an image Dice of 0.9000 instead of 0.9500 (5.0000 points less), WHICH IS TOO MUCH: it was forced; allowed "
            "are 0.2 points of image Dice",
        ),
    ],
)
def test_the_last_line_says_what_was_lost(loaded, tmp_path, monkeypatch, precision, gate, verdict):
    card = write_onnx(tmp_path / "model.onnx", precision=precision, gate=gate_of(**gate))
    report = exporter.ExportReport(
        path=tmp_path / "model.onnx",
        card=card,
        size=1,
        image_dice=None,
        seconds=1,
        card_is_assumed=False,
        family="unet-deploy",
        notes=(),
    )
    monkeypatch.setattr(exporter, "export_loaded", lambda *_: report)
    assert run("m.pth").stdout.splitlines()[-1].endswith(f"{verdict} (1 s)")


def test_a_raw_export_has_neither_card_nor_repository(tmp_path):
    done = run("m.pth", "--raw", "--card")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--raw: has neither card nor golden sample for --card, --triton or --web; leave it out" in done.stderr
