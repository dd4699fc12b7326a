"""COCO's JSON to masks, compared with pycocotools' own drawing of the same annotations."""

import json
import tracemalloc

import numpy as np
import pytest
from layouts import SIZE, blocks, convert, converted, run, write_image
from pycocotools.coco import COCO

from runtime.rle import coco_encode
from unet_core.conversion.coco import Regions

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' arrays

BLOCK = blocks((3, 9, 20, 28, 1))
HEIGHT, WIDTH = SIZE
POLYGONS = [[2, 2, 12.5, 2, 12.5, 9, 2, 9], [4, 12, 9, 20, 2.25, 19]]


def annotation(number, image, category, segmentation, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
        **more,
    }


DOG = annotation(2, 2, 3, coco_encode(BLOCK))


def write_coco(path, names=("a.png", "b.png"), annotations=None, **changes):
    """Two images: polygons of a cat and a dog's run lengths as text; a crowd's as a list on the second."""
    if annotations is None:
        counts = coco_encode(BLOCK, compressed=False)
        annotations = [
            annotation(1, 1, 7, POLYGONS),
            annotation(2, 1, 3, coco_encode(BLOCK)),
            annotation(3, 2, 3, counts, iscrowd=1),
        ]
    content = {
        "images": [
            {"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH} for index, name in enumerate(names, 1)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def by_pycocotools(path, image, categories):
    """Labels as pycocotools draws them: 1, 2, ... for the categories, smaller regions above larger ones."""
    coco = COCO(str(path))
    masks = [(coco.annToMask(entry), entry["category_id"]) for entry in coco.loadAnns(coco.getAnnIds(imgIds=image))]
    labels = np.zeros(SIZE, np.uint8)
    for mask, category in sorted(masks, key=lambda entry: -int(entry[0].sum())):
        labels[mask == 1] = categories.index(category) + 1
    return labels


def test_polygons_and_run_lengths_are_what_pycocotools_draws(tmp_path):
    path = write_coco(tmp_path / "source" / "annotations" / "instances_train2017.json")
    images = [
        write_image(tmp_path / "source" / "train2017" / name, index) for index, name in enumerate(("a.png", "b.png"))
    ]
    done = convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("background", "cat", "dog")}
    assert {name: found.tolist() for name, found in labels.items()} == {
        f"train/{name}": by_pycocotools(path, number, [7, 3]).tolist() for number, name in ((1, "a"), (2, "b"))
    }
    assert [np.count_nonzero(labels["train/a"] == value) for value in (1, 2)] == [102, 48]
    assert (tmp_path / "out" / "train_images" / "a.png").stat().st_ino == images[0].stat().st_ino
    out = tmp_path / "out"
    assert done.stdout == (
        f"{tmp_path / 'source'} (coco) -> {out}: 2 in train_images (2 linked), 3 classes: background, cat, dog\n"
        f"next: unet-data check {out} --config {out}/dataset.toml, then: unet-train {out} --config {out}/dataset.toml "
        "--out RUN\n"
    )


def test_chosen_classes_in_their_order_and_one_alone(tmp_path):
    path = write_coco(tmp_path / "source" / "result.json")
    for index, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "source" / "images" / name, index)
    convert(path, tmp_path / "two", "--classes", "dog,cat", "--copy")
    labels, settings = converted(tmp_path / "two")
    assert settings == {"classes": ("background", "dog", "cat")}
    assert np.array_equal(labels["train/a"], by_pycocotools(path, 1, [3, 7]))
    assert (tmp_path / "two" / "train_images" / "a.png").stat().st_nlink == 1
    convert(path, tmp_path / "one", "--classes", "dog")
    labels, settings = converted(tmp_path / "one")
    assert settings == {"classes": ("dog",)}
    assert np.array_equal(labels["train/a"], BLOCK) and np.array_equal(labels["train/b"], BLOCK)
    done = run("convert", path, tmp_path / "none", "--classes", "horse")
    assert (done.exit_code, done.stderr) == (2, f"error: --classes: {path} has no 'horse', it has cat, dog\n")


def test_categories_without_annotations_are_no_classes_unless_named(tmp_path):
    """Roboflow's files begin with a category that stands for all others."""
    categories = [{"id": 0, "name": "animals"}, {"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    polygon = [annotation(1, 1, 7, POLYGONS)]
    path = write_coco(tmp_path / "source" / "a.json", annotations=polygon, categories=categories)
    for index, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "source" / name, index)
    done = convert(path, tmp_path / "out")
    assert converted(tmp_path / "out")[1] == {"classes": ("cat",)}
    assert done.stderr == "note: 2 categories have no annotation and no class: animals, dog; --classes names some\n"
    assert convert(path, tmp_path / "named", "--classes", "cat,dog").stderr == ""
    assert converted(tmp_path / "named")[1] == {"classes": ("background", "cat", "dog")}


def test_splits_are_folders_as_roboflow_writes_them(tmp_path):
    for split in ("train", "valid", "test"):
        write_coco(tmp_path / "source" / split / "_annotations.coco.json", (f"{split}.png",), [])
        write_image(tmp_path / "source" / split / f"{split}.png")
    convert(tmp_path / "source", tmp_path / "out")
    assert sorted(converted(tmp_path / "out")[0]) == ["train/train", "val/valid"]
    assert [path.name for path in (tmp_path / "out" / "test_images").iterdir()] == ["test.png"]


def test_one_name_in_two_folders_of_a_split_stays_two_images(tmp_path):
    names = ("north/1.png", "south/1.png")
    write_coco(tmp_path / "source" / "a.json", names)
    for index, name in enumerate(names):
        write_image(tmp_path / "source" / name, index)
    convert(tmp_path / "source", tmp_path / "out")
    assert sorted(converted(tmp_path / "out")[0]) == ["train/north-1", "train/south-1"]


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3, 4]], "has a polygon of 4 numbers, expected x, y of 3 points or more"),
        ([[1, 2, 3, 4, 5, 1e9]], "has a polygon with coordinates far outside its image of 32x24"),
        ([[1, 2, 3, 4, 5, "x"]], "has a polygon with coordinates that are no numbers"),
        ([[1, 2, 3, 4, 5, 10**400]], "has a polygon with coordinates that are no numbers"),
        ([[]], "has a polygon of 0 numbers, expected x, y of 3 points or more"),
        ([1, 2, 3, 4, 5, 6], "has a polygon of 0 numbers, expected x, y of 3 points or more"),
        ([], "has an annotation without a region (a box alone?), expected polygons or run lengths"),
        ({"size": [2, 2], "counts": [4]}, "has run lengths for 2x2, expected 32x24"),
    ],
)
def test_malformed_regions_are_refused_or_left_out(tmp_path, segmentation, problem):
    path = write_coco(tmp_path / "source" / "a.json", annotations=[annotation(1, 1, 7, segmentation), DOG])
    for index, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "source" / name, index)
    done = run("convert", path, tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: 1 of 2 pairs cannot be used, fix or remove them: ")
    assert problem.partition(" (")[0] in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    done = convert(path, tmp_path / "out", "--skip-bad")
    assert done.stderr == f"note: 1 of 2 images left out; {tmp_path / 'out' / 'left_out.csv'} lists them\n"
    assert problem in (tmp_path / "out" / "left_out.csv").read_text()
    assert [*converted_names(tmp_path / "out")] == ["b.png"]


def converted_names(out):
    return sorted(path.name for path in (out / "train_images").iterdir())


def test_images_that_are_missing_twice_there_or_of_another_size(tmp_path):
    path = write_coco(tmp_path / "source" / "a.json")
    write_image(tmp_path / "source" / "x" / "a.png")
    write_image(tmp_path / "source" / "y" / "a.png")
    done = run("convert", path, tmp_path / "out")
    assert done.stderr == (
        "error: 2 of 2 pairs cannot be used, fix or remove them: is there 2 times below "
        f"{tmp_path / 'source'}, name one folder with --images: x/a.png; is missing, expected it below "
        f"{tmp_path / 'source'}, add it, or name its folder with --images: source/b.png\n"
    )
    write_image(tmp_path / "source" / "y" / "b.png", size=(8, 9))
    done = run("convert", path, tmp_path / "out", "--images", tmp_path / "source" / "y")
    assert done.stderr == (
        "error: 1 of 2 pairs cannot be used, fix or remove them: is 9x8, its annotations are for 32x24, use the image "
        "that was annotated: y/b.png\n"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"categories": [{"id": 7}]}, "has a category without id or name; expected both"),
        ({"categories": [{"id": 7, "name": "a"}] * 2}, "has two categories with the id 7; expected different ones"),
        (
            {"annotations": [{"category_id": 9}]},
            "annotation 0 has no category of the file; expected an id in categories",
        ),
        (
            {"annotations": [{"category_id": [7]}]},
            "annotation 0 has no category of the file; expected an id in categories",
        ),
        ({"images": [{"id": 1}]}, "image 0 has no id or no file_name; expected both"),
        (
            {"images": [{"id": [1], "file_name": "a.png"}, {"id": [1], "file_name": "b.png"}]},
            "has two images with the id [1]; expected different ones",
        ),
    ],
)
def test_files_that_do_not_fit_the_format_are_refused(tmp_path, changes, problem):
    path = write_coco(tmp_path / "source" / "a.json", **changes)
    done = run("convert", path, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (2, f"error: {path}: {problem}\n")


def test_annotations_of_no_image_are_told(tmp_path):
    """As where ids are numbers in one list and text in the other."""
    path = write_coco(tmp_path / "source" / "a.json", annotations=[annotation(1, "1", 7, POLYGONS), DOG])
    for index, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "source" / name, index)
    done = convert(path, tmp_path / "out")
    assert done.stderr == f"note: {path}: 1 annotation has an image_id that no image has, and is left out\n"
    path.write_text(path.read_text().replace('"id": 1', '"id": "1"'))
    assert convert(path, tmp_path / "again").stderr == ""
    assert np.array_equal(converted(tmp_path / "again")[0]["train/a"], by_pycocotools(path, "1", [7, 3]))


def test_words_in_names_of_images_and_of_the_source_are_no_splits(tmp_path):
    """A picture of a train in the validation set stays there, and a folder may be called anything."""
    source, names = tmp_path / "my test", ("train_station.png", "test_2.png")
    write_coco(source / "annotations" / "instances_val2017.json", names)
    write_coco(source / "annotations" / "instances_train2017.json", ("valley.png",), [])
    for index, name in enumerate((*names, "valley.png")):
        write_image(source / "images" / name, index)
    convert(source, tmp_path / "out")
    assert sorted(converted(tmp_path / "out")[0]) == ["train/valley", "val/test_2", "val/train_station"]
    done = convert(source / "annotations" / "instances_val2017.json", tmp_path / "val", "--images", source / "images")
    expected = "has no train_images, so there is nothing to train on; convert those of training, too"
    assert done.stderr == f"note: {tmp_path / 'val'}: {expected}\n"
    path = write_coco(source / "all.json", names)
    done = convert(path, tmp_path / "alone", "--images", source / "images")
    assert "2 in train_images (2 linked)" in done.stdout


def test_a_source_without_images_is_refused(tmp_path):
    path = write_coco(tmp_path / "source" / "a.json", (), [])
    done = run("convert", path, tmp_path / "out")
    expected = "expected a JSON file of images, annotations and categories"
    assert (done.exit_code, done.stderr) == (2, f"error: {path}: has no images to convert (layout coco); {expected}\n")
    assert not (tmp_path / "out").exists()


def test_regions_of_a_large_image_are_in_memory_one_at_a_time():
    """Drawing 300 regions takes the memory of a few; of regions of one size the later one lies above."""
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    entries = [annotation(number, 1, 7 if number % 2 else 3, square) for number in range(300)]
    draw = Regions(entries, {7: "cat", 3: "dog"}, {"cat": 1, "dog": 2}, (None, None))
    tracemalloc.start()
    try:
        labels = draw((600, 500))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * labels.nbytes  # all of them would take 300 times as much
    assert np.unique(labels[10:60, 10:60]) == 1 and np.count_nonzero(labels) == 2500


def test_more_classes_than_labels_are_refused(tmp_path):
    """As LVIS has them: an index of 255 would mean that a pixel does not count."""
    categories = [{"id": number, "name": f"thing {number}"} for number in range(255)]
    entries = [annotation(number, 1, number, POLYGONS) for number in range(255)]
    path = write_coco(tmp_path / "source" / "a.json", annotations=entries, categories=categories)
    for index, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "source" / name, index)
    done = run("convert", path, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {path}: has 256 classes with the background, expected at most 255; choose some with --classes\n",
    )
    chosen = ",".join(f"thing {number}" for number in range(1, 255))
    assert convert(path, tmp_path / "out", "--classes", chosen).stderr == ""
    assert converted(tmp_path / "out")[0]["train/a"].max() == 254
    done = run("convert", path, tmp_path / "again", "--classes", "thing 1,thing 2,thing 1")
    assert done.stderr == ("error: --classes: found 'thing 1' twice, expected different names\n")
