"""Finding pairs, and what is said where that cannot be."""

import os
import shutil

import pytest
from folders import write_pair
from PIL import Image

from runtime.errors import DataError, ImageError
from runtime.image import load_image
from unet_core.data.mask_values import MaskValues
from unet_core.data.pairs import (
    Layout,
    Pair,
    find_pairs,
    find_splits,
    fingerprint,
    has_validation,
    image_folder,
)


def names(pairs):
    return [pair.name for pair in pairs]


def refusal(*arguments):
    with pytest.raises(DataError) as caught:
        find_splits(*arguments)
    return str(caught.value)


def faults(data):
    """Return the faults by the images' names."""
    return {pair.image.name: pair.fault for pairs in find_splits(data) for pair in pairs if pair.fault}


@pytest.mark.parametrize(
    "suffix", ["_mask.gif", ".gif", "_mask.png", ".PNG", "_mask.bmp", ".tif", "_mask.tiff", ".pgm"]
)
def test_masks_are_found_by_both_names(data, suffix):
    write_pair(data, "train", "a", mask_suffix=suffix)
    pair = find_pairs(data, "train")[0]
    assert (pair.image, pair.mask) == (data / "train_images" / "a.jpg", data / "train_masks" / f"a{suffix}")
    assert (pair.name, pair.files) == ("a", (pair.image, pair.mask))


def test_pairs_are_sorted_by_name_and_hidden_files_left_out(data):
    (data / "train_images" / ".hidden.jpg").write_bytes(b"")
    (data / "train_images" / "notes.txt").write_bytes(b"")
    assert names(find_pairs(data, "train")) == [f"car{index}" for index in range(6)]
    assert names(find_pairs(data, "val")) == ["val0", "val1", "val2"]
    assert find_splits(data) == (find_pairs(data, "train"), find_pairs(data, "val"))
    assert find_splits(data, wanted=("val",)) == ([], find_pairs(data, "val"))


def test_masks_may_be_in_a_folder_of_another_name(data):
    for split in ("train", "val"):
        (data / f"{split}_masks").rename(data / f"{split}_classes")
    train, val = find_splits(data, Layout(masks="classes"))
    assert train[0].mask == data / "train_classes" / "car0_mask.gif"
    assert len(val) == 3


def test_images_as_kaggle_packs_them(data):
    for split in ("train", "val"):
        (data / f"{split}_images").rename(data / split)
    assert has_validation(data)
    assert image_folder(data, "train") == data / "train"
    assert find_pairs(data, "val")[0] == Pair(
        image=data / "val" / "val0.jpg", mask=data / "val_masks" / "val0_mask.gif"
    )
    (data / "train_images").mkdir()
    assert image_folder(data, "train") == data / "train_images"


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{0}/{0}", "{0}_masks/{0}_masks"),
        ("{0}/{0}", "{0}_masks"),
        ("{0}/images", "{0}/masks"),
        ("{0}/imgs", "{0}/masks"),
        ("images/{0}", "masks/{0}"),
        ("imgs/{0}", "masks/{0}"),
    ],
)
def test_other_places_of_the_same_folders(data, tmp_path, images, masks):
    other = tmp_path / "images"  # the name of the whole folder means nothing
    for split in ("train", "val"):
        shutil.copytree(data / f"{split}_images", other / images.format(split))
        shutil.copytree(data / f"{split}_masks", other / masks.format(split))
    train, val = find_splits(other)
    assert (len(train), names(val)) == (6, ["val0", "val1", "val2"])
    assert val[0].image == other / images.format("val") / "val0.jpg"
    assert val[0].mask == other / masks.format("val") / "val0_mask.gif"
    assert not faults(other)


@pytest.mark.parametrize("name", ["images", "imgs"])
def test_one_pair_of_folders_is_split(data, tmp_path, name):
    shutil.copytree(data / "train_images", tmp_path / "one" / name)
    shutil.copytree(data / "train_masks", tmp_path / "one" / "classes")
    train, val = find_splits(tmp_path / "one", Layout(masks="classes", group="", val_share=0.2))
    assert (len(train), len(val)) == (5, 1)
    assert val[0].mask.parent == tmp_path / "one" / "classes" and not has_validation(tmp_path / "one")


def test_a_threshold_makes_labels_of_jpeg_masks(data):
    Image.new("L", (48, 32)).save(data / "train_masks" / "car0_mask.jpg")
    (data / "train_masks" / "car0_mask.gif").unlink()
    pair = find_splits(data, Layout(mask_threshold=128))[0][0]
    assert pair.mask == data / "train_masks" / "car0_mask.jpg" and pair.fault == ""
    assert pair.values == MaskValues(threshold=128)


def test_missing_and_empty_folders(data, tmp_path):
    shutil.rmtree(data / "val_masks")
    assert refusal(data) == (
        f"{data / 'val_masks'}: no such folder (found train_images (6 images), train_masks (6 images), val_images (3 "
        f"images)); expected train_images and train_masks (and val_images and val_masks), or images and masks in {data}"
    )
    assert len(find_pairs(data, "train")) == 6
    shutil.rmtree(data / "train_images")
    (data / "train_images").mkdir()
    assert refusal(data) == f"{data / 'train_images'}: no images in this folder; expected .jpg or .png files"


def test_masks_to_validate_on_without_images(data):
    shutil.rmtree(data / "val_images")
    assert refusal(data) == (
        f"{data / 'val_masks'}: has no val_images beside it; add them, or take the folder away to split off a part"
    )


def test_an_image_without_a_mask_of_its_own_is_a_faulty_pair(data):
    masks = data / "train_masks"
    (masks / "car0_mask.gif").unlink()
    Image.new("L", (48, 32)).save(masks / "car1.png")
    (masks / "car2_mask.gif").rename(masks / "car2_mask.JPG")
    Image.new("RGB", (48, 32)).save(data / "train_images" / "car3.png")
    (data / "val_masks" / "val0_mask.gif").unlink()
    expected = "expected NAME_mask.gif or NAME.png in {}"
    assert faults(data) == {
        "car0.jpg": f"has no mask, {expected.format(masks)}",
        "car1.jpg": "has several masks (car1_mask.gif, car1.png); leave one of them",
        "car2.jpg": f"has a mask in a lossy format (.JPG), which cannot hold labels; {expected.format(masks)}",
        "car3.jpg": "has the same name as another image",
        "car3.png": "has the same name as another image",
        "val0.jpg": f"has no mask, {expected.format(data / 'val_masks')}",
    }
    assert [pair.mask for pair in find_pairs(data, "val")] == [None, *(data / "val_masks").glob("val[12]_mask.gif")]


def test_a_lossy_copy_beside_a_mask_does_no_harm(data):
    Image.new("L", (48, 32)).save(data / "train_masks" / "car0.jpg")
    assert faults(data) == {}


def test_masks_among_the_images_are_not_trained_on(data):
    images, masks = data / "train_images", data / "train_masks"
    shutil.copy(masks / "car0_mask.gif", images / "car0_mask.gif")
    shared = "shares its mask with another image (car0_mask.gif)"
    assert faults(data) == {"car0.jpg": shared, "car0_mask.gif": shared}
    assert refusal(data, Layout(masks="images")) == (
        f"{images}: holds the images, expected masks in a folder of their own; give another --masks"
    )


def unsplit(data):
    for kind in ("images", "masks"):
        shutil.rmtree(data / f"val_{kind}")
    return data


def test_splits_are_made_where_there_is_no_validation_folder(data):
    for index in range(6):
        for view in range(2):
            write_pair(data, "train", f"van{index}_{view}")
    unsplit(data)
    assert not has_validation(data)
    train, val = find_splits(data, Layout(val_share=0.3))
    assert (len(train), len(val)) == (13, 5)
    assert find_pairs(data, "train", Layout(val_share=0.3)) == train
    assert find_pairs(data, "val", Layout(val_share=0.3)) == val
    assert find_splits(data, Layout(val_share=0.3), ("val",)) == (train, val)
    (data / "train_masks" / "van0_0_mask.gif").unlink()
    assert list(faults(data)) == ["van0_0.jpg"]


def test_images_of_one_group_are_split_one_by_one_and_one_image_cannot_be(data):
    unsplit(data)
    images = data / "train_images"
    for index in range(6):
        (images / f"car{index}.jpg").rename(images / f"car_{index}.jpg")
        (data / "train_masks" / f"car{index}_mask.gif").rename(data / "train_masks" / f"car_{index}.gif")
    assert len(find_splits(data)[1]) == 1
    assert find_splits(data) == find_splits(data, Layout(group=""))
    for index in range(1, 6):
        (images / f"car_{index}.jpg").unlink()
    assert refusal(data) == (
        f"{images}: found 1 image, expected 2 or more to split some off to validate on; or add val_images and val_masks"
    )


def test_fingerprint_sees_names_sizes_and_sides_not_places(data, tmp_path):
    def found(folder):
        return fingerprint(*find_splits(folder))

    before = found(data)
    assert before.startswith("6 training and 3 validation pairs, sha256 ")
    data = data.rename(tmp_path / "moved")
    assert found(data) == before
    train, val = find_splits(data)
    sides = {fingerprint(train, val), fingerprint(val, train), fingerprint([*train, val[0]], val[1:])}
    assert len(sides | {fingerprint([*train[1:], val[0]], [train[0], *val[1:]])}) == 4
    write_pair(data, "val", "val0", size=(32, 52))
    resized = found(data)
    (data / "val_masks" / "val1_mask.gif").rename(data / "val_masks" / "val1.gif")
    assert len({before, resized, found(data)}) == 3


def test_names_of_any_bytes_have_a_fingerprint_and_a_side(data):
    odd = os.fsdecode(b"one\xff")
    (data / "train_images" / "car0.jpg").rename(data / "train_images" / f"{odd}.jpg")
    (data / "train_masks" / "car0_mask.gif").rename(data / "train_masks" / f"{odd}_mask.gif")
    assert fingerprint(*find_splits(unsplit(data))).startswith("5 training and 1 validation pairs")


def test_a_link_to_nothing_is_a_pair_that_cannot_be_read(data):
    (data / "train_images" / "lost.jpg").symlink_to(data / "unmounted.jpg")
    (data / "train_masks" / "lost_mask.gif").symlink_to(data / "train_masks" / "car0_mask.gif")
    pair = next(pair for pair in find_pairs(data, "train") if pair.name == "lost")
    with pytest.raises(ImageError, match=r"lost\.jpg: "):
        load_image(pair.image)
