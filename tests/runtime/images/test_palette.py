"""Palette pictures: other programs read class indices, and the legend names them."""

import dataclasses

import cv2
import numpy as np
import pytest
from answers import ONE, THREE, answer_of, overlapping_classes
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import OutputError
from runtime.images.palette import PALETTE, legend_csv, legend_of, voc_colour
from runtime.result import Segmentation


def test_no_two_values_have_one_colour():
    assert len(PALETTE) == len(set(PALETTE)) == 256
    # the first colours of the PASCAL VOC development kit
    assert [voc_colour(index) for index in range(4)] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert (voc_colour(20), voc_colour(255)) == ((0, 64, 128), (224, 224, 192))


@pytest.mark.parametrize(("output", "values"), [(ONE, [[0, 1, 1]]), (THREE, [[0, 2, 1]])])
def test_pixels_are_values_of_the_mask_in_the_colours_of_the_legend(tmp_path, output, values):
    answer = answer_of(values, output)
    path = answer.save(tmp_path / "a.png", format="palette")
    with Image.open(path) as picture:
        assert (picture.mode, np.asarray(picture).tolist()) == ("P", values)
        colours = np.asarray(picture.convert("RGB"))
    legend = {entry.value: entry.colour for entry in answer.legend()}
    assert [[tuple(map(int, pixel)) for pixel in row] for row in colours] == [[legend[value] for value in values[0]]]
    assert cv2.imread(str(path))[:, :, ::-1].tolist() == colours.tolist()


def test_a_legend_names_the_values():
    assert legend_of(ONE) == [(0, "background", (0, 0, 0)), (1, "car", (255, 64, 64))]
    assert legend_csv(THREE) == b"value,class,colour\n0,road,#000000\n1,car,#ff4040\n2,tree,#40a0ff\n"
    odd = dataclasses.replace(THREE, classes=("a\rb", "\ud800", "c,d"))
    assert legend_csv(odd) == b'value,class,colour\n0,"a\rb",#000000\n1,?,#ff4040\n2,"c,d",#40a0ff\n'


def test_classes_that_a_palette_cannot_hold_are_refused(tmp_path):
    many = OutputSpec(classes=tuple(map(str, range(257))), activation="softmax")
    result = Segmentation(
        probability=np.zeros((257, 1, 1), np.float32), image=np.zeros((1, 1, 3), np.uint8), output=many
    )
    with pytest.raises(OutputError) as caught:
        result.save(tmp_path / "a.png", format="palette")
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'}: keeps at most 256 classes, the mask may have more; take mask (.png) or tiff (.tif)"
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"^legend: keeps at most 256 classes, "):
        result.legend()
    for call in (overlapping_classes().legend, lambda: overlapping_classes().save("legend", "palette")):
        with pytest.raises(
            OutputError, match=r"^legend: holds one class for each pixel, and this model's classes over"
        ):
            call()
