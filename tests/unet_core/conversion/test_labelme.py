"""LabelMe's files of shapes to masks."""

import base64
import io
import json
import tracemalloc

import numpy as np
import pytest
from layouts import SIZE, blocks, convert, converted, run, write_image
from PIL import Image

from unet_core.conversion.labelme import read_labelme
from unet_core.conversion.samples import ConvertOptions
from unet_core.data.labels import IGNORED

HEIGHT, WIDTH = SIZE


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, **more}


def write_labelme(folder, name, shapes, data=None, image=True):
    """A file of shapes, and unless `image` is false the picture beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        write_image(folder / f"{name}.png")
    content = {"version": "5.4.1", "imagePath": f"{name}.png", "imageData": data, "shapes": shapes}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def png(values):
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


CAT = shape("cat", "polygon", [[2, 2], [12, 2], [12, 9], [2, 9]])
DOG = shape("dog", "rectangle", [[20, 9], [10, 5]])


def test_later_shapes_lie_above_and_some_do_not_count(tmp_path):
    ignored = shape("__ignore__", "rectangle", [[0, 20], [32, 24]])
    hole = shape("_background_", "mask", [[3, 3], [5, 4]], mask=png([[0, 255, 255], [0, 0, 255]]))
    line = shape("cat", "linestrip", [[0, 0], [5, 5]])
    write_labelme(tmp_path / "source" / "train", "a", [CAT, DOG, ignored, hole, line])
    write_labelme(tmp_path / "source" / "val", "b", [])
    done = convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("background", "cat", "dog"), "ignore_index": 255}
    expected = blocks((2, 9, 2, 12, 1), (5, 9, 10, 20, 2), (20, 24, 0, 32, IGNORED), (3, 4, 4, 6, 0), (4, 5, 5, 6, 0))
    assert labels["train/a"].tolist() == expected.tolist()
    assert not labels["val/b"].any()
    assert done.stderr == "note: 1 line or points left out, which have no area\n"


def test_one_class_and_pixels_that_do_not_count(tmp_path):
    write_labelme(tmp_path / "source", "a", [CAT, shape("__ignore__", "rectangle", [[0, 20], [32, 24]])])
    write_labelme(tmp_path / "source", "b", [CAT])
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("cat",), "ignore_index": 128}
    assert labels["train/a"].tolist() == blocks((2, 9, 2, 12, 1), (20, 24, 0, 32, IGNORED)).tolist()


def test_a_circle_is_as_large_as_its_area(tmp_path):
    write_labelme(tmp_path / "source", "a", [shape("cat", "circle", [[16, 12], [16, 20]])])
    write_labelme(tmp_path / "source", "b", [])
    convert(tmp_path / "source", tmp_path / "out")
    found = converted(tmp_path / "out")[0]["train/a"]
    assert np.count_nonzero(found) == pytest.approx(np.pi * 8**2, abs=10)
    assert found[12, 16] and found[12, 9] and not found[12, 7]


def test_an_image_inside_the_file_is_written(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    write_labelme(tmp_path / "source", "a", [CAT], png(pixels), image=False)
    write_labelme(tmp_path / "source", "b", [CAT])
    done = convert(tmp_path / "source", tmp_path / "out")
    assert "2 in train_images (1 copied, 1 linked)" in done.stdout
    with Image.open(tmp_path / "out" / "train_images" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(
    ("shapes", "data", "problem"),
    [
        ([CAT], "!", "has imageData that is not base64, and its image is missing"),
        ([CAT], None, "its image a.png is missing, put it beside the file, or name its folder with --images"),
        (
            [shape("cat", "polygon", [[1, 2], "x"])],
            png(blocks()),
            "has a polygon of LabelMe with points that make no sense",
        ),
        (
            [shape("cat", "polygon", [[1, 10**400], [2, 3], [4, 5]])],
            png(blocks()),
            "has a polygon of LabelMe with points that make no sense",
        ),
        (
            [shape("cat", "mask", [[float("inf"), 3], [32, 4]], mask=png([[1]]))],
            png(blocks()),
            "has a mask of LabelMe with points that make no sense",
        ),
        (
            [shape("cat", "star", [[1, 2]])],
            png(blocks()),
            "has a shape of the kind 'star', expected polygon, rectangle, circle or mask",
        ),
        (
            [shape("cat", "mask", [[30, 3], [32, 4]], mask=png([[1] * 9]))],
            png(blocks()),
            "has a mask of LabelMe that reaches outside its image of 32x24",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, shapes, data, problem):
    write_labelme(tmp_path / "source", "a", shapes, data, image=False)
    write_labelme(tmp_path / "source", "b", [CAT])
    done = run("convert", tmp_path / "source", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: 1 of 2 pairs cannot be used, fix or remove them: {problem}: ")


def test_other_json_among_the_files_is_named(tmp_path):
    write_labelme(tmp_path / "source", "a", [CAT])
    (tmp_path / "source" / "z.json").write_text("{}")
    done = run("convert", tmp_path / "source", tmp_path / "out")
    path = tmp_path / "source" / "z.json"
    assert (
        done.stderr
        == f"error: {path}: is not a file of LabelMe (no imagePath, or shapes without labels); move it elsewhere\n"
    )
    path.write_text("{")
    done = run("convert", tmp_path / "source", tmp_path / "out")
    assert done.stderr.startswith(f"error: {path}: is not JSON (Expecting property name")


def test_copies_of_images_in_the_files_are_not_kept_in_memory(tmp_path):
    """LabelMe writes each image into its file, too: here 200 kB of 30."""
    for index in range(30):
        write_labelme(tmp_path, f"{index}", [CAT], "A" * 200_000)
    tracemalloc.start()
    try:
        found = read_labelme(tmp_path, ConvertOptions())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.samples) == 30 and peak < 3_000_000
