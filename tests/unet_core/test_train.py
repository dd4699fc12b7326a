"""The command and what it promises of a run's folder; tests/unet_core/test_resume.py has stopping and going on."""

import csv
import json
import multiprocessing
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from folders import write_pair
from PIL import Image

from runtime.errors import CheckpointError, ConfigError, DataError, NotFiniteError, UnetError
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.pairs import Layout, find_pairs
from unet_core.evaluate import evaluate
from unet_core.settings_file import from_stored
from unet_core.train import train
from unet_core.training import run_directory as files
from unet_core.training import trainer as running


def test_a_run_leaves_everything_it_promises(config, tmp_path, drawn_curves, capsys):
    best = train(replace(config, tensorboard=True))
    run = tmp_path / "run"
    assert best == run / "model.pth"
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "my_checkpoint.pth.tar",
        "model.pth",
        "metrics.csv",
        "curves.png",
        "config.json",
        "files.csv",
        "saved_images",
        "tensorboard",
    }
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == [
        *("epoch", "train_loss", "accuracy", "image_dice", "pixel_dice", "iou", "lr", "train_seconds", "seconds")
    ]
    stored = TrainConfig(**from_stored(json.loads((run / "config.json").read_text())))
    assert stored == replace(config, tensorboard=True)
    assert sorted(path.name[:3] for path in (run / "saved_images").iterdir()) == ["01_", "02_", "03_"]
    assert len(list((run / "tensorboard").iterdir())) == 1
    with Image.open(run / "curves.png") as curves:
        assert curves.size[0] > 600
    said = capsys.readouterr().out
    assert "6 training and 3 validation images, 48x32" in said
    assert "9 decoded images are kept in" in said
    assert said.count("pixel Dice") == 3  # two epochs, and the best one again


def test_the_card_tells_the_training(config):
    card = load_checkpoint(train(config)).card
    assert card.name == "run"
    assert card.architecture.widths == (4, 8)
    assert (card.input.size, card.input.stride) == ((32, 48), 4)
    assert card.output.classes == ("car",)
    assert card.training.data.startswith("6 training and 3 validation pairs, sha256 ")
    assert set(card.training.metrics) == {"accuracy", "image_dice", "pixel_dice", "iou"}


@pytest.mark.parametrize(
    "change", [{}, {"ema": 0.5}, {"fit": "letterbox"}, {"fit": "native"}, {"channels": "L"}], ids=str
)
def test_evaluation_of_the_best_checkpoint_gives_the_runs_own_numbers(config, data, change):
    best = train(replace(config, **change))
    card = load_checkpoint(best).card
    assert evaluate(best, find_pairs(data, "val"), device="cpu").summary() == pytest.approx(card.training.metrics)
    assert card.input.fit == change.get("fit", "stretch")


def test_several_classes_with_pixels_that_do_not_count(config, data, capsys):
    for path in data.glob("*_masks/*.gif"):
        with Image.open(path) as mask:
            labels = mask.convert("L").point(lambda value: 2 if value else 0)
        labels.putpixel((0, 0), 9)
        (path.parent.parent / path.parent.name.replace("masks", "classes")).mkdir(exist_ok=True)
        labels.save(path.parent.parent / path.parent.name.replace("masks", "classes") / f"{path.stem[:-5]}.png")
    several = replace(config, masks="classes", classes=("road", "sky", "car"), ignore_index=9, lr=1e-2, epochs=12)
    best = load_checkpoint(train(several))
    assert (best.card.output.activation, best.card.output.classes) == ("softmax", ("road", "sky", "car"))
    assert best.card.training.metrics["pixel_dice car"] > 0.5
    pairs = find_pairs(data, "val", Layout(masks="classes"))
    again = evaluate(Path(config.out) / "model.pth", pairs, device="cpu", ignore_index=9)
    assert again.summary() == pytest.approx(best.card.training.metrics)
    assert again.pixels == 3 * (32 * 48 - 1)
    assert "pixel Dice     IoU\n    road " in capsys.readouterr().out


def test_validation_at_the_trained_size_measures_the_fitted_truth(config, data):
    best = train(replace(config, height=16, width=24, validate_at="trained", epochs=1))
    metrics = load_checkpoint(best).card.training.metrics
    original = evaluate(best, find_pairs(data, "val"), device="cpu").summary()
    assert metrics != pytest.approx(original, abs=1e-9)
    assert metrics == pytest.approx(original, abs=0.15)


def test_without_val_folders_whole_groups_are_kept_back(config, data, capsys):
    for path in sorted(data.glob("val_*/*")):
        path.unlink()
    for folder in ("val_images", "val_masks"):
        (data / folder).rmdir()
    for path in sorted(data.glob("train_*/car*")):
        group = int(path.name[3]) // 2
        path.rename(path.with_name(f"id{group}_{path.name[3:]}"))
    best = train(replace(config, val_share=0.3))
    assert "validation: 2 of 6 images, 1 group split off" in capsys.readouterr().out
    assert load_checkpoint(best).card.training.data.startswith("4 training and 2 validation pairs")


def test_best_is_the_epoch_with_the_highest_pixel_dice(config, monkeypatch):
    scores = iter([0.5, 0.7, 0.6])
    real = running.compute_metrics

    def compute_metrics(*arguments):
        metrics = real(*arguments)
        summary = metrics.summary() | {"pixel_dice": next(scores)}
        monkeypatch.setattr(type(metrics), "summary", lambda self: summary)
        return metrics

    monkeypatch.setattr(running, "compute_metrics", compute_metrics)
    drawn = []
    real_save = files.save_panel
    monkeypatch.setattr(files, "save_panel", lambda path, picture: (drawn.append(path.name), real_save(path, picture)))
    best = load_checkpoint(train(replace(config, epochs=3)))
    assert len(drawn) == 6  # three after each of epochs 1 and 2, so that the pictures are those of model.pth
    assert best.card.training.epochs == 2
    assert best.card.training.metrics["pixel_dice"] == 0.7
    assert load_checkpoint(Path(config.out) / "my_checkpoint.pth.tar").card.training.epochs == 3


def test_panels_are_the_worst_images_first(config, data):
    best = train(config)
    pairs = find_pairs(data, "val")
    dices = {pair.name: evaluate(best, [pair], device="cpu").image_dice for pair in pairs}
    shown = [path.stem[3:] for path in sorted((Path(config.out) / "saved_images").iterdir())]
    assert shown == sorted(dices, key=dices.__getitem__)


def test_patience_ends_a_run_that_gets_no_better(config, monkeypatch):
    monkeypatch.setattr(
        running.Metrics, "summary", lambda self: dict.fromkeys(("accuracy", "image_dice", "iou", "pixel_dice"), 0.5)
    )
    train(replace(config, epochs=20, patience=3))
    assert len(rows_of(Path(config.out))) == 4
    with pytest.raises(ConfigError, match="4 epochs trained already; ask for more with --epochs and --patience"):
        train(replace(config, epochs=20, patience=3), resume=True)


def rows_of(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def weights_of(folder):
    return load_checkpoint(folder / "my_checkpoint.pth.tar").state_dict


def test_the_same_run_twice_gives_the_same_weights_whatever_the_workers(config, tmp_path):
    train(config)
    train(replace(config, out=str(tmp_path / "again"), workers=2))
    train(replace(config, out=str(tmp_path / "uncached"), cache_gb=0.0))
    train(replace(config, out=str(tmp_path / "other"), seed=1))
    first, again, uncached, other = (weights_of(tmp_path / name) for name in ("run", "again", "uncached", "other"))
    for same in (again, uncached):
        assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["final_conv.weight"], other["final_conv.weight"])


def test_a_small_shared_memory_is_told_and_changes_nothing(config, tmp_path, monkeypatch, capsys):
    """As in a container of Docker: a process that finds /dev/shm full would be killed."""

    def full(*_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    train(config)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**4))
    train(replace(config, out=str(tmp_path / "again"), workers=1))
    assert (
        capsys.readouterr().err.count("note: /dev/shm has 0 MB free, and --workers 1 may take 0 MB: images pass") == 1
    )
    first, again = (weights_of(tmp_path / name) for name in ("run", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_accumulated_batches_are_one_step(config, tmp_path):
    """Without BatchNorm's batch statistics (here: frozen by the learning rate being tiny) gradients just add up."""
    one = replace(config, batch_size=6, optimizer="sgd", momentum=0.0, lr=1e-4, epochs=1)
    train(one)
    train(replace(one, out=str(tmp_path / "parts"), batch_size=2, accumulate=3))
    train(replace(one, out=str(tmp_path / "steps"), batch_size=2))
    whole, parts, steps = (weights_of(tmp_path / name)["final_conv.bias"] for name in ("run", "parts", "steps"))
    assert torch.allclose(whole, parts, atol=2e-6)
    assert not torch.allclose(whole, steps, atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"amp": "bf16"},
        {"amp": "fp16", "clip_norm": 1.0},
        {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup_epochs": 1.0},
        {"optimizer": "sgd", "schedule": "plateau", "boundary_weight": 2.0, "loss": "bce+dice"},
        {"optimizer": "rmsprop", "loss": "focal", "channels_last": False},
        {"loss": "dice", "ema": 0.9, "augment": "strong"},
        {"up": "bilinear", "augment": "off"},
    ],
    ids=str,
)
def test_recipes_learn_the_rectangle(config, change):
    """The loss falls, and the Dice is far above the 0.4 of all foreground."""
    lr = 0.3 if change.get("optimizer") == "sgd" else 1e-2
    best = load_checkpoint(train(replace(config, lr=lr, epochs=20, **change)))
    rows = rows_of(Path(config.out))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert best.card.training.metrics["pixel_dice"] > 0.6


def test_fp16_steps_that_overflow_are_counted_and_shown(config, capsys, monkeypatch):
    """A scale that is far too large at first; it halves with every step that is skipped."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    train(replace(config, amp="fp16"))
    rows = rows_of(Path(config.out))
    assert [int(row["skipped_steps"]) for row in rows] == [2, 2]  # each epoch's own
    assert capsys.readouterr().out.count("2 steps skipped") == 2


def test_gradients_that_overflow_at_any_scale_end_the_run(config, monkeypatch):
    """The loss stays finite and so do the weights, since every step is skipped."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**-12))
    real = running.MixedPrecision.backward

    def backward(self, loss):
        real(self, loss)
        self_network.final_conv.bias.grad.fill_(float("nan"))

    self_network = None
    realbuild = running.Trainer.build

    def build(self, start):
        nonlocal self_network
        realbuild(self, start)
        self_network = self.network

    monkeypatch.setattr(running.Trainer, "build", build)
    monkeypatch.setattr(running.MixedPrecision, "backward", backward)
    with pytest.raises(UnetError, match=r"gradients overflow in fp16 .*\(3 steps skipped\).*--amp bf16 .*--amp off"):
        train(replace(config, amp="fp16", epochs=50))


def test_a_folder_with_a_run_is_not_overwritten(config, tmp_path):
    train(replace(config, epochs=1))
    before = (tmp_path / "run" / "model.pth").read_bytes()
    with pytest.raises(DataError, match="this folder holds a run already; continue it with --resume"):
        train(config)
    assert (tmp_path / "run" / "model.pth").read_bytes() == before


def test_a_model_whose_run_is_gone_is_not_overwritten(config, tmp_path):
    train(replace(config, epochs=1))
    (tmp_path / "run" / "my_checkpoint.pth.tar").unlink()
    with pytest.raises(DataError, match=r"model\.pth: this folder holds a model already"):
        train(config)


def test_a_loading_process_that_is_killed_is_one_line(config, monkeypatch):
    real, seen = running.Trainer.step, []

    def step(self, *arguments):
        for child in multiprocessing.active_children() if seen else ():
            child.kill()
            child.join()
        seen.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(running.Trainer, "step", step)
    with pytest.raises(UnetError, match=r"a process that loads images was killed .*start again$"):
        train(replace(config, workers=1, batch_size=1, epochs=20))


def test_a_second_trainer_in_the_same_folder_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(DataError, match="another trainer is running in this folder"),
    ):
        train(config)
    train(config)


def test_a_finished_run_has_nothing_to_resume(config):
    train(config)
    with pytest.raises(ConfigError, match="2 epochs trained already; ask for more with --epochs"):
        train(config, resume=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_images(config, monkeypatch, bad):
    steps = iter([1.0, 1.0, 1.0, bad])
    monkeypatch.setattr(running, "make_loss", lambda *_: lambda logits, labels: logits.square().sum() * next(steps))
    with pytest.raises(NotFiniteError) as caught:
        train(config)
    epoch_two = running.EpochBatches(6, 4, config.seed)
    epoch_two.epoch = 2
    names = [f"car{index}.jpg" for index in epoch_two.order()[4:]]
    assert str(caught.value).startswith(
        f"epoch 2/2, {', '.join(names)}: the loss became {bad}, look at these images; the last checkpoint is kept: use "
        "--resume with a lower --lr"
    )
    kept = load_checkpoint(Path(config.out) / "my_checkpoint.pth.tar")
    assert kept.card.training.epochs == 1
    assert all(value.isfinite().all() for value in kept.state_dict.values())


def test_an_end_before_anything_was_saved_does_not_promise_a_checkpoint(config, monkeypatch):
    monkeypatch.setattr(running, "make_loss", lambda *_: lambda logits, labels: logits.square().sum() * float("nan"))
    with pytest.raises(NotFiniteError, match="nothing was saved yet: start again with a lower --lr"):
        train(config)


def test_weights_that_became_nan_are_never_saved(config, monkeypatch):
    """An infinite gradient of a finite loss shows in the weights only."""
    real, calls = running.MixedPrecision.step, []

    def step(self, optimizer, network, clip_norm):
        calls.append(1)
        if len(calls) == 4:
            next(network.parameters()).grad.fill_(float("inf"))
        return real(self, optimizer, network, clip_norm)

    monkeypatch.setattr(running.MixedPrecision, "step", step)
    with pytest.raises(
        NotFiniteError, match=r"epoch 2: the weights became infinite or NaN; the last checkpoint is kept"
    ):
        train(config)
    kept = load_checkpoint(Path(config.out) / "my_checkpoint.pth.tar")
    assert kept.card.training.epochs == 1


def test_training_starts_from_another_checkpoint(config, tmp_path, capsys):
    best = train(config)
    start = replace(config, out=str(tmp_path / "second"), init_from=str(best), lr=1e-12, epochs=1)
    second = train(start)
    assert torch.equal(
        load_checkpoint(best).state_dict["final_conv.weight"], load_checkpoint(second).state_dict["final_conv.weight"]
    )
    capsys.readouterr()
    train(replace(start, out=str(tmp_path / "third"), classes=("a", "b")))
    assert "note: --init-from" in capsys.readouterr().err


def test_an_absent_gpu_is_refused_not_replaced(config, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no NVIDIA driver")))
    with pytest.raises(UnetError, match=r"device 'cuda:7': PyTorch cannot use it \(no NVIDIA driver\)"):
        train(replace(config, device="cuda:7"))


def test_too_little_memory_says_what_to_change(config, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(running.Trainer, "fit", out_of_memory)
    with pytest.raises(UnetError, match=r"--batch-size 4: .*give --batch-size 2 --accumulate 2"):
        train(config)
    with pytest.raises(UnetError, match=r"--batch-size 1: .*give thinner --widths"):
        train(replace(config, batch_size=1))


def test_a_new_folder_is_taken_away_when_the_data_are_refused(config, data, tmp_path):
    (data / "val_masks" / "val0_mask.gif").unlink()
    with pytest.raises(DataError):
        train(config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        train(config)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"notes.txt", ".lock"}


def test_resume_of_a_model_without_a_run_is_refused(config, tmp_path):
    train(replace(config, epochs=1))
    (tmp_path / "run" / "model.pth").replace(tmp_path / "run" / "my_checkpoint.pth.tar")
    with pytest.raises(CheckpointError, match="does not hold a run to resume"):
        train(config, resume=True)


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"loss": "bce+dice"}, {"height": 64}, {"widths": (4, 16)}, {"classes": ("van",)}], ids=str
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
    with pytest.raises(
        DataError, match=f"is not the data of the run in .* \\(new: {split}_images/new.jpg, {split}_masks/"
    ):
        train(config, resume=True)
