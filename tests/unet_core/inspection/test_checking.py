"""`unet-data check`: what training would refuse, figures of all other images, and the sheet of samples."""

import csv
import shutil

import numpy as np
import pytest
from folders import write_pair
from layouts import blocks, run, write_image, write_mask
from PIL import Image


@pytest.fixture
def data(tmp_path):
    """Four images to train on and two to validate on; a quarter of each mask is foreground."""
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            write_pair(tmp_path / "data", split, f"{split}{index}", seed=10 * len(split) + index)
    return tmp_path / "data"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_good_data_set(data, tmp_path):
    write_mask(data / "train_masks" / "train0_mask.gif", np.zeros((32, 48), np.uint8))
    done = run("check", data, "-o", tmp_path / "report")
    assert done.exit_code == 0
    levels, share = figures(data)
    assert done.stdout == (
        "images   4 to train on, 2 to validate on\n"
        "sizes    48x32 (6)\n"
        f"values   {levels}; 6 images have colours, 0 are grey\n"
        "\n"
        "class          pixels  images\n"
        f"background   {100 - share:7.2f}%       6\n"
        f"car          {share:7.2f}%       5\n"
        "\n"
        f"written to {tmp_path / 'report'}: problems.csv (0), images.csv, samples.png\n"
    )
    assert done.stderr == "note: train: 1 of 4 masks have no foreground\n"
    assert rows(tmp_path / "report" / "problems.csv") == [["file", "problem"]]
    table = rows(tmp_path / "report" / "images.csv")
    names = ["file", "split", "width", "height", "kind", "darkest", "brightest", "background", "car", "not counted"]
    assert (table[0], len(table)) == (names, 7)
    assert table[1][:5] == ["./train_images/train0.jpg", "train", "48", "32", "colour"]
    assert table[1][-3:] == ["100.0000", "0.0000", "0.0000"]


def figures(data):
    """The text about values, and the share of the foreground in %, counted by Pillow and NumPy alone."""
    values, masks = [], []
    for split in ("train", "val"):
        for path in sorted((data / f"{split}_images").iterdir()):
            with Image.open(path) as picture:
                values.append(np.asarray(picture))
        for path in sorted((data / f"{split}_masks").iterdir()):
            with Image.open(path) as picture:
                masks.append(np.asarray(picture.convert("L")))
    values, used = np.stack(values), len(np.unique(values))
    text = f"{values.min()} to {values.max()} ({used} of 256 in use), mean {values.mean():.1f}"
    return text, 100 * np.count_nonzero(masks) / np.size(masks)


def test_all_that_is_wrong_is_in_the_table_and_the_exit_code_is_2(data, tmp_path):
    images, masks = data / "train_images", data / "train_masks"
    (images / "train0.jpg").write_bytes((images / "train0.jpg").read_bytes()[:300])
    write_mask(masks / "train1_mask.gif", blocks((0, 3, 0, 3, 7), size=(32, 48)))
    write_mask(masks / "train2_mask.gif", blocks(size=(9, 9)))
    (masks / "train3_mask.gif").rename(masks / "other_mask.gif")
    shutil.copy(images / "train1.jpg", data / "val_images" / "train1.jpg")
    shutil.copy(data / "val_masks" / "val0_mask.gif", data / "val_masks" / "train1_mask.gif")
    done = run("check", data, "-o", tmp_path / "report")
    assert done.exit_code == 2
    table = rows(tmp_path / "report" / "problems.csv")
    assert [row[0] for row in table[1:]] == [
        "./train_images/train0.jpg",
        "./train_masks/train1_mask.gif",
        "./train_masks/train2_mask.gif",
        "./train_images/train3.jpg",
        "./train_masks/other_mask.gif",
        "./val_images/train1.jpg",
    ]
    assert table[1][1].startswith("is damaged or truncated")
    assert table[2][1].startswith("has invalid labels (7); expected 0 and 255")
    assert table[3][1] == "differs in size from its image (9x9, expected 48x32)"
    assert [row[1] for row in table[5:]] == ["is a mask without an image", "is both trained and validated on"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {data}: 4 of 7 pairs cannot be used, fix or remove them: ")
    assert last.endswith(f"; {tmp_path / 'report' / 'problems.csv'} lists them all")
    assert f"note: {data}: 1 mask has no image of the same name: train_masks/other_mask.gif\n" in done.stderr
    done = run("check", data)
    assert done.stderr.splitlines()[-1].endswith("; -o FOLDER lists them all")


def test_the_sheet_shows_images_beside_their_masks(data, tmp_path):
    run("check", data, "-o", tmp_path / "report")
    with Image.open(tmp_path / "report" / "samples.png") as picture:
        sheet = np.asarray(picture)
    # Three rows of two samples; a picture of 48x32 is drawn at 280x187.
    assert sheet.shape == (16 + 3 * (26 + 187 + 16) + 22 + 8, 2 * 16 + 2 * 568 + 16, 3)
    left, right = sheet[42 : 42 + 187, 16 : 16 + 280].astype(int), sheet[42 : 42 + 187, 304 : 304 + 280].astype(int)
    with Image.open(data / "train_masks" / "train0_mask.gif") as picture:
        mask = np.asarray(picture.convert("L").resize((280, 187), Image.Resampling.NEAREST)) > 0
    changed = np.abs(left - right).sum(axis=2) > 0
    assert (changed == mask).mean() > 0.97 and 0.1 < mask.mean() < 0.9


def test_several_classes_and_settings_of_a_file(data, tmp_path):
    for split in ("train", "val"):
        for path in sorted((data / f"{split}_masks").iterdir()):
            write_mask(path, blocks((0, 8, 0, 48, 1), (8, 16, 0, 48, 9), size=(32, 48)))
    (tmp_path / "set.toml").write_text('classes = ["sky", "road", "car"]\nignore_index = 9\n')
    done = run("check", data, "--config", tmp_path / "set.toml")
    assert done.exit_code == 0
    assert done.stdout.partition("\n\n")[2] == (
        "class          pixels  images\n"
        "sky            66.67%       6\n"
        "road           33.33%       6\n"
        "car             0.00%       0\n"
        "not counted    25.00%       6\n"
    )
    assert done.stderr == (
        "note: training: no mask has car; this class cannot be learned\n"
        "note: validation: no mask has car; this class cannot be measured\n"
    )
    damaged = next((data / "train_images").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:99])
    done = run("check", data, "--config", tmp_path / "set.toml")
    assert (done.exit_code, "no mask has car; this class cannot be learned" in done.stderr) == (2, True)
    done = run("check", data, "--config", tmp_path / "set.toml", "--ignore-index", "none")
    assert done.exit_code == 2 and "has invalid labels (9)" in done.stderr


def test_masks_without_foreground_are_refused_as_by_training(data):
    for path in sorted((data / "val_masks").iterdir()):
        write_mask(path, np.zeros((32, 48), np.uint8))
    done = run("check", data)
    assert done.exit_code == 0
    assert done.stderr == (
        "note: validation: no mask has any foreground, so Dice tells little and the best epoch is chosen by the "
        "validation loss; add images with other pixels\n"
    )
    for path in sorted((data / "train_masks").iterdir()):
        write_mask(path, np.zeros((32, 48), np.uint8))
    done = run("check", data)
    folder = data / "train_masks"
    assert done.exit_code == 2 and "car             0.00%       0\n" in done.stdout
    assert done.stderr == f"error: {folder}: no mask has any foreground, so there is nothing to learn\n"


def test_a_split_by_kinds_of_things_is_noted(tmp_path):
    for number in range(8):
        write_pair(tmp_path, "train", f"{'cat' if number < 4 else 'dog'}_{number}")
    done = run("check", tmp_path)
    assert done.exit_code == 0 and done.stderr.startswith("note: ") and "--group ''" in done.stderr
    assert run("check", tmp_path, "--group", "").stderr == ""


def test_dark_pictures_of_few_values_are_noted(tmp_path):
    for index in range(3):
        write_mask(tmp_path / "images" / f"{index}.png", np.tile(np.arange(12, dtype=np.uint8), (24, 3)))
        write_mask(tmp_path / "masks" / f"{index}.png", blocks((0, 9, 0, 9, 255), size=(24, 36)))
    done = run("check", tmp_path, "--group", "")
    assert "values   0 to 11 (12 of 256 in use), mean 5.5; 0 images have colours, 3 are grey\n" in done.stdout
    assert done.stderr == "note: 3 of 3 images use fewer than 64 of 256 values\n"


def test_pictures_of_12_bits_are_seen_with_the_levels_of_training(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for index in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "images" / f"{index}.png")
        write_mask(tmp_path / "masks" / f"{index}.png", blocks((0, 9, 0, 9, 255), size=(64, 64)))
    done = run("check", tmp_path, "--group", "")
    assert done.stdout.startswith(
        "levels: stored values 0 to 4095 become 0 to 255, since the images use 12 bits (--levels 0,4095)\n"
    )
    assert "values   0 to 255 (256 of 256 in use), mean 127.0; 0 images have colours, 3 are grey\n" in done.stdout
    assert done.stderr == ""


def test_a_folder_without_data_and_one_that_cannot_be_written(data, tmp_path):
    nowhere = tmp_path / "nowhere"
    done = run("check", nowhere)
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {nowhere}: no such folder; expected a folder of ")
    write_image(tmp_path / "file.png")
    done = run("check", data, "-o", tmp_path / "file.png")
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'file.png'}: cannot create this folder")
