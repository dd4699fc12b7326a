"""Pairs that cannot be trained on: refused with a list of all of them, or left out with `--skip-bad`."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from folders import write_pair
from PIL import Image

from runtime.errors import DataError
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.records import SampleDecoder
from unet_core.settings_file import from_stored
from unet_core.train import train

LAST = "my_checkpoint.pth.tar"


@pytest.fixture
def bad(config, data):
    """The settings of a run on nine pairs, of which four cannot be used, each for another reason."""
    image = data / "train_images" / "car1.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (data / "train_masks" / "car3_mask.gif").unlink()
    Image.new("L", (40, 32)).save(data / "train_masks" / "car4_mask.gif")
    Image.new("L", (48, 32), 7).save(data / "val_masks" / "val1_mask.gif")
    return replace(config, skip_bad=True)


def weights_of(out):
    return {name: value.numpy().tobytes() for name, value in load_checkpoint(Path(out) / LAST).state_dict.items()}


def listed(out):
    return list(csv.DictReader((Path(out) / "files.csv").read_text().splitlines()))


def test_the_run_is_that_of_the_data_without_them(bad, data, capsys, tmp_path):
    train(bad)
    said = capsys.readouterr()
    assert ": 3 training and 2 validation images, " in said.out
    (note,) = (line for line in said.err.splitlines() if "--skip-bad" in line)
    start = f"note: --skip-bad: 4 of 9 pairs left out, {bad.out}/files.csv lists them: "
    assert note.startswith(start)
    reasons = note.removeprefix(start).split("; ")
    assert [reason.rpartition(": ")[2] for reason in reasons] == [
        "train_images/car3.jpg",
        "train_images/car1.jpg",
        "train_masks/car4_mask.gif",
        "val_masks/val1_mask.gif",
    ]
    without = shutil.copytree(data, tmp_path / "without")
    for split, name in (("train", "car1"), ("train", "car3"), ("train", "car4"), ("val", "val1")):
        (without / f"{split}_images" / f"{name}.jpg").unlink()
        (without / f"{split}_masks" / f"{name}_mask.gif").unlink(missing_ok=True)
    train(replace(bad, data=str(without), out=str(tmp_path / "other"), skip_bad=False))
    assert weights_of(bad.out) == weights_of(tmp_path / "other")


def test_they_are_listed_as_left_out_with_the_reason(bad, data):
    train(bad)
    rows = listed(bad.out)
    assert [row["split"] for row in rows].count("train") == 2 * 3
    assert [row["split"] for row in rows].count("val") == 2 * 2
    problems = {row["file"]: row["problem"] for row in rows if row["split"] == "left out"}
    assert {row["problem"] for row in rows if row["split"] != "left out"} == {""}
    assert sorted(problems) == [
        *("train_images/car1.jpg", "train_images/car3.jpg", "train_images/car4.jpg", "train_masks/car1_mask.gif"),
        *("train_masks/car4_mask.gif", "val_images/val1.jpg", "val_masks/val1_mask.gif"),
    ]
    assert problems["train_images/car3.jpg"] == (
        f"has no mask, expected NAME_mask.gif or NAME.png in {data / 'train_masks'}"
    )
    assert problems["train_masks/car4_mask.gif"] == "differs in size from its image (40x32, expected 48x32)"


def test_a_resumed_run_leaves_out_the_same_and_equals_an_unbroken_one(bad, tmp_path, monkeypatch):
    unbroken = replace(bad, out=str(tmp_path / "unbroken"))
    train(unbroken)
    train(replace(bad, epochs=1))
    made = []
    make = SampleDecoder.make
    monkeypatch.setattr(SampleDecoder, "make", lambda decoder, pair: (made.append(pair.name), make(decoder, pair))[1])
    train(bad, resume=True)
    assert sorted(made) == ["car1", "car4", "val1"]  # all others are in the cache, in the folder of the whole set
    assert weights_of(bad.out) == weights_of(unbroken.out)
    assert listed(bad.out) == listed(unbroken.out)


def test_a_pair_that_was_mended_is_other_data(bad, data):
    train(replace(bad, epochs=1))
    write_pair(data, "train", "car4", seed=4)
    with pytest.raises(DataError, match=r"is not the data of the run .* \(new: train_images/car4\.jpg, train_masks/c"):
        train(bad, resume=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_without_any_other_pair_they_are_refused(config, data, split):
    for path in (data / f"{split}_masks").iterdir():
        Image.new("L", (40, 32)).save(path)
    count = {"train": 6, "val": 3}[split]
    with pytest.raises(DataError) as caught:
        train(replace(config, skip_bad=True))
    assert str(caught.value).startswith(f"none of {count} pairs can be used, fix them: differs in size from its image ")
    assert not Path(config.out).exists()


def test_settings_that_spoil_most_pairs_are_found_before_all_are_decoded(tmp_path, config, monkeypatch):
    for index in range(70):
        write_pair(tmp_path / "many", "train", f"{index:02}", foreground=7)
    write_pair(tmp_path / "many", "val", "v")
    made = []
    make = SampleDecoder.make
    monkeypatch.setattr(SampleDecoder, "make", lambda decoder, pair: (made.append(pair.name), make(decoder, pair))[1])
    with pytest.raises(DataError, match=r"^none of 64 pairs that were tried can be used \(of 70\)"):
        train(replace(config, data=str(tmp_path / "many"), skip_bad=True))
    assert len(made) == 64


def test_refused_pairs_are_all_in_a_file_if_the_message_leaves_out_some(bad, data):
    config = replace(bad, skip_bad=False)
    (data / "train_masks" / "car2_mask.gif").unlink()
    (data / "train_masks" / "car5_mask.gif").unlink()
    (data / "val_masks" / "val2_mask.gif").unlink()
    with pytest.raises(DataError) as caught:
        train(config)
    file = Path(config.out) / "problems.csv"
    text = str(caught.value)
    assert text.startswith("4 of 9 pairs cannot be used, fix or remove them, or give --skip-bad: has no mask, ")
    assert text.endswith(f"; {file} lists them all")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["file"] for row in rows] == [
        *(f"./train_images/car{index}.jpg" for index in (2, 3, 5)),
        "./val_images/val2.jpg",
    ]
    assert rows[0]["problem"] == f"has no mask, expected NAME_mask.gif or NAME.png in {data / 'train_masks'}"
    for index in (2, 3, 5):
        write_pair(data, "train", f"car{index}", seed=index)
    write_pair(data, "val", "val2", seed=3)
    Image.new("L", (40, 32)).save(data / "train_masks" / "car5_mask.gif")
    with pytest.raises(DataError, match=r"^4 of 9 pairs cannot be used, .* lists them all$"):
        train(config)
    assert {row["file"] for row in csv.DictReader(file.read_text().splitlines())} == {
        *("./train_images/car1.jpg", "./train_masks/car4_mask.gif", "./train_masks/car5_mask.gif"),
        "./val_masks/val1_mask.gif",
    }
    train(replace(config, skip_bad=True))
    assert not file.exists()


def test_three_refused_pairs_fit_into_the_message(bad, data):
    write_pair(data, "train", "car3", seed=3)
    with pytest.raises(DataError) as caught:
        train(replace(bad, skip_bad=False))
    assert str(caught.value).startswith("3 of 9 pairs cannot be used, fix or remove them, or give --skip-bad: ")
    assert "lists them all" not in str(caught.value)
    assert not Path(bad.out).exists()


def test_a_run_of_before_has_the_default():
    stored = {name: value for name, value in vars(TrainConfig(data="d", out="o")).items() if name != "skip_bad"}
    assert from_stored(stored)["skip_bad"] is False
