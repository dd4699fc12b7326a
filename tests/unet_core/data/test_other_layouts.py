"""Data folders that training cannot pair: what the refusal says was found, and that its advice works."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from folders import write_pair
from PIL import Image

from runtime.errors import DataError
from unet_core.data import other_layouts
from unet_core.data.pairs import Layout, find_splits
from unet_core.datasets import main

EXPECTED = "expected train_images and train_masks (and val_images and val_masks), or images and masks"


def place(folder, images, masks, count=4):
    """Write pairs and move them: `images` and `masks` are paths in which {} is the number."""
    for index in range(count):
        write_pair(folder / "made", "train", str(index), seed=index, mask_suffix=".png")
        for made, path in (("images/{}.jpg", images), ("masks/{}.png", masks)):
            target = folder / "data" / path.format(index)
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / "made" / f"train_{made.format(index)}").rename(target)
    return folder / "data"


def refusal(data, layout=None):
    with pytest.raises(DataError) as caught:
        find_splits(data, layout)
    return str(caught.value)


def assert_it_converts(command, data):
    """Run the command of a message, and pair what it wrote."""
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.stderr
    train, val = find_splits(f"{data}-converted", Layout(group=""))
    assert [pair.fault for pair in (*train, *val)] == [""] * 4


@pytest.mark.parametrize(
    ("images", "masks", "found", "missing"),
    [
        ("img/{}.jpg", "ann/masks/{}.png", "ann/masks (4 images), img (4 images)", "train_images"),
        ("{}.jpg", "{}_mask.png", ". (8 images)", "train_images"),
        ("Images/{}.jpg", "Masks/{}.png", "Images (4 images), Masks (4 images)", "train_images"),
        (
            "img_dir/train/{}.jpg",
            "ann_dir/train/{}.png",
            "ann_dir/train (4 images), img_dir/train (4 images)",
            "train_images",
        ),
        ("img/{}.jpg", "ann/{}.png", "ann (4 images), img (4 images)", "train_images"),
        ("pics/{}.jpg", "annotations/{}.png", "annotations (4 images), pics (4 images)", "train_images"),
        ("JPEGImages/{}.jpg", "Seg/{}.png", "JPEGImages (4 images), Seg (4 images)", "train_images"),
    ],
)
def test_a_layout_that_can_be_converted_is_told_with_the_command(tmp_path, images, masks, found, missing):
    data = place(tmp_path, images, masks)
    command = f"unet-data convert {data} {data}-converted"
    assert refusal(data) == (
        f"{data / missing}: no such folder (found {found}); {EXPECTED} in {data}; to pair 4 of the images by their "
        f"names: {command}"
    )
    assert_it_converts(command, data)


@pytest.mark.parametrize(
    ("images", "masks", "name", "missing"),
    [
        ("images/{}.jpg", "labels/{}.png", "labels", "masks"),
        ("train_images/{}.jpg", "train_fine/{}.png", "fine", "train_masks"),
        ("train/{}.jpg", "train_gt/{}_mask.png", "gt", "train_masks"),
        ("images/train/{}.jpg", "labels/train/{}.png", "labels", "masks/train"),
        ("train/images/{}.jpg", "train/my masks/{}.png", "my masks", "train/masks"),
    ],
)
def test_masks_in_a_folder_of_another_name_are_told_with_the_flag(tmp_path, images, masks, name, missing):
    data = place(tmp_path, images, masks)
    text = refusal(data)
    assert text.startswith(f"{data / missing}: no such folder (found ")
    assert text.endswith(f" in {data}; give --masks {shlex.quote(name)}")
    train, val = find_splits(data, Layout(masks=name))
    assert [pair.fault for pair in (*train, *val)] == [""] * 4


def test_a_data_set_in_an_inner_folder_is_told(tmp_path):
    data = place(tmp_path, "Carvana/set/images/{}.jpg", "Carvana/set/masks/{}.png")
    assert refusal(data) == (
        f"{data / 'train_images'}: no such folder (found Carvana/set/images (4 images), Carvana/set/masks (4 images)); "
        f"{EXPECTED} in {data}; give {data / 'Carvana' / 'set'}"
    )


@pytest.mark.parametrize("part", ["train_images", "train_masks"])
def test_a_folder_inside_a_data_set_is_told_with_that_of_the_data_set(tmp_path, part):
    data = place(tmp_path, "train_images/{}.jpg", "train_masks/{}.png")
    assert refusal(data / part).endswith(f"; it is a part of {data}, so give that folder")


def test_folders_without_a_known_layout_are_listed_alone(tmp_path):
    data = place(tmp_path, "red/{}.jpg", "blue/{}.png")
    for name in "abcd":
        (data / name).mkdir()
        Image.new("L", (9, 9)).save(data / name / "x.png")
    assert refusal(data) == (
        f"{data / 'train_images'}: no such folder (found a (1 image), b (1 image), blue (4 images), c (1 image), d (1 "
        f"image) and 1 more); {EXPECTED} in {data}"
    )


@pytest.mark.parametrize(
    ("name", "advice"), [("a.json", "the JSON of COCO or LabelMe"), ("a.csv", "a table of run lengths as Kaggle's")]
)
def test_annotations_beside_images_are_told(tmp_path, name, advice):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("L", (9, 9)).save(data / "x.png")
    (data / name).write_text(json.dumps({}))
    assert refusal(data).endswith(f"; if the masks are in {advice}: unet-data convert {data} {data}-converted")


def test_cityscapes_is_known_by_its_folder(tmp_path):
    data = place(tmp_path, "leftImg8bit/train/bonn/{}_leftImg8bit.png", "gtFine/train/bonn/{}_gtFine_labelIds.png")
    assert refusal(data).endswith(f"; to read Cityscapes' folders: unet-data convert {data} {data}-converted")


def test_what_is_no_folder_or_empty_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path / 'empty' / 'train_images'}: no such folder (found no images); {EXPECTED} in {tmp_path / 'empty'}"
    )
    (tmp_path / "set.zip").touch()
    assert refusal(tmp_path / "set.zip") == f"{tmp_path / 'set.zip'}: is a file; expected a folder of images and masks"
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere) == f"{nowhere}: no such folder; expected a folder of images and masks"


def test_a_large_or_deep_folder_is_looked_at_in_part(tmp_path, monkeypatch):
    data = place(tmp_path, "a/b/c/d/e/{}.jpg", "a/b/{}.png")
    assert "(found a/b (4 images))" in refusal(data)
    monkeypatch.setattr(other_layouts, "LOOKED", 5)
    assert "(found no images)" in refusal(data)


@pytest.mark.parametrize(
    ("suffix", "advice"),
    [
        (".dcm", ".dcm is DICOM, save its pixels as a PNG or TIFF of 16 bits, with pydicom or DCMTK's dcmj2pnm +on2"),
        (".nii.gz", ".nii.gz is NIfTI, save its slices as the pages of a TIFF, with nibabel and tifffile"),
        (".nii", ".nii is NIfTI, save its slices as the pages of a TIFF, with nibabel and tifffile"),
    ],
)
def test_medical_formats_are_named_with_a_way_to_convert_them(tmp_path, suffix, advice):
    data = place(tmp_path, "images/{}.jpg", "masks/{}.png")
    for path in [*(data / "images").iterdir()]:
        path.rename(path.with_name(f"{path.stem}{suffix}"))
    assert refusal(data) == (
        f"{data / 'images'}: no images in this folder; expected .jpg or .png files, found 4 files not read: {suffix} "
        f"(4); {advice}"
    )
    (data / "images").rename(data / "scans")
    assert f"(found masks (4 images); 4 files not read: {suffix} (4); {advice}); expected" in refusal(data)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/image_{}.jpg", "masks/mask_{}.png"), ("images/{}.jpg", "masks/{}_segmentation.png")],
)
def test_names_that_would_pair_are_told_with_the_command(tmp_path, images, masks):
    data = place(tmp_path, images, masks)
    train, val = find_splits(data, Layout(group=""))
    command = f"unet-data convert {data} {data}-converted"
    for pair in (*train, *val):
        mask = Path(masks.format("".join(filter(str.isdigit, pair.image.name)))).name
        assert pair.fault == f"has no mask of its name, but of a similar one ({mask}); to pair these: {command}"
    assert_it_converts(command, data)


def test_without_any_pair_the_masks_names_are_told(tmp_path):
    data = place(tmp_path, "images/a{}.jpg", "masks/b{}.png")

    def faults():
        train, val = find_splits(data, Layout(group=""))
        return {pair.fault for pair in (*train, *val)}

    expected = f"has no mask, expected NAME_mask.gif or NAME.png in {data / 'masks'}"
    assert faults() == {f"{expected} (found b0.png, b1.png, b2.png and 1 more)"}
    for path in [*(data / "masks").iterdir()]:
        path.rename(path.with_suffix(".nii"))
    assert faults() == {
        f"{expected}, found 4 files not read: .nii (4); .nii is NIfTI, save its slices as the pages of a TIFF, with "
        "nibabel and tifffile"
    }
    for path in (data / "masks").iterdir():
        path.unlink()
    assert faults() == {f"{expected}, found no images there"}


def test_a_mask_for_each_object_is_told_with_the_command(tmp_path):
    """Kaggle's nuclei: a folder for each image."""
    for index in range(4):
        folder = tmp_path / "data" / f"id{index}"
        write_pair(tmp_path / "made", "train", str(index), seed=index, mask_suffix=".png")
        for kind, name, target in (("images", f"{index}.jpg", f"id{index}.jpg"), ("masks", f"{index}.png", "x.png")):
            (folder / kind).mkdir(parents=True)
            (tmp_path / "made" / f"train_{kind}" / name).rename(folder / kind / target)
        shutil.copy(folder / "masks" / "x.png", folder / "masks" / "y.png")
    data = tmp_path / "data"
    command = f"unet-data convert {data} {data}-converted --instances foreground"
    assert refusal(data).endswith(f"; if 4 images have a mask for each object: {command}")
    assert_it_converts(command, data)
