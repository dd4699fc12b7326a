"""PASCAL VOC, Cityscapes and ADE20K: label images that are renumbered."""

import numpy as np
from layouts import blocks, convert, converted, run, write_image, write_mask
from PIL import Image

from runtime.images.palette import voc_colour
from unet_core.conversion.voc import CLASSES
from unet_core.data.labels import IGNORED


def write_voc(folder, lists, masks):
    for name, values in masks.items():
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        picture = Image.fromarray(values)
        picture.putpalette([channel for index in range(256) for channel in voc_colour(index)])
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        picture.save(folder / "SegmentationClass" / f"{name}.png")
    for name, names in lists.items():
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(names) + "\n")


def test_voc_as_it_unpacks(tmp_path):
    values = {
        "2007_1": blocks((2, 9, 2, 9, 15), (2, 3, 2, 9, 255)),
        "2007_2": blocks((1, 4, 1, 4, 20)),
        "2007_3": blocks(),
    }
    lists = {"train": ["2007_1"], "val": ["2007_2"], "trainval": ["2007_1", "2007_2"], "test": ["2007_9"]}
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", lists, values)
    convert(tmp_path / "VOCdevkit", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": CLASSES, "ignore_index": 255} and CLASSES[15] == "person"
    assert sorted(labels) == ["train/2007_1", "val/2007_2"]
    assert np.array_equal(labels["train/2007_1"], values["2007_1"])
    assert np.array_equal(labels["val/2007_2"], values["2007_2"])


def test_classes_of_voc_are_chosen_and_others_named(tmp_path):
    values = {"1": blocks((2, 9, 2, 9, 15), (10, 12, 2, 9, 7), (2, 3, 2, 9, 255)), "2": blocks()}
    write_voc(tmp_path / "source", {}, values)
    convert(tmp_path / "source", tmp_path / "out", "--classes", "person")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("person",), "ignore_index": 128}
    assert np.array_equal(labels["train/1"], blocks((2, 9, 2, 9, 1), (2, 3, 2, 9, 255)))
    convert(tmp_path / "source", tmp_path / "two", "--classes", "person,car")
    labels, settings = converted(tmp_path / "two")
    assert settings == {"classes": ("background", "person", "car"), "ignore_index": 255}
    assert np.array_equal(labels["train/1"], blocks((2, 9, 2, 9, 1), (10, 12, 2, 9, 2), (2, 3, 2, 9, 255)))
    own = [f"thing{index}" for index in range(16)]
    convert(tmp_path / "source", tmp_path / "own", "--classes", ",".join(own))
    labels, settings = converted(tmp_path / "own")
    assert settings == {"classes": tuple(own), "ignore_index": 255} and np.array_equal(labels["train/1"], values["1"])


def test_voc_of_cvat_has_colours_in_labelmap(tmp_path):
    road, car = (128, 64, 128), (0, 0, 142)
    mask = np.zeros((24, 32, 3), np.uint8)
    mask[2:4], mask[5:9] = road, car
    for name in ("a", "b"):
        write_image(tmp_path / "source" / "JPEGImages" / f"{name}.png")
        write_mask(tmp_path / "source" / "SegmentationClass" / f"{name}.png", mask)
    (tmp_path / "source" / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n"
    )
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("background", "road", "car")}
    assert np.array_equal(labels["train/a"], blocks((2, 4, 0, 32, 1), (5, 9, 0, 32, 2)))
    convert(tmp_path / "source", tmp_path / "car", "--classes", "car")
    labels, settings = converted(tmp_path / "car")
    assert settings == {"classes": ("car",)} and np.array_equal(labels["train/a"], blocks((5, 9, 0, 32, 1)))
    done = run("convert", tmp_path / "source", tmp_path / "two", "--ignore-index", "255")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: --colours: contradicts --ignore-index 255; leave that out, or use ignore=#RRGGBB among the --colours\n",
    )
    (tmp_path / "source" / "labelmap.txt").write_text("other:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n")
    convert(tmp_path / "source", tmp_path / "road", "--classes", "road")
    labels, settings = converted(tmp_path / "road")
    assert settings == {"classes": ("road",)} and np.array_equal(labels["train/a"], blocks((2, 4, 0, 32, 1)))
    (tmp_path / "source" / "labelmap.txt").write_text("road:x\n")
    done = run("convert", tmp_path / "source", tmp_path / "again")
    assert done.stderr == (
        f"error: {tmp_path / 'source' / 'labelmap.txt'}: has the line 'road:x', expected "
        "name:red,green,blue:parts:actions\n"
    )


def test_listed_images_without_mask_are_refused(tmp_path):
    write_voc(tmp_path / "source", {"train": ["a", "b"]}, {"a": blocks()})
    write_image(tmp_path / "source" / "JPEGImages" / "b.jpg")
    done = run("convert", tmp_path / "source", tmp_path / "out")
    assert done.stderr == (
        "error: 1 of 2 pairs cannot be used, fix or remove them: has no mask, expected b.png in "
        f"{tmp_path / 'source' / 'SegmentationClass'}: JPEGImages/b.jpg\n"
    )


def write_street(folder, split, city, values, end="labelIds"):
    write_image(folder / "leftImg8bit" / split / city / f"{city}_000_leftImg8bit.png")
    write_mask(folder / "gtFine" / split / city / f"{city}_000_gtFine_{end}.png", values)


def test_cityscapes_ids_become_the_nineteen_classes(tmp_path):
    values = blocks((0, 4, 0, 32, 7), (4, 8, 0, 32, 26), (8, 12, 0, 32, 33), (12, 13, 0, 32, 255))
    write_street(tmp_path / "source", "train", "ulm", values)
    write_street(tmp_path / "source", "val", "bern", blocks((0, 24, 0, 32, 13)), "labelTrainIds")
    write_image(tmp_path / "source" / "leftImg8bit" / "test" / "bonn" / "bonn_000_leftImg8bit.png")
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    names = settings["classes"]
    assert len(names) == 19 and (names[0], names[13], names[18]) == ("road", "car", "bicycle")
    assert settings["ignore_index"] == IGNORED and not (tmp_path / "out" / "test_images").exists()
    expected = blocks((0, 24, 0, 32, IGNORED), (0, 4, 0, 32, 0), (4, 8, 0, 32, 13), (8, 12, 0, 32, 18))
    assert np.array_equal(labels["train/ulm_000"], expected)
    assert (labels["val/bern_000"] == 13).all()


def test_one_class_of_cityscapes_against_all_others(tmp_path):
    write_street(tmp_path / "source", "train", "ulm", blocks((0, 4, 0, 32, 7), (4, 8, 0, 32, 26)))
    write_street(tmp_path / "source", "val", "bern", blocks())
    convert(tmp_path / "source", tmp_path / "out", "--classes", "car")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("car",), "ignore_index": 128}  # what Cityscapes leaves out still does not count
    assert np.array_equal(labels["train/ulm_000"], blocks((0, 24, 0, 32, IGNORED), (0, 4, 0, 32, 0), (4, 8, 0, 32, 1)))
    write_mask(
        tmp_path / "source" / "gtFine" / "val" / "bern" / "bern_000_gtFine_labelIds.png", blocks((0, 1, 0, 1, 77))
    )
    done = run("convert", tmp_path / "source", tmp_path / "again")
    assert "has invalid labels (77), expected 0 to 33" in done.stderr


def write_ade(folder, names=None):
    for split, values in (("training", blocks((0, 4, 0, 32, 1), (4, 8, 0, 32, 150))), ("validation", blocks())):
        write_image(folder / "images" / split / f"ADE_{split}.jpg")
        write_mask(folder / "annotations" / split / f"ADE_{split}.png", values)
    if names:
        rows = [f"{number}\t0.1\t1\t1\t1\t{name}" for number, name in enumerate(names, 1)]
        (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))


def test_ade20k_starts_at_1_and_0_does_not_count(tmp_path):
    names = ["wall", "building, edifice", *(f"thing {number}" for number in range(146)), "door", "door, double"]
    write_ade(tmp_path / "source", names)
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings["classes"][:2] == ("wall", "building") and settings["classes"][148:] == ("door 149", "door 150")
    assert np.array_equal(
        labels["train/ADE_training"], blocks((0, 24, 0, 32, IGNORED), (0, 4, 0, 32, 0), (4, 8, 0, 32, 149))
    )
    assert (labels["val/ADE_validation"] == IGNORED).all()


def test_ade20k_without_its_table_of_names(tmp_path):
    write_ade(tmp_path / "source")
    done = convert(tmp_path / "source", tmp_path / "out")
    table = tmp_path / "source" / "objectInfo150.txt"
    assert done.stderr == f"note: {table} is missing, so the classes are named class 1 to class 150\n"
    assert converted(tmp_path / "out")[1]["classes"][149] == "class 150"
    write_ade(tmp_path / "source", ["wall"])
    done = run("convert", tmp_path / "source", tmp_path / "again")
    assert done.stderr == f"error: {table}: lists 1 classes, expected 150 in lines separated by tabs\n"
