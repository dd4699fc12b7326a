"""Folders of images and masks under the names that people give them, and the kinds of masks."""

import numpy as np
import pytest
from layouts import blocks, convert, converted, run, write_image, write_mask
from many_channels import write_channels
from many_channels import write_image as write_bands
from PIL import Image

CAR = blocks((3, 9, 4, 20, 255))


@pytest.mark.parametrize(
    ("image", "mask", "name"),
    [
        ("imgs/{}.jpg", "masks/{}_mask.gif", "train/{}"),
        ("images/{}.jpg", "masks/{}.png", "train/{}"),
        ("image_{}.png", "mask_{}.png", "train/image_{}"),
        ("Training_Input/ISIC_{}.jpg", "Training_GroundTruth/ISIC_{}_segmentation.png", "train/ISIC_{}"),
        ("case7/scan_{}.tif", "case7/scan_{}_mask.tif", "train/scan_{}"),
        ("data/img/{}.bmp", "data/label/{}_L.png", None),
        ("valid/images/{}.png", "valid/labels/{}.png", "val/{}"),
    ],
)
def test_images_and_masks_are_paired_by_what_their_names_share(tmp_path, image, mask, name):
    for index in range(3):
        write_image(tmp_path / "source" / image.format(index), index)
        write_mask(tmp_path / "source" / mask.format(index), blocks((index, 9, 4, 20, 255)))
    write_image(tmp_path / "source" / "train" / "images" / "first.png", 9)
    write_mask(tmp_path / "source" / "train" / "masks" / "first.png", CAR)
    if name is None:
        done = run("convert", tmp_path / "source", tmp_path / "out")
        assert (
            "3 of 4 pairs cannot be used" in done.stderr and "has no mask of a similar name: img/0.bmp" in done.stderr
        )
        return
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("foreground",)}
    for index in range(3):
        assert np.array_equal(labels[name.format(index)], blocks((index, 9, 4, 20, 1))), index


def test_names_that_occur_in_several_folders_are_told_apart_by_these(tmp_path):
    for index, folder in enumerate(("north", "south")):
        write_image(tmp_path / "source" / folder / "images" / "1.png", index)
        write_mask(tmp_path / "source" / folder / "masks" / "1.png", blocks((index, 9, 4, 20, 255)))
    convert(tmp_path / "source", tmp_path / "out")
    labels, _ = converted(tmp_path / "out")
    assert np.array_equal(labels["train/north-images-1"], blocks((0, 9, 4, 20, 1)))
    assert np.array_equal(labels["train/south-images-1"], blocks((1, 9, 4, 20, 1)))


def two(tmp_path, values, suffix=".png", **options):
    """Two images with the same mask."""
    for name in ("a", "b"):
        write_image(tmp_path / "source" / "images" / f"{name}.png")
        path = write_mask(tmp_path / "source" / "masks" / f"{name}.png", values)
        if suffix != ".png":
            with Image.open(path) as picture:
                picture.save(path.with_suffix(suffix), **options)
            path.unlink()
    return tmp_path / "source"


def test_coloured_masks_name_their_classes(tmp_path):
    mask = np.zeros((24, 32, 3), np.uint8)
    mask[2:4], mask[5:9], mask[10:12] = (128, 64, 128), (0, 0, 142), 255
    source, colours = two(tmp_path, mask), "other=#000000,road=#804080,car=#00008e,ignore=#ffffff"
    convert(source, tmp_path / "out", "--colours", colours)
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("other", "road", "car"), "ignore_index": 255}
    assert np.array_equal(labels["train/a"], blocks((2, 4, 0, 32, 1), (5, 9, 0, 32, 2), (10, 12, 0, 32, 255)))
    done = run("convert", source, tmp_path / "again", "--colours", "road=#804080,car=#00008e")
    assert done.stderr == (
        "error: 2 of 2 pairs cannot be used, fix or remove them: has colours of no class (#000000, #ffffff), name them "
        "in --colours, as a class, such as background=#000000, or as ignore: masks/a.png, masks/b.png\n"
    )


def test_jpeg_masks_by_a_threshold(tmp_path):
    source = two(tmp_path, CAR, ".jpg", quality=75)
    done = run("convert", source, tmp_path / "out")
    assert done.exit_code == 2 and "has invalid labels" in done.stderr
    convert(source, tmp_path / "out", "--mask-threshold", "128", "--classes", "car")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("car",)}
    assert np.array_equal(labels["train/a"], CAR // 255)


def test_instances_are_foreground(tmp_path):
    source = two(tmp_path, blocks((3, 9, 4, 20, 300), (10, 12, 4, 20, 7), dtype=np.uint16))
    done = run("convert", source, tmp_path / "out")
    assert "use: unet-data convert --instances foreground" in done.stderr
    convert(source, tmp_path / "out", "--instances", "foreground")
    labels, _ = converted(tmp_path / "out")
    assert np.array_equal(labels["train/b"], blocks((3, 9, 4, 20, 1), (10, 12, 4, 20, 1)))


def test_several_classes_and_a_value_that_does_not_count(tmp_path):
    values = blocks((3, 9, 4, 20, 1), (10, 12, 4, 20, 2), (20, 24, 0, 32, 9))
    convert(two(tmp_path, values), tmp_path / "out", "--classes", "sky,road,car", "--ignore-index", "9")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("sky", "road", "car"), "ignore_index": 255}
    values[values == 9] = 255
    assert np.array_equal(labels["train/a"], values)


def test_values_that_begin_with_1_and_an_ignored_class(tmp_path):
    source = two(tmp_path, blocks((3, 9, 4, 20, 1), (10, 12, 4, 20, 2)))
    convert(source, tmp_path / "out", "--classes", "road,car", "--class-offset", "1", "--ignore-index", "0")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("road", "car"), "ignore_index": 255}
    assert np.array_equal(labels["train/a"], blocks((0, 24, 0, 32, 255), (3, 9, 4, 20, 0), (10, 12, 4, 20, 1)))
    done = run("convert", source, tmp_path / "again", "--classes", "sky,road,car", "--ignore-index", "0")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --ignore-index 0: is also the value of the class 'sky', so its pixels would")
    done = run("check", source, "--classes", "road,car", "--class-offset", "1", "--ignore-index", "0", "--group", "")
    assert (done.exit_code, done.stderr) == (0, "")


def test_what_cannot_be_paired_is_told(tmp_path):
    source = two(tmp_path, CAR)
    write_mask(source / "masks" / "c.png", CAR)
    done = convert(source, tmp_path / "out")
    assert done.stderr == f"note: {source}: 1 mask has no image of a similar name: masks/c.png\n"
    write_image(source / "images" / "c.png", size=(9, 9))
    write_image(source / "images" / "d.png")
    write_mask(source / "masks" / "b_mask.png", CAR)
    done = run("convert", source, tmp_path / "again")
    assert done.stderr == (
        "error: 3 of 4 pairs cannot be used, fix or remove them: has 2 masks (masks/b.png, masks/b_mask.png), expected "
        "one, name their folder with --masks: images/b.png; differs in size from its mask (9x9, its mask is 32x24): "
        "images/c.png; has no mask of a similar name: images/d.png\n"
    )


def test_one_of_two_kinds_of_masks_is_named(tmp_path):
    source = two(tmp_path, CAR)
    for name in ("a", "b"):
        write_mask(source / "classes" / f"{name}.png", blocks((0, 4, 0, 32, 1)))
    done = run("convert", source, tmp_path / "out")
    assert done.stderr == (
        "error: 2 of 2 pairs cannot be used, fix or remove them: has 2 masks, expected one, name their folder with "
        "--masks: images/a.png (classes/a.png, masks/a.png), images/b.png (classes/b.png, masks/b.png)\n"
    )
    convert(source, tmp_path / "out", "--masks", "classes")
    assert np.array_equal(converted(tmp_path / "out")[0]["train/b"], blocks((0, 4, 0, 32, 1)))


def test_linked_folders_are_followed_and_test_images_need_no_masks(tmp_path):
    source, linked = two(tmp_path, CAR), tmp_path / "linked"
    (source / "images" / "up").symlink_to(source)
    linked.mkdir()
    for kind in ("images", "masks"):
        (linked / f"train_{kind}").symlink_to(source / kind)
    write_image(linked / "test" / "c.png")
    done = convert(linked, tmp_path / "out")
    assert f"(folders) -> {tmp_path / 'out'}: 1 in test_images, 2 in train_images (3 linked)" in done.stdout
    assert sorted(converted(tmp_path / "out")[0]) == ["train/a", "train/b"]


def test_masks_with_a_page_for_each_class_are_read_and_stacks_of_images_refused(tmp_path):
    pages = [blocks((0, 24, 0, 32, 255), (3, 9, 4, 20, 0)), CAR]
    for name in ("a", "b"):
        write_image(tmp_path / "source" / "images" / f"{name}.tif")
        (tmp_path / "source" / "masks").mkdir(exist_ok=True)
        first, *rest = map(Image.fromarray, pages)
        first.save(tmp_path / "source" / "masks" / f"{name}.tif", save_all=True, append_images=rest)
    convert(tmp_path / "source", tmp_path / "out", "--classes", "ground,car")
    assert np.array_equal(converted(tmp_path / "out")[0]["train/a"], CAR // 255)
    (tmp_path / "source" / "masks" / "b.tif").replace(tmp_path / "source" / "images" / "b.tif")
    write_mask(tmp_path / "source" / "masks" / "b.tif", CAR)
    done = run("convert", tmp_path / "source", tmp_path / "again", "--classes", "ground,car")
    assert done.stderr == (
        "error: 1 of 2 pairs cannot be used, fix or remove them: has 2 pages, expected one, put stacks into "
        "train_images and train_masks as they are: images/b.tif\n"
    )


def test_images_alone_are_refused(tmp_path):
    write_image(tmp_path / "source" / "a.png")
    done = run("convert", tmp_path / "source", tmp_path / "out")
    assert done.stderr == (
        f"error: {tmp_path / 'source'}: found 1 images and 0 masks below it, expected both; masks are known by a word "
        "such as masks or labels in the name of their folder or file\n"
    )


def nuclei(source, masks=2):
    """Kaggle's nuclei: a folder for each image, with a mask for each object."""
    for index, name in enumerate(("0a1b", "2c3d")):
        write_image(source / name / "images" / f"{name}.png", index)
        for number in range(masks):
            write_mask(
                source / name / "masks" / f"{number}{name[::-1]}.png", blocks((5 * number, 5 * number + 3, 4, 20, 255))
            )
    return source


def test_masks_of_single_objects_are_joined(tmp_path):
    source = nuclei(tmp_path / "source")
    done = run("convert", source, tmp_path / "out")
    assert done.stderr == (
        "error: 2 of 2 pairs cannot be used, fix or remove them: has 2 masks in the folder beside, give "
        "--instances foreground if each is one object: images/0a1b.png, images/2c3d.png\n"
    )
    assert convert(source, tmp_path / "out", "--instances", "foreground").stderr == ""
    labels, _ = converted(tmp_path / "out")
    assert sorted(labels) == ["train/0a1b", "train/2c3d"]
    assert np.array_equal(labels["train/0a1b"], blocks((0, 3, 4, 20, 1), (5, 8, 4, 20, 1)))
    write_mask(source / "2c3d" / "masks" / "x.png", blocks(size=(9, 8)))
    done = run("convert", source, tmp_path / "again", "--instances", "foreground")
    assert done.exit_code == 2
    assert "differs in size from its image (8x9, expected 32x24)" in done.stderr


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_images_of_many_channels_are_linked_as_they_are(tmp_path, suffix):
    for index in range(2):
        image, _ = write_channels(tmp_path / "made", "train", f"{index}", dtype=np.uint16, suffix=suffix, seed=index)
        write_bands(tmp_path / "made" / "train_images" / f"{index}{suffix}", image // 16)  # 12 bits
    (tmp_path / "made" / "train_images").rename(tmp_path / "made" / "imgs")
    assert convert(tmp_path / "made", tmp_path / "out").stderr == ""
    found = sorted((tmp_path / "out" / "train_images").iterdir())
    assert [path.name for path in found] == [f"0{suffix}", f"1{suffix}"]
    assert found[1].samefile(tmp_path / "made" / "imgs" / f"1{suffix}")
    assert (tmp_path / "out" / "dataset.toml").read_text().endswith('classes = ["foreground"]\nchannels = 5\n')
    done = run("check", tmp_path / "out", "--config", tmp_path / "out" / "dataset.toml", "--group", "")
    assert done.exit_code == 0 and "5 channels, mean of each: " in done.stdout
