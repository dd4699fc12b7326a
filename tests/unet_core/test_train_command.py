"""The command: where settings come from, what it refuses, what it says."""

import itertools
import json
import logging
import tempfile
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from folders import write_pair
from PIL import Image

from runtime.errors import OutputError
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.records import SampleDecoder
from unet_core.settings_file import from_stored
from unet_core.train import main, train
from unet_core.training import run
from unet_core.training import trainer as running


def run_cli(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


FLAGS = (
    *("--widths", "4,8", "--height", 32, "--width", 48, "--workers", 0, "--epochs", 1, "--device", "cpu"),
    "--no-tensorboard",
)


def test_command_line_trains_and_resumes_with_the_runs_own_settings(data, tmp_path):
    run = tmp_path / "r"
    first = run_cli(data, "-o", run, *FLAGS, "--loss", "bce+dice", "--classes", "thing")
    assert first.exit_code == 0, first.output
    assert f"next: unet-export {run / 'model.pth'}" in first.output
    second = run_cli("--out", run, "--resume", "--epochs", 2)
    assert second.exit_code == 0, second.output
    stored = json.loads((run / "config.json").read_text())
    kept = {name: stored[name] for name in ("loss", "widths", "classes", "epochs", "tensorboard")}
    assert kept == {"loss": "bce+dice", "widths": [4, 8], "classes": ["thing"], "epochs": 2, "tensorboard": False}
    assert load_checkpoint(run / "my_checkpoint.pth.tar").card.output.classes == ("thing",)


def test_images_of_too_many_pixels_are_refused_with_the_option_that_takes_them(data, tmp_path):
    refused = run_cli(data, "--out", tmp_path / "r", *FLAGS, "--max-pixels", 32 * 48 - 1)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: 9 of 9 pairs cannot be used, fix or remove them: has 48 x 32 pixels, ")
    assert "expected at most 1535 in all, make it smaller, or allow more with --max-pixels 1536: " in refused.stderr
    taken = run_cli(data, "--out", tmp_path / "s", *FLAGS, "--max-pixels", 32 * 48)
    assert taken.exit_code == 0, taken.output
    stored = json.loads((tmp_path / "s" / "config.json").read_text())
    assert stored.pop("max_pixels") == 1_536
    assert from_stored(stored)["max_pixels"] == 200_000_000  # of a run before there was this setting


def test_flags_win_over_the_file_and_the_file_over_the_defaults(data, tmp_path):
    file, run = tmp_path / "recipe.toml", tmp_path / "r"
    file.write_text(
        f'data = "{data}"\nwidths = [4, 8]\nheight = 32\nwidth = 48\nepochs = 5\nlr = 1e-3\nworkers = 0\n'
        'tensorboard = false\nloss = "dice"\n'
    )
    result = run_cli("--config", file, "--out", run, "--epochs", 1, "--lr", "2e-3")
    assert result.exit_code == 0, result.output
    stored = json.loads((run / "config.json").read_text())
    assert (stored["epochs"], stored["lr"], stored["loss"], stored["batch_size"]) == (1, 2e-3, "dice", 16)
    assert asdict(TrainConfig(**from_stored(stored))).keys() == stored.keys()
    again = run_cli("--config", file, "--out", run, "--resume", "--epochs", 2)
    assert again.exit_code == 0, again.output


def test_size_is_both_sides_and_wins_over_those_of_a_file(data, tmp_path):
    (tmp_path / "recipe.toml").write_text("height = 64\nwidth = 64\n")
    rest = [*FLAGS[:2], *FLAGS[6:], "--config", tmp_path / "recipe.toml"]
    done = run_cli(data, "--out", tmp_path / "r", "--size", "48x32", *rest)
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "r" / "model.pth").card.input.size == (32, 48)
    done = run_cli(data, "--out", tmp_path / "r", "--size", "48x32", *FLAGS)
    assert (done.exit_code, done.stderr) == (2, "error: --size 48x32: sets --height too; leave one of them out\n")
    lines = [line.split() for line in run_cli("--help").output.splitlines()]
    assert lines.index(["--size", "WxH", "Sets", "--width", "and", "--height", "at", "once."]) > lines.index(["Data:"])


def test_an_unknown_key_is_refused_with_the_nearest_name(data, tmp_path):
    (tmp_path / "recipe.toml").write_text("bach_size = 4\n")
    result = run_cli(data, "--out", tmp_path / "r", "--config", tmp_path / "recipe.toml")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {tmp_path / 'recipe.toml'}: 'bach_size' is not a setting; the nearest is 'batch_size'\n"
    )


def test_resuming_with_another_network_is_refused(data, tmp_path):
    run_cli(data, "--out", tmp_path / "r", *FLAGS)
    result = run_cli(data, "--out", tmp_path / "r", "--resume", "--widths", "8,16", "--epochs", 2)
    assert result.exit_code == 2
    assert f"error: --widths 8,16: the run in {tmp_path / 'r'} has 4,8; leave it out" in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [((), "--out: is missing"), (("--out", "r"), "DATA: is missing")])
def test_what_must_be_given(arguments, message):
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("spoil", ["no data", "no run", "file in the way", "odd mask", "bad widths", "no start"])
def test_bad_input_is_one_line_and_exit_code_2(data, tmp_path, spoil):
    run, flags = tmp_path / "r", list(FLAGS)
    if spoil == "no data":
        data, message = tmp_path / "nowhere", "nowhere: no such folder"
    elif spoil == "no run":
        flags, message = ["--resume"], "no such folder; expected the --out of the run to resume"
    elif spoil == "file in the way":
        run.write_text("")
        message = "cannot create this folder"
    elif spoil == "odd mask":
        Image.effect_noise((48, 32), 90).save(data / "val_masks" / "val1_mask.gif")
        message = "has invalid labels ("
    elif spoil == "no start":
        flags += ["--init-from", tmp_path / "x.pth"]
        message = "x.pth: no such file"
    else:
        flags[1], message = "4,0", "--widths 0: expected numbers from 1 to 65536"
    result = run_cli(data, "--out", run, *flags)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (run / "model.pth").exists()


@pytest.mark.parametrize("missing", [(), ("car",)])
def test_weights_that_find_nothing_are_announced(data, tmp_path, monkeypatch, missing):
    for name in ("always_predicted", "nearly_always_predicted"):
        monkeypatch.setattr(running.Metrics, name, None)
    monkeypatch.setattr(running.Metrics, "never_predicted", missing)
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no pixel of these images is predicted as car, by the best") == len(missing)


def test_a_loss_that_rises_is_told_while_it_does_and_at_the_end(data, tmp_path, monkeypatch):
    """The loss of each batch is the number of its step; a resumed run has other first steps."""
    monkeypatch.setattr(running.Metrics, "never_predicted", ("car",))
    for name in ("always_predicted", "nearly_always_predicted"):
        monkeypatch.setattr(running.Metrics, name, None)
    steps = itertools.count(1)
    monkeypatch.setattr(running, "make_loss", lambda *_: lambda logits, _: logits.sum() * 0.0 + next(steps))
    flags = (*FLAGS, "--batch-size", 1, "--lr", "0.25")
    result = run_cli(data, "--out", tmp_path / "r", *flags, "--epochs", 4)
    assert [line for line in result.stderr.splitlines() if "--lr" in line] == [
        "note: the loss rises from 2 to 15.5 in the first 20 steps; --lr 0.25 is probably too high, start again with "
        "--lr 0.025",
        "note: no pixel of these images is predicted as car, by the best weights too; start again with a lower --lr, "
        "such as 0.025",
    ]
    assert "rises" not in run_cli("--out", tmp_path / "r", "--resume", "--epochs", 8).stderr


def test_a_file_to_start_from_brings_its_network(data, tmp_path):
    first = run_cli(data, "--out", tmp_path / "a", *FLAGS, "--up", "bilinear")
    assert first.exit_code == 0, first.output
    rest, start = FLAGS[2:], ("--init-from", tmp_path / "a" / "model.pth")
    assert FLAGS[0] == "--widths"
    second = run_cli(data, "--out", tmp_path / "b", *rest, *start)
    assert second.exit_code == 0, second.output
    architecture = load_checkpoint(tmp_path / "b" / "model.pth").card.architecture
    assert (architecture.widths, architecture.up) == ((4, 8), "bilinear")
    other = run_cli(data, "--out", tmp_path / "c", *rest, *start, "--up", "transpose")
    assert other.exit_code == 2
    assert "give --widths 4,8 --up bilinear --channels RGB" in other.stderr


def test_an_error_across_settings_names_the_file_that_one_is_from(data, tmp_path):
    (tmp_path / "recipe.toml").write_text("height = 33\n")
    result = run_cli(data, "--out", tmp_path / "r", "--config", tmp_path / "recipe.toml")
    assert result.stderr.startswith(f"error: {tmp_path / 'recipe.toml'}: --height 33: expected a multiple of 16")


def test_masks_without_an_image_and_other_files_are_noted(data, tmp_path):
    (data / "train_images" / "car3.jpg").unlink()
    (data / "train_images" / "car3.dng").touch()
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert result.exit_code == 0
    assert f"note: {data}: 1 mask has no image of the same name: train_masks/car3_mask.gif\n" in result.stderr
    assert f"note: {data}: 1 file left out: .dng (1)\n" in result.stderr


def test_data_without_any_foreground_are_refused(data, tmp_path):
    for path in (data / "train_masks").iterdir():
        Image.new("L", (48, 32)).save(path)
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert result.exit_code == 2
    assert "train_masks: no mask has any foreground, so there is nothing to learn" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "cuda:9"), "device 'cuda:9': PyTorch cannot use it"),
        (("--init-from", "none.pth"), "none.pth: no such file"),
        (("--resume", "--epochs", 1), "1 epoch trained already; ask for more with --epochs"),
        ((), "val_images/val0.jpg"),
        (("--classes", "road,sky,car"), "val_images/val0.jpg"),
    ],
    ids=str,
)
def test_what_is_wrong_without_looking_at_images_is_told_before_any_is_decoded(
    data, tmp_path, monkeypatch, flags, message
):
    if "--resume" in flags:
        run_cli(data, "--out", tmp_path / "r", *FLAGS)
    if "val0" in message:
        (data / "val_masks" / "val0_mask.gif").unlink()
    monkeypatch.setattr(SampleDecoder, "make", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(run, "open_cache", lambda *_: pytest.fail("looked for decoded images"))
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS, *flags)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_links_in_the_folder_of_a_run_are_refused_before_any_image_is_decoded(data, tmp_path, monkeypatch):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "saved_images").symlink_to(tmp_path)
    monkeypatch.setattr(SampleDecoder, "make", lambda *_: pytest.fail("decoded"))
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert result.stderr.startswith(f"error: {tmp_path / 'r' / 'saved_images'}: is a link, expected a folder")


def test_settings_that_spoil_every_pair_are_told_after_a_few_of_them(data, tmp_path, monkeypatch):
    """Masks of 0 and 255 for three classes."""
    for index in range(6, 20):
        write_pair(data, "train", f"car{index}")
    decoded, real = [], SampleDecoder.make
    monkeypatch.setattr(SampleDecoder, "make", lambda self, pair: (decoded.append(pair.name), real(self, pair))[1])
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS, "--classes", "road,sky,car")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: none of 8 pairs that were tried can be used (of 20), fix or remove them: has invalid labels (255), "
        "expected class indices 0 to 2, give --ignore-index 255 if pixels of 255 do not count, or name more --classes: "
        "train_masks/car0_mask.gif, train_masks/car11_mask.gif, train_masks/car13_mask.gif and 5 more"
    )
    assert len(decoded) == 8


def test_the_time_that_a_run_takes_is_told_after_the_first_steps(data, tmp_path, monkeypatch):
    """Each look at the clock takes 10 s: two images in the second step."""
    seconds = itertools.count(step=10.0)
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS, "--batch-size", 2, "--epochs", 20)
    lines = result.stdout.splitlines()
    assert lines.index("an epoch takes about 35 s, so this run ends in about 12 min") == 2
    assert lines[1].startswith("training 20 epochs") and lines[3].startswith("epoch 1/20")


def test_no_temporary_folder_is_one_line(data, tmp_path, monkeypatch):
    """PyTorch's optimizers need one, and matplotlib where its own folder cannot be written."""

    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/data']")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    line = (
        "no temporary folder can be written, and PyTorch needs one (no usable temporary directory found in ['/tmp', "
        "'/data']); free some space, or set TMPDIR to another folder"
    )
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")
    with pytest.raises(OutputError) as caught:
        train(TrainConfig(data=str(data), out=str(tmp_path / "r")))
    assert str(caught.value) == line
    assert not (tmp_path / "r").exists()


def test_matplotlib_does_not_tell_of_a_home_folder_that_cannot_be_written(data, tmp_path, monkeypatch):
    logger = logging.getLogger("matplotlib")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    run_cli(data / "none", "--out", tmp_path / "r", *FLAGS)
    assert logger.level == logging.ERROR
