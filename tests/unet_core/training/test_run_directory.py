"""The files that a run writes beside its checkpoints, and the changes that it finds by them later."""

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unet_core.data.pairs import find_splits
from unet_core.training.run_directory import FILES, RunFolder


@pytest.fixture
def begun(config, data):
    """A run's folder, and the pairs that it began with."""
    folder = RunFolder(Path(config.out), config)
    pairs = find_splits(data)
    folder.begin(*pairs)
    return folder, pairs


def test_files_are_listed_with_their_side_and_size(begun, data):
    folder, _ = begun
    rows = list(csv.DictReader((folder.path / FILES).read_text().splitlines()))
    assert len(rows) == 2 * 9
    first = data / "train_images" / "car0.jpg"
    assert rows[0] == {"split": "train", "file": "train_images/car0.jpg", "bytes": str(first.stat().st_size)}
    assert {row["split"] for row in rows[12:]} == {"val"}
    assert folder.changes(*find_splits(data)) == ""


def test_name_that_a_spreadsheet_takes_for_a_formula_is_a_path_in_the_list(begun, tmp_path):
    folder, (train, val) = begun
    place = tmp_path / "=cmd|calc"
    place.mkdir()
    files = [shutil.copy(path, place) for path in (train[0].image, train[0].mask)]
    strange = [replace(train[0], image=Path(files[0]), mask=Path(files[1])), *train[1:]]
    folder.begin(strange, val)
    rows = list(csv.DictReader((folder.path / FILES).read_text().splitlines()))
    assert [row["file"] for row in rows[:2]] == ["./=cmd|calc/car0.jpg", "./=cmd|calc/car0_mask.gif"]
    assert folder.changes(strange, val) == ""


def test_what_changed_is_named(begun, data):
    folder, _ = begun
    (data / "train_images" / "car1.jpg").unlink()
    (data / "train_masks" / "car1_mask.gif").unlink()
    (data / "train_images" / "car2.jpg").rename(data / "train_images" / "bus.jpg")
    (data / "train_masks" / "car2_mask.gif").rename(data / "train_masks" / "bus_mask.gif")
    with open(data / "val_images" / "val0.jpg", "ab") as file:
        file.write(b"\0")
    assert folder.changes(*find_splits(data)) == (
        "gone: train_images/car1.jpg, train_images/car2.jpg, train_masks/car1_mask.gif, train_masks/car2_mask.gif; "
        "new: train_images/bus.jpg, train_masks/bus_mask.gif; changed: val_images/val0.jpg"
    )


def test_a_pair_that_went_to_the_other_side_is_named(begun):
    folder, (train, val) = begun
    assert folder.changes(train[1:], [train[0], *val]) == (
        "gone: train_images/car0.jpg, train_masks/car0_mask.gif; new: train_images/car0.jpg, train_masks/car0_mask.gif"
    )


def test_many_changes_are_cut_short(begun):
    folder, (_, val) = begun
    assert folder.changes([], val).endswith("train_images/car4.jpg and 7 more")


def test_a_list_that_is_missing_or_damaged_tells_nothing(begun, data):
    folder, pairs = begun
    for content in (
        b"split,file,bytes\ntrain,a.jpg,many\n",
        b"a,b\n1,2\n",
        b"split,file,bytes\ntrain,a.jpg\n",
        b"split,file,bytes\nx",
    ):
        (folder.path / FILES).write_bytes(content)
        assert folder.changes(*pairs) == ""
    (folder.path / FILES).unlink()
    assert folder.changes(*pairs) == ""


@pytest.mark.skipif(os.name != "posix", reason="names that are no text")
def test_names_that_are_no_text_are_kept(begun, data):
    folder, _ = begun
    for kind, suffix in (("images", ".jpg"), ("masks", "_mask.gif")):
        source = data / f"train_{kind}" / f"car0{suffix}"
        source.rename(os.fsdecode(os.fsencode(source.parent) + b"/\xff" + suffix.encode()))
    pairs = find_splits(data)
    folder.begin(*pairs)
    assert folder.changes(*pairs) == ""


def test_what_is_kept_is_only_promised_where_it_is(begun):
    folder, _ = begun
    assert folder.what_is_kept == "nothing was saved yet: start again"
    folder.last.write_bytes(b"")
    assert folder.what_is_kept == "the last checkpoint is kept: use --resume"
