"""Segmentation: masks, regions and what describes them say exactly what the probabilities say."""

import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from answers import IMAGE, ONE, TIMES
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ConfigError, ImageError
from runtime.result import Segmentation, mask_of

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "runtime.md"
STAND_IN_ANNOTATOR = SimpleNamespace(annotate=lambda scene, detections: scene)


def test_mask_is_one_strictly_above_the_threshold(single):
    assert single.mask.dtype == np.uint8
    assert single.mask.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert single.shape == single.size == (2, 3)


@pytest.mark.parametrize(("threshold", "expected"), [(0.25, [0, 0, 1, 1]), (0.5, [0, 0, 0, 1]), (0.75, [0, 0, 0, 0])])
def test_mask_obeys_the_threshold_of_the_card(threshold, expected):
    probability = np.array([[[0, 0.25, 0.5, 0.75]]], np.float32)
    assert mask_of(probability, OutputSpec(threshold=threshold))[0].tolist() == expected


def test_mask_of_several_classes_is_the_most_probable(several):
    assert several.mask.dtype == np.uint8
    assert several.mask.tolist() == [[0, 2, 1], [2, 2, 0]]


def test_two_equal_probabilities_give_the_first_class():
    output = OutputSpec(classes=("a", "b"), activation="softmax")
    assert mask_of(np.full((2, 1, 1), 0.5, np.float32), output).tolist() == [[0]]


def test_not_a_number_is_background():
    assert mask_of(np.full((1, 1, 1), np.nan, np.float32), ONE).tolist() == [[0]]


@pytest.mark.parametrize(("classes", "kind"), [(256, np.uint8), (257, np.uint16)])
def test_many_classes_get_wider_masks(classes, kind, tmp_path):
    output = OutputSpec(classes=tuple(map(str, range(classes))), activation="softmax")
    probability = np.zeros((classes, 1, 2), np.float32)
    probability[-1, 0, 1] = 1
    result = Segmentation(probability=probability, image=IMAGE[:1, :2], output=output)
    assert result.mask.dtype == kind
    assert result.mask.tolist() == [[0, classes - 1]]
    with Image.open(result.save(tmp_path / "mask.png")) as picture:
        assert np.asarray(picture).tolist() == [[0, classes - 1]]


@pytest.mark.parametrize(
    ("probability", "found"),
    [
        (np.zeros((2, 3), np.float32), r"float32 \[2, 3\]"),
        (np.zeros((1, 3, 2), np.float32), r"float32 \[1, 3, 2\]"),
        (np.zeros((2, 2, 3), np.float32), r"float32 \[2, 2, 3\]"),
        (np.zeros((1, 2, 3)), r"float64 \[1, 2, 3\]"),
    ],
)
def test_probability_of_another_image_is_refused(probability, found):
    expected = r"expected float32 \[1, 2, 3\]: classes, height and width of the image"
    with pytest.raises(ImageError, match=f"^probability: found {found}, {expected}$"):
        Segmentation(probability=probability, image=IMAGE, output=ONE)


def test_another_threshold_needs_no_other_run(single):
    assert single.threshold(0.495).mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert single.threshold(np.float64(0.9)).mask.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert single.threshold(0.9).probability is single.probability
    assert single.mask.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("threshold", [0, 1, -0.5, float("nan"), "half", None])
def test_threshold_out_of_its_bounds_is_refused(single, threshold):
    with pytest.raises(ConfigError) as caught:
        single.threshold(threshold)
    assert str(caught.value) == f"threshold: found {threshold!r}, expected a number between 0 and 1"


def test_threshold_of_several_classes_is_refused(several):
    with pytest.raises(ConfigError) as caught:
        several.threshold(0.5)
    assert str(caught.value) == (
        "threshold: is for one class, this model has 3 and takes the most probable; "
        "compare result.probability[index] with a number of your own"
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [[0, 1, 1], [1, 1, 0]]),
        ("tree", [[0, 1, 0], [1, 1, 0]]),
        (2, [[0, 1, 0], [1, 1, 0]]),
        (np.int64(1), [[0, 0, 1], [0, 0, 0]]),
        (["road", 1, "car"], [[1, 0, 1], [0, 0, 1]]),
        (range(3), [[1, 1, 1], [1, 1, 1]]),
    ],
    ids=str,
)
def test_region_of_classes_by_name_or_index(several, classes, expected):
    region = several.region(classes)
    assert region.dtype == np.bool_
    assert region.tolist() == expected
    assert several.area(classes) == np.sum(expected)


@pytest.mark.parametrize("classes", [None, "car", 0])
def test_the_only_class_is_the_foreground(single, classes):
    assert single.region(classes).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert single.box(classes) == (0, 1, 3, 2)
    assert single.rle(classes) == "4 3"
    assert single.coco_rle(classes) == {"size": [2, 3], "counts": "111000"}
    assert single.coco_rle(classes, compressed=False)["counts"] == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("wanted", ["truck", 3, -1, True, 1.0, None])
def test_unknown_class_is_refused(several, wanted):
    with pytest.raises(ConfigError) as caught:
        several.area([wanted])
    expected = f"classes: found {wanted!r}, expected one of 'road', 'car', 'tree', or an index from 0 to 2"
    assert str(caught.value) == expected


def test_no_class_at_all_is_refused(several):
    with pytest.raises(ConfigError, match="classes: found an empty list, expected at least one class, or None"):
        several.box([])


def test_outlines_are_those_of_the_region(several):
    (part,) = several.polygons("tree")
    assert part.outer.min(axis=0).tolist() == [0, 0]
    assert part.outer.max(axis=0).tolist() == [2, 2]
    assert np.array_equal(several.contours("tree")[0], part.outer)
    assert [len(ring) for ring in several.contours(["road", "car"])] == [4, 4]
    assert several.box("tree") == (0, 0, 2, 2)


def test_contours_list_each_outer_one_before_its_holes():
    probability = np.pad(np.ones((1, 3, 3), np.float32), ((0, 0), (1, 1), (1, 3)))
    probability[0, 2, 2] = 0
    probability[0, 0, 6] = 1
    result = Segmentation(probability=probability, image=np.zeros((5, 7, 3), np.uint8), output=ONE)
    boxes = [(*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()) for ring in result.contours()]
    assert boxes == [(1, 1, 4, 4), (2, 2, 3, 3), (6, 0, 7, 1)]


def test_what_is_changed_in_the_mask_shows_in_what_is_made_of_it(single):
    single.mask[1, 0] = 0
    assert single.box() == (1, 1, 3, 2)
    assert single.rle() == "5 2"
    assert np.array_equal(single.overlay()[1, 0], IMAGE[1, 0])
    assert pickle.loads(pickle.dumps(single)).area() == 2
    assert single.threshold(0.5).area() == 3


def test_an_array_of_the_result_is_its_mask(single):
    assert np.asarray(single) is single.mask
    assert np.array(single) is not single.mask
    assert np.array_equal(np.array(single), single.mask)
    assert np.asarray(single, bool).tolist() == [[False] * 3, [True] * 3]
    assert np.asarray(single, copy=True) is not single.mask
    with pytest.raises(ValueError, match="copy"):
        np.asarray(single, np.float32, copy=False)


def test_times_add_up_and_read_well():
    assert TIMES.total == 27.75
    assert str(TIMES) == "27.8 ms (decode 4.0, fit 1.0, transfer 0.5, infer 20.2, restore 2.0)"


def test_repr_is_short_and_shows_no_pixels(single, several):
    assert repr(single) == "Segmentation(3x2, car 50.0%)"
    assert repr(replace(single, times=TIMES)) == "Segmentation(3x2, car 50.0%, 27.8 ms)"
    assert repr(several) == "Segmentation(3x2, tree 50.0%, road 33.3%, car 16.7%)"
    assert repr(replace(single, probability=np.zeros((1, 2, 3), np.float32))) == "Segmentation(3x2, car 0.0%)"
    output = OutputSpec(classes=tuple(f"class\n{index}" for index in range(6)), activation="softmax")
    many = replace(several, probability=np.eye(6, dtype=np.float32).reshape(6, 2, 3), output=output)
    shares = "class 0 16.7%, class 1 16.7%, class 2 16.7%, class 3 16.7%"
    assert repr(many) == f"Segmentation(3x2, {shares}, 2 more)"


def test_threads_share_one_mask():
    result = Segmentation(
        probability=np.random.default_rng(8).random((5, 300, 300), np.float32),
        image=np.zeros((300, 300, 3), np.uint8),
        output=OutputSpec(classes=("a", "b", "c", "d", "e"), activation="softmax"),
    )
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda _: result.mask, range(8)))
    assert {id(mask) for mask in masks} == {id(result.mask)}


def test_the_documented_examples_run(write_model, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    write_model("brightness")
    pixels = np.full((40, 60, 3), 30, np.uint8)
    pixels[10:30, 20:50] = 220
    Image.fromarray(pixels).save(tmp_path / "car.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        sys.modules,
        "supervision",
        SimpleNamespace(Detections=SimpleNamespace, MaskAnnotator=lambda: STAND_IN_ANNOTATOR),
    )
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENTATION), "exec"), names)
    assert names["result"].box() == (20, 10, 50, 30)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "mask.png",
        "cutout.png",
        "overlay.jpg",
        "car.json",
        "car.npz",
    }
