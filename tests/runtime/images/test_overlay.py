"""Pictures of an answer: overlay, cut-out, and what a notebook shows."""

import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from answers import IMAGE, ONE, THREE, TIMES
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ConfigError
from runtime.images import overlay
from runtime.images.overlay import COLOURS
from runtime.result import PREVIEW, Segmentation


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


@pytest.mark.parametrize("pixels", [1, 40, 2**20])
def test_large_pictures_are_worked_on_in_strips(monkeypatch, pixels):
    random = np.random.default_rng(4)
    result = Segmentation(
        probability=random.dirichlet(np.ones(3), (23, 7)).transpose(2, 0, 1).astype(np.float32),
        image=random.integers(0, 256, (23, 7, 3), np.uint8),
        output=THREE,
    )
    monkeypatch.setattr(overlay, "STRIP", pixels)
    assert np.array_equal(result.mask, result.probability.argmax(axis=0))
    tint = np.array(COLOURS, np.float32)[result.mask.astype(int) - 1]
    expected = np.where(
        result.mask[:, :, None] > 0, result.image + np.float32(0.3) * (tint - result.image), result.image
    )
    assert np.array_equal(result.overlay(0.3), np.rint(expected))
    assert np.array_equal(result.cutout("road", soft=True)[:, :, 3], np.rint(255 * result.probability[0]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2, 3), (2, 3)), ((1200, 1800), (400, 600)), ((1800, 900), (600, 300)), ((1, 5000), (1, 600))],
    ids=str,
)
def test_picture_in_a_notebook_is_a_small_overlay(size, expected):
    probability = np.zeros((1, *size), np.float32)
    probability[:, :, size[1] // 2 :] = 1
    result = Segmentation(probability=probability, image=np.full((*size, 3), 100, np.uint8), output=ONE)
    with Image.open(io.BytesIO(result._repr_png_())) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (*expected, 3)
    assert max(pixels.shape) <= PREVIEW
    assert pixels[0, 0].tolist() == [100, 100, 100]
    assert pixels[-1, -1].tolist() == [178, 82, 82]


def test_html_in_a_notebook_has_a_legend_in_the_colours_of_the_overlay(several):
    several = replace(several, output=replace(THREE, classes=("road", "<b>car", "tree")), times=TIMES)
    text = several._repr_html_()
    assert re.findall(r"rgb(\(.*?\))", text) == [str(COLOURS[1]), str(COLOURS[0])]
    assert [html.unescape(found) for found in re.findall(r"([^ >]+ [0-9.]+%)", text)] == [
        "tree 50.0%",
        "road 33.3%",
        "<b>car 16.7%",
    ]
    assert text.endswith(f"3x2 pixels, {TIMES}")
