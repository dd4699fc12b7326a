import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from folders import write_pair
from PIL import Image

from runtime.errors import CheckpointError, ConfigError, DataError, UnetError
from unet_core import train as training
from unet_core.checkpoint import load_checkpoint
from unet_core.data import find_pairs
from unet_core.evaluate import evaluate
from unet_core.train import TrainConfig, main, train


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        data=str(data), out=str(tmp_path / "run"), widths=(4, 8), height=32, width=48, batch_size=4, epochs=2, lr=1e-3
    )


def test_a_run_leaves_everything_it_promises(config, tmp_path, data, capsys):
    best = train(config)
    run = tmp_path / "run"
    assert best == run / "model.pth"
    assert {path.name for path in run.iterdir()} == {
        "my_checkpoint.pth.tar",
        "model.pth",
        "metrics.csv",
        "curves.png",
        "config.json",
        "saved_images",
    }
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_loss", "accuracy", "image_dice", "pixel_dice", "iou", "seconds"]
    assert TrainConfig(**json.loads((run / "config.json").read_text()) | {"widths": (4, 8)}) == config
    assert sorted(path.name for path in (run / "saved_images").iterdir()) == ["val0.png", "val1.png", "val2.png"]
    with Image.open(run / "saved_images" / "val0.png") as panel:
        assert panel.size == (3 * 48 + 4 * 4, 32 + 2 * 4)
    with Image.open(run / "curves.png") as curves:
        assert curves.size[0] > 600
    said = capsys.readouterr().out
    assert "6 images, 3 to validate, 48x32" in said
    assert said.count("pixel Dice") == 2


def test_the_card_tells_the_training(config):
    card = load_checkpoint(train(config)).card
    assert card.name == "run"
    assert card.architecture.widths == (4, 8)
    assert (card.input.size, card.input.stride) == ((32, 48), 4)
    assert card.output.classes == ("car",)
    assert card.training.data.startswith("6 training and 3 validation pairs, sha256 ")
    assert set(card.training.metrics) == {"accuracy", "image_dice", "pixel_dice", "iou"}


def test_evaluation_of_the_best_checkpoint_gives_the_runs_own_numbers(config, data):
    best = train(config)
    card = load_checkpoint(best).card
    assert evaluate(best, find_pairs(data, "val"), device="cpu").summary() == pytest.approx(card.training.metrics)


def test_best_is_the_epoch_with_the_highest_pixel_dice(config, monkeypatch):
    scores = iter([0.5, 0.7, 0.6])

    class Fixed(training.BinaryMetrics):
        pixel_dice = property(lambda self: self.score)

        def summary(self):
            return {"accuracy": 1.0, "image_dice": 1.0, "pixel_dice": self.score, "iou": 1.0}

    def measure(predictions, card, on_image):
        metrics = Fixed()
        metrics.score = next(scores)
        on_image(find_pairs(config.data, "val")[0], None, None)
        return metrics

    monkeypatch.setattr(training, "measure", measure)
    drawn = []
    monkeypatch.setattr(training, "save_panel", lambda path, pair, predicted, truth: drawn.append(path.name))
    best = load_checkpoint(train(replace(config, epochs=3)))
    assert drawn == ["val0.png"] * 2  # after epochs 1 and 2, so that the pictures are those of model.pth
    assert best.card.training.epochs == 2
    assert best.card.training.metrics["pixel_dice"] == 0.7
    assert load_checkpoint(Path(config.out) / "my_checkpoint.pth.tar").card.training.epochs == 3


def rows_of(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def weights_of(folder):
    return load_checkpoint(folder / "my_checkpoint.pth.tar").state_dict


def test_the_same_run_twice_gives_the_same_weights_whatever_the_workers(config, tmp_path):
    train(config)
    train(replace(config, out=str(tmp_path / "again"), workers=2))
    train(replace(config, out=str(tmp_path / "other"), seed=1))
    first, again, other = (weights_of(tmp_path / name) for name in ("run", "again", "other"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["final_conv.weight"], other["final_conv.weight"])


def test_one_epoch_and_one_resumed_equal_two_bit_for_bit(config, tmp_path):
    train(config)
    halves = replace(config, out=str(tmp_path / "halves"), epochs=1)
    train(halves)
    train(replace(halves, epochs=2), resume=True)
    whole, resumed = weights_of(tmp_path / "run"), weights_of(tmp_path / "halves")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    rows = rows_of(tmp_path / "halves")
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_a_folder_with_a_run_is_not_overwritten(config, tmp_path):
    train(replace(config, epochs=1))
    before = (tmp_path / "run" / "model.pth").read_bytes()
    with pytest.raises(DataError, match="this folder holds a run already; continue it with --resume"):
        train(config)
    assert (tmp_path / "run" / "model.pth").read_bytes() == before


def test_a_finished_run_has_nothing_to_resume(config):
    train(config)
    with pytest.raises(ConfigError, match="2 epochs are trained already; ask for more with --epochs"):
        train(config, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(config, monkeypatch):
    monkeypatch.setitem(training.LOSSES, "bce", lambda logits, target: logits.sum() * float("nan"))
    with pytest.raises(UnetError, match=r"epoch 1/2: the loss became nan; lower --lr"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "--lr 0.0: expected a learning rate above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"batch_size": 0}, "--batch-size 0: expected 1 to 1048576"),
        ({"epochs": 0}, "--epochs 0: expected 1 to 1000000"),
        ({"workers": -1}, "--workers -1: expected 0 to 1024"),
        ({"seed": 10**25}, "--seed 10000000000000000000000000: expected 0 to 9223372036854775807"),
        ({"loss": "l2"}, "--loss l2: expected one of bce, bce+dice"),
        ({"height": 30}, "--height 30: expected a multiple of 4 for 2 widths, such as 32"),
        ({"width": 4}, "--width 4: expected a multiple of 4 for 2 widths, such as 8"),
    ],
)
def test_settings_out_of_bounds(config, change, message):
    with pytest.raises(ConfigError) as caught:
        replace(config, **change)
    assert str(caught.value).startswith(message)


def run_cli(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


FLAGS = ("--widths", "4,8", "--height", 32, "--width", 48, "--workers", 0, "--epochs", 1, "--device", "cpu")


def test_command_line_trains_and_resumes_with_the_runs_own_settings(data, tmp_path):
    run = tmp_path / "r"
    first = run_cli(data, "--out", run, *FLAGS, "--loss", "bce+dice", "--class-name", "thing")
    assert first.exit_code == 0, first.output
    assert f"next: unet-export {run / 'model.pth'}" in first.output
    second = run_cli(data, "--out", run, "--resume", "--epochs", 2)
    assert second.exit_code == 0, second.output
    stored = json.loads((run / "config.json").read_text())
    assert (stored["loss"], stored["widths"], stored["class_name"], stored["epochs"]) == (
        "bce+dice",
        [4, 8],
        "thing",
        2,
    )
    assert load_checkpoint(run / "my_checkpoint.pth.tar").card.output.classes == ("thing",)


def test_resuming_with_another_network_is_refused(data, tmp_path):
    run_cli(data, "--out", tmp_path / "r", *FLAGS)
    result = run_cli(data, "--out", tmp_path / "r", "--resume", "--widths", "8,16", "--epochs", 2)
    assert result.exit_code == 2
    assert f"error: --widths (8, 16): the run in {tmp_path / 'r'} has (4, 8); leave it out" in result.stderr


@pytest.mark.parametrize("spoil", ["no data", "no run", "file in the way", "odd mask", "bad widths"])
def test_bad_input_is_one_line_and_exit_code_2(data, tmp_path, spoil):
    run, flags = tmp_path / "r", list(FLAGS)
    if spoil == "no data":
        data, message = tmp_path / "nowhere", "nowhere/train_images: no such folder"
    elif spoil == "no run":
        flags, message = ["--resume"], "no epoch of this run is finished; start it without --resume"
    elif spoil == "file in the way":
        run.write_text("")
        message = "cannot create this folder"
    elif spoil == "odd mask":
        Image.effect_noise((48, 32), 90).save(data / "val_masks" / "val1_mask.gif")
        message = "val1_mask.gif: has the mask values"
    else:
        flags[1], message = "4,0", "card field architecture.widths: found 0, expected an integer from 1 to"
    result = run_cli(data, "--out", run, *flags)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (run / "model.pth").exists()


def test_an_absent_gpu_is_refused_not_replaced(config, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no NVIDIA driver")))
    with pytest.raises(UnetError, match=r"device 'cuda:7': PyTorch cannot use it \(no NVIDIA driver\)"):
        train(replace(config, device="cuda:7"))


def test_resume_of_a_model_without_a_run_is_refused(config, tmp_path):
    train(replace(config, epochs=1))
    (tmp_path / "run" / "model.pth").replace(tmp_path / "run" / "my_checkpoint.pth.tar")
    with pytest.raises(CheckpointError, match="holds no run to go on with"):
        train(config, resume=True)


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"loss": "bce+dice"}, {"height": 64}, {"widths": (4, 16)}, {"class_name": "van"}], ids=str
)
def test_what_makes_a_run_cannot_change_on_resume(config, change):
    train(replace(config, epochs=1))
    flag = f"--{next(iter(change)).replace('_', '-')} "
    with pytest.raises(ConfigError, match=f"^{flag}.*the run in .* has .*; leave it out"):
        train(replace(config, **change), resume=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_resuming_with_other_data_is_refused(config, data, split):
    train(replace(config, epochs=1))
    write_pair(data, split, "new")
    with pytest.raises(DataError, match="is not the data of the run"):
        train(config, resume=True)


def test_a_stop_between_the_two_files_loses_no_best_weights(config, monkeypatch, tmp_path):
    """Whatever `my_checkpoint.pth.tar` says is the best must be there: stop after the first file of an epoch."""
    real, saved = training.save_checkpoint, []

    def stop_at_second(path, *rest, **extra):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        real(path, *rest, **extra)

    monkeypatch.setattr(training, "save_checkpoint", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(training, "save_checkpoint", real)
    assert [path.name for path in saved] == ["model.pth"]
    assert load_checkpoint(train(config)).card.training.epochs in (1, 2)


def test_a_new_folder_is_taken_away_when_the_data_are_refused(config, data, tmp_path):
    (data / "val_masks" / "val0_mask.gif").unlink()
    with pytest.raises(DataError):
        train(config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        train(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_data_without_any_foreground_are_refused(config, data):
    for path in (data / "train_masks").iterdir():
        Image.new("L", (48, 32)).save(path)
    with pytest.raises(DataError, match="train_masks: no mask has any foreground, so there is nothing to learn"):
        train(config)


@pytest.mark.parametrize(("dice", "notes"), [(0.0, 1), (0.5, 0)])
def test_weights_that_find_nothing_are_announced(data, tmp_path, monkeypatch, dice, notes):
    monkeypatch.setattr(training.BinaryMetrics, "pixel_dice", property(lambda _: dice))
    result = run_cli(data, "--out", tmp_path / "r", *FLAGS)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("note: even the best weights find no foreground") == notes
