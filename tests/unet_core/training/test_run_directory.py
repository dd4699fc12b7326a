"""The files that a run writes beside its checkpoints, and the changes that it finds by them later."""

import csv
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from runtime.errors import OutputError
from unet_core.data.pairs import find_splits
from unet_core.evaluation.worst_images import Worst
from unet_core.training.distributed import Processes
from unet_core.training.run_directory import FILES, LOCK, RunFolder, locked_folder


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
    facts = {"bytes": str(first.stat().st_size), "problem": ""}
    assert rows[0] == {"split": "train", "file": "train_images/car0.jpg", **facts}
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


@pytest.mark.parametrize(("kind", "found"), [("pipe", "not a regular file"), ("link", "a link")])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind, found):
    folder = tmp_path / "run"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / LOCK)
    else:
        (folder / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError) as caught, locked_folder(folder, Processes()):
        pytest.fail("it is locked")
    assert str(caught.value) == f"{folder / LOCK}: is {found}, expected a regular file or nothing; remove it"
    assert not (tmp_path / "elsewhere").exists()


def refused(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def without_locks(*_, **__):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("acquire", "reason"), [(refused, "permission denied"), (without_locks, "the file system has no locks")]
)
def test_a_lock_that_cannot_be_taken_is_one_line(tmp_path, monkeypatch, acquire, reason):
    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OutputError) as caught, locked_folder(tmp_path / "run", Processes()):
        pytest.fail("it is locked")
    assert str(caught.value) == f"{tmp_path / 'run' / LOCK}: cannot be locked ({reason}); choose another --out"
    assert not (tmp_path / "run").exists()


LEFT = [
    ".my_checkpoint.pth.0123abcd.tar",
    ".model.89abcdef.pth",
    ".curves.01234567.png",
    ".metrics.01234567.csv",
    ".files.01234567.csv",
    ".config.01234567.json",
    "saved_images/.01_car.0123abcd.png",
]
OTHERS = [".model.89abcdef.onnx", ".notes.01234567.txt", "saved_images/.car.0123abcd.png"]


def test_what_killed_runs_left_is_removed_by_the_next_one(begun):
    folder, pairs = begun
    for name in (*LEFT, *OTHERS):
        (folder.path / name).write_bytes(b"half")
    with locked_folder(folder.path, Processes()):
        folder.begin(*pairs)
    left = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob(".*") if path.name != LOCK}
    assert left == set(OTHERS)


@pytest.mark.parametrize("inner", ["saved_images", "tensorboard"])
def test_a_link_in_the_folder_leads_nowhere(config, data, tmp_path, inner):
    """The folder itself may be a link, since the user named it."""
    elsewhere, there = tmp_path / "elsewhere", tmp_path / "there"
    for path in (elsewhere, there):
        path.mkdir()
    (elsewhere / "01_mine.png").write_bytes(b"mine")
    Path(config.out).symlink_to(there)
    (there / inner).symlink_to(elsewhere)
    folder = RunFolder(Path(config.out), replace(config, tensorboard=True))
    with pytest.raises(OutputError) as caught:
        folder.begin(*find_splits(data))
    assert str(caught.value) == (
        f"{folder.path / inner}: is a link, expected a folder or nothing, since links in {folder.path} are not "
        "followed; remove it"
    )
    if inner == "saved_images":
        with pytest.raises(OutputError, match="is a link, expected a folder"):
            folder.draw(Worst(1), None, 1)
    assert [path.name for path in elsewhere.iterdir()] == ["01_mine.png"]


def test_files_that_are_links_are_replaced_and_what_they_lead_to_stays(begun, tmp_path):
    folder, pairs = begun
    (tmp_path / "mine.csv").write_text("mine")
    for name in (FILES, "config.json", "metrics.csv"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(tmp_path / "mine.csv")
    folder.begin(*pairs)
    folder.write_history([{"epoch": 1.0, "train_loss": 0.5}])
    assert not any(path.is_symlink() for path in folder.path.iterdir())
    assert (tmp_path / "mine.csv").read_text() == "mine"
