"""The one line that lists the pairs of a data set that cannot be used, surplus masks, images in both splits."""

import shutil
from pathlib import Path

import pytest

from runtime.errors import DataError
from unet_core.data.faults import files_left_out, refuse, shared_images, surplus_masks
from unet_core.data.pairs import Layout, Pair, find_pairs

IMAGES, MASKS = Path("data/train_images"), Path("data/train_masks")
START = "{} pairs cannot be used, fix or remove them: "

ARRAYS = "arrays are read as images alone, with unet-train --channels N"


def pair(name):
    return Pair(image=IMAGES / f"{name}.jpg", mask=MASKS / f"{name}.png")


def told(faults, total=60):
    with pytest.raises(DataError) as caught:
        refuse(faults, total)
    start = START.format(f"{len(faults)} of {total}")
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def test_no_faults_pass():
    refuse([], 3)


def test_a_reason_is_told_once_with_the_first_files():
    cut_off = [(pair(name), f"{IMAGES / name}.jpg: is cut off; replace it") for name in "abcde"]
    odd = [(pair("f"), f"{MASKS / 'f'}.png: has no mask, expected some")]
    assert told([*odd, *cut_off]) == (
        "is cut off, replace it: train_images/a.jpg, train_images/b.jpg, train_images/c.jpg and 2 more; "
        "has no mask, expected some: train_masks/f.png"
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("11", "11"), "has odd values (11), expected 0 to 3: train_masks/0.png, train_masks/1.png"),
        (("11", "7, 8"), "has odd values, expected 0 to 3: train_masks/0.png (11), train_masks/1.png (7, 8)"),
        (
            ("cut (3 bytes left)", "cut (9 bytes left)"),
            "has odd values (cut), expected 0 to 3: train_masks/0.png, train_masks/1.png",
        ),
    ],
)
def test_what_was_found_is_told_once_where_it_is_the_same(found, expected):
    faults = [
        (pair(index), f"{MASKS / str(index)}.png: has odd values ({what}); expected 0 to 3")
        for index, what in enumerate(found)
    ]
    assert told(faults) == expected


def test_a_path_that_the_system_names_again_is_left_out():
    faults = [
        (pair(name), f"{IMAGES / name}.jpg: cannot be read ([Errno 13] Permission denied: '{IMAGES / name}.jpg')")
        for name in "ab"
    ]
    assert told(faults) == "cannot be read ([Errno 13] Permission denied): train_images/a.jpg, train_images/b.jpg"


def test_the_line_is_bounded():
    long = "x" * 5000
    faults = [
        (pair(f"{long}{index}"), f"{IMAGES / long}{index}.jpg: reason {index % 9} {long} ({index}{long})")
        for index in range(90)
    ]
    line = told(faults)
    assert len(line) < 6 * (400 + 3 * (100 + 60)) + 200
    assert line.count(": train_images/x") == 6
    assert line.endswith(" and 7 more; and 30 more for other reasons")


def test_masks_of_no_image_are_told(data):
    assert surplus_masks(data) is None
    (data / "val_images" / "val1.jpg").unlink()
    assert surplus_masks(data) == f"{data}: 1 mask has no image of the same name: val_masks/val1_mask.gif"
    assert surplus_masks(data, wanted=("train",)) is None
    for index in range(4):
        (data / "train_images" / f"car{index}.jpg").unlink()
    assert surplus_masks(data) == (
        f"{data}: 5 masks have no image of the same name: train_masks/car0_mask.gif, train_masks/car1_mask.gif, "
        "train_masks/car2_mask.gif and 2 more"
    )
    (data / "train_masks").rename(data / "train_fine")
    for kind in ("images", "masks"):
        shutil.rmtree(data / f"val_{kind}")
    assert surplus_masks(data, Layout(masks="fine")).startswith(f"{data}: 4 masks have no image")


def test_images_on_both_sides_are_noted(data):
    train, val = find_pairs(data, "train"), find_pairs(data, "val")
    assert shared_images(train, val) is None
    said = "both trained and validated on, so the metrics are too good: train_images/car0.jpg"
    assert shared_images(train, [*val, train[0]]) == f"1 image is {said}"
    assert shared_images(train, train[:2]) == f"2 images are {said}, train_images/car1.jpg"


def test_files_that_are_no_images_are_told_of(data):
    assert files_left_out(data) is None
    (data / "train_images" / "notes.txt").touch()
    (data / "train_images" / "car9.jp2").touch()
    (data / "val_masks" / "car9.npy").touch()
    assert files_left_out(data) == f"{data}: 2 files left out: .jp2 (1), .npy (1); {ARRAYS}"
    assert files_left_out(data, wanted=("val",)) == f"{data}: 1 file left out: .npy (1); {ARRAYS}"
    (data / "test_images").mkdir()
    (data / "test_images" / "a.dng").touch()
    assert files_left_out(data, wanted=("test",)) == f"{data}: 1 file left out: .dng (1)"
    for kind in ("images", "masks"):
        shutil.rmtree(data / f"val_{kind}")
    assert files_left_out(data) == f"{data}: 1 file left out: .jp2 (1)"
