"""The images and masks that are evaluated: a split, as in training, whose settings lie beside the model."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from evaluating import run
from folders import write_pair
from PIL import Image

from runtime.card import Training
from unet_core.config import TrainConfig
from unet_core.data.labels import load_labels
from unet_core.data.pairs import Layout, find_splits, fingerprint
from unet_core.evaluate import evaluate
from unet_core.evaluation import models as models_module


@pytest.fixture
def one_folder(tmp_path):
    """Twelve images of six cars, and none to validate on."""
    folder = tmp_path / "cars"
    for index in range(12):
        write_pair(folder, "train", f"{index // 2}-{index % 2}", seed=index)
    return folder


LAYOUT = Layout(val_share=0.3, group="-")
AS_TRAINED = ("--val-share", 0.3, "--group", "-")


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_a_split_off_part_is_found_again_and_another_one_is_noted(models, one_folder, monkeypatch, suffix):
    train, val = find_splits(one_folder, LAYOUT)
    training = Training(epochs=1, data=fingerprint(train, val), metrics={})
    model = {path.suffix: path for path in models(lambda card: replace(card, training=training))[:2]}[suffix]
    loads = []
    for name in ("open_checkpoint", "Predictor"):
        load = getattr(models_module, name)
        monkeypatch.setattr(
            models_module, name, lambda *given, load=load, **named: loads.append(load) or load(*given, **named)
        )
    done = run(model, one_folder, *AS_TRAINED)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{model} on 4 val images of {one_folder}\n")
    assert f"  pixel Dice  {evaluate(model, val, device='cpu').pixel_dice:.4f}\n" in done.stdout
    assert len(loads) == 2  # one by the command, one here
    assert run(model, one_folder).stderr == (
        "note: the model was trained on other data, or on another split of it: it may have seen these images\n"
    )
    done = run(model, one_folder, *AS_TRAINED, "--split", "train")
    assert (done.stderr, done.stdout.splitlines()[0]) == ("", f"{model} on 8 train images of {one_folder}")
    assert run(model, one_folder, "--split", "train").stderr == ""


def test_nothing_is_doubted_without_a_training_or_with_a_folder_to_validate_on(model, models, views, one_folder):
    trained, _, _, _ = models(lambda card: replace(card, training=Training(epochs=1, data="other", metrics={})))
    for path, folder in ((model, one_folder), (trained, views)):
        done = run(path, folder)
        assert (done.exit_code, done.stderr) == (0, "")


@pytest.fixture
def trained(model, one_folder, tmp_path):
    """A model in the folder of its run, which was trained on other masks than the default ones."""
    (one_folder / "train_masks").rename(one_folder / "train_fine")
    settings = {"masks": "fine", "ignore_index": 9, "val_share": 0.3, "group": "-"}
    config = TrainConfig(data=str(one_folder), out=str(tmp_path), widths=(4, 8), **settings)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(asdict(config)))
    return Path(shutil.copy(model, tmp_path / "run"))


def test_a_runs_settings_are_used_and_noted(trained, one_folder):
    for mask in (one_folder / "train_fine").iterdir():
        Image.fromarray(np.where(load_labels(mask), 255, 9).astype(np.uint8)).save(mask, optimize=False)
    done = run(trained, one_folder, "--split", "train")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{trained} on 8 train images of {one_folder}\n")
    assert done.stderr == (
        f"note: {trained.with_name('config.json')}: --masks 'fine', --ignore-index 9, --val-share 0.3, --group '-', as "
        "in training; give other values with these flags\n"
    )


def test_the_value_of_the_first_class_is_that_of_the_run(several, views, tmp_path):
    """Masks of 1 to 3 measure the same as those of 0 to 2, by the settings beside the model or by the flag."""
    model, _, _ = several
    expected = run(model, views).stdout
    for mask in (views / "val_masks").iterdir():
        Image.fromarray(np.asarray(Image.open(mask)) + np.uint8(1)).save(mask)
    assert "expected class indices 0 to 2 as the model has 3 classes" in run(model, views).stderr
    assert run(model, views, "--class-offset", 1).stdout == expected
    (tmp_path / "config.json").write_text(json.dumps(asdict(Layout(class_offset=1)) | {"ignore_index": None}))
    done = run(model, views)
    assert (done.stdout, done.exit_code) == (expected, 0)
    file = tmp_path / "config.json"
    assert f"note: {file}: --class-offset 1, as in training; give other values with these flags" in done.stderr


def test_flags_win_over_a_runs_settings(trained, one_folder):
    given = ("--masks", "fine", "--ignore-index", 7, "--val-share", 0.1, "--group", "_")
    done = run(trained, one_folder, *given)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{trained} on 1 val image of {one_folder}\n")


def test_a_runs_ignored_value_can_be_counted_again(trained, one_folder):
    for mask in (one_folder / "train_fine").iterdir():
        Image.fromarray(np.where(load_labels(mask), 9, 0).astype(np.uint8)).save(mask, optimize=False)
    assert run(trained, one_folder, "--split", "train").exit_code == 0
    done = run(trained, one_folder, "--split", "train", "--ignore-index", "none")
    assert "has invalid labels (9)" in done.stderr
    note, _ = done.stderr.splitlines()
    assert note.startswith("note: ") and "--ignore-index" not in note


def test_of_a_split_that_is_there_only_the_labels_are_noted(trained, views):
    (views / "val_masks").rename(views / "val_fine")
    done = run(trained, views)
    assert done.exit_code == 0, done.stderr
    assert "config.json: --masks 'fine', --ignore-index 9, as in training; " in done.stderr


def test_settings_that_are_the_defaults_are_not_noted(trained, views):
    config = TrainConfig(data="d", out="o", val_share=0.5, lr=0.1)
    trained.with_name("config.json").write_text(json.dumps(asdict(config)))
    assert run(trained, views).stderr == ""


@pytest.mark.parametrize("content", ['{"masks": "fine", "model_type": "bert"}', '["masks"]', "null"])
def test_another_programs_config_is_left_alone(trained, views, content):
    trained.with_name("config.json").write_text(content)
    done = run(trained, views)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:40], "Unterminated string"),
        (lambda text: text.replace("0.3", "3.0"), "--val-share 3.0: expected 0.001 to 0.9"),
        (lambda text: text.replace('"fine"', "1"), "--masks 1: expected text"),
        (lambda text: "[" * 10**5, "maximum recursion depth exceeded"),
        (lambda text: text.encode("utf-16")[3:], "'utf-"),
    ],
)
def test_a_damaged_config_is_noted_and_done_without(trained, views, change, why):
    file = trained.with_name("config.json")
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    done = run(trained, views)
    assert done.exit_code == 0
    assert done.stderr.startswith(f"note: {file}: cannot be used ({why}")
    assert done.stderr.endswith("); settings that are not given take their defaults\n") and done.stderr.count("\n") == 1


def test_pairs_that_cannot_be_used_are_left_out_as_in_training(trained, views):
    """By the settings beside the model, or by the flag; the figures are those of the others."""
    (views / "val_masks").rename(views / "val_fine")
    trained.with_name("config.json").unlink()
    given = ("--masks", "fine")
    bad = min((views / "val_images").iterdir())
    bad.write_bytes(bad.read_bytes()[:300])
    assert "1 of 3 pairs cannot be used" in run(trained, views, *given).stderr
    done = run(trained, views, *given, "--skip-bad")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("note: --skip-bad: 1 of 3 pairs left out: is ")
    assert done.stdout.startswith(f"{trained} on 2 val images of {views}\n")
    config = TrainConfig(data="d", out="o", skip_bad=True)
    trained.with_name("config.json").write_text(json.dumps(asdict(config)))
    again = run(trained, views, *given)
    assert again.stdout == done.stdout
    assert again.stderr.startswith(
        f"note: {trained.with_name('config.json')}: --skip-bad, as in training; give other values with these flags\n"
    )
    assert "1 of 3 pairs cannot be used" in run(trained, views, *given, "--no-skip-bad").stderr
    bad.unlink()
    (views / "val_fine" / f"{bad.stem}_mask.gif").unlink()
    assert run(trained, views, *given, "--no-skip-bad").stdout == done.stdout
