"""Segmentation: masks, overlays and files say exactly what the probabilities say."""

import numpy as np
import pytest
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ConfigError, OutputError
from runtime.image import load_labels
from runtime.result import COLOURS, Segmentation, mask_of

IMAGE = np.random.default_rng(2).integers(0, 256, (2, 3, 3), np.uint8)
ONE = OutputSpec(classes=("car",), threshold=0.5)
THREE = OutputSpec(classes=("road", "car", "tree"), activation="softmax")


@pytest.fixture
def single():
    probability = np.array([[[0, 0.49, 0.5], [0.51, 1, np.nextafter(np.float32(0.5), np.float32(1))]]], np.float32)
    return Segmentation(probability=probability, image=IMAGE, output=ONE)


@pytest.fixture
def several():
    """Classes [[0, 2, 1], [2, 2, 0]]."""
    probability = np.full((3, 2, 3), 0.1, np.float32)
    for (row, column), index in np.ndenumerate([[0, 2, 1], [2, 2, 0]]):
        probability[index, row, column] = 0.8
    return Segmentation(probability=probability, image=IMAGE, output=THREE)


def test_mask_is_one_strictly_above_the_threshold(single):
    assert single.mask.dtype == np.uint8
    assert single.mask.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert single.size == (2, 3)


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


@pytest.mark.parametrize("opacity", [0, 0.25, 0.5, 1])
def test_overlay_tints_the_foreground_and_nothing_else(several, opacity):
    overlay = several.overlay(opacity)
    assert overlay.dtype == np.uint8
    for place, index in np.ndenumerate(several.mask.astype(int)):
        colour = np.array(COLOURS[index - 1])
        expected = np.rint(IMAGE[place] * (1 - opacity) + colour * opacity) if index else IMAGE[place]
        assert np.abs(overlay[place] - expected).max() <= (1 if index and 0 < opacity < 1 else 0)


@pytest.mark.parametrize("opacity", [-0.1, 3, float("nan")])
def test_overlay_opacity_out_of_bounds_is_refused(single, opacity):
    with pytest.raises(ConfigError, match=f"opacity: found {opacity}, expected 0 to 1"):
        single.overlay(opacity)


def test_overlay_of_a_grey_image_is_rgb(single):
    grey = Segmentation(probability=single.probability, image=np.full((2, 3, 1), 100, np.uint8), output=ONE)
    overlay = grey.overlay(1)
    assert overlay[0].tolist() == [[100, 100, 100]] * 3
    assert overlay[1].tolist() == [list(COLOURS[0])] * 3


def test_overlay_colours_repeat(several):
    output = OutputSpec(classes=tuple(map(str, range(9))), activation="softmax")
    probability = np.eye(9, dtype=np.float32)[:, None]  # [9, 1, 9]: class c at column c
    overlay = Segmentation(probability=probability, image=np.zeros((1, 9, 3), np.uint8), output=output).overlay(1)
    assert overlay[0].tolist() == [[0, 0, 0], *map(list, COLOURS), *map(list, COLOURS[:2])]


def test_overlay_leaves_the_image_alone(single):
    before = single.image.copy()
    single.overlay(1)
    assert np.array_equal(single.image, before)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif", ".tiff", ".PNG"])
def test_mask_of_one_class_is_saved_as_0_and_255(single, tmp_path, suffix):
    path = single.save(str(tmp_path / f"mask{suffix}"))
    assert path == tmp_path / f"mask{suffix}"
    assert load_labels(path).tolist() == [[0, 0, 0], [255, 255, 255]]
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2], [2]], ids=str)
def test_classes_are_saved_as_their_indices_even_if_some_do_not_occur(tmp_path, suffix, kept):
    mask = np.resize(kept, (4, 5))
    probability = (np.arange(3)[:, None, None] == mask).astype(np.float32)
    result = Segmentation(probability=probability, image=np.zeros((4, 5, 3), np.uint8), output=THREE)
    assert np.array_equal(load_labels(result.save(tmp_path / f"mask{suffix}")), mask)


@pytest.mark.parametrize("name", ["mask.jpg", "mask.webp", "mask", "mask.png.jpeg"])
def test_lossy_or_unknown_suffix_is_refused(single, tmp_path, name):
    with pytest.raises(OutputError) as caught:
        single.save(tmp_path / name)
    expected = "would not keep a mask exactly; expected one of .bmp, .gif, .png, .tif, .tiff"
    assert str(caught.value) == f"{tmp_path / name}: {expected}"
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_an_output_error(single, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: cannot create this folder \(file exists\)"):
        single.save(tmp_path / "file" / "mask.png")


def test_repr_is_short_and_shows_no_pixels(single):
    assert repr(single) == "Segmentation(3x2, classes=('car',))"
