"""Predictor at other sizes than the trained one: whole, in tiles, and seen in several ways."""

import numpy as np
import pytest

from runtime.errors import ConfigError, ImageError
from runtime.image import resize
from runtime.predictor import Predictor


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def stretched(write_model):
    """A model that was trained at 8x12 and sees 3x3 neighbourhoods."""
    return Predictor(write_model("conv", fit="stretch"), "cpu")


def test_native_size_sees_every_pixel(stretched, answers):
    image = random_image(21, 33)
    found = stretched.predict(image, size="native").probability
    assert np.abs(found - answers["conv"](image[None])[0]).max() < 1e-6
    assert np.abs(found - stretched.predict(image).probability).max() > 0.01


def test_a_size_is_stretched_to_and_back(stretched, answers):
    image = random_image(21, 33)
    small = answers["conv"](resize(image, (10, 16))[None])[0]
    expected = resize(small.transpose(1, 2, 0), (21, 33))[:, :, 0]
    assert np.abs(stretched.predict(image, size=(10, 16)).probability[0] - expected).max() < 1e-6


def test_tiles_answer_as_the_whole_but_where_they_end(stretched):
    image = random_image(64, 90)
    whole = stretched.predict(image, size="native").probability
    found = stretched.predict(image, tile=(32, 32), overlap=0.5).probability
    assert found.shape == whole.shape
    # A 3x3 network is wrong in the outermost pixels of a tile alone, where its weight is least.
    assert np.abs(found - whole).max() < 0.01
    assert np.array_equal(stretched.predict(image, tile=(64, 90)).probability, whole)


def test_tiles_of_a_size_that_is_asked_for(stretched):
    image = random_image(64, 90)
    whole = stretched.predict(image, size=(128, 180)).probability
    assert np.abs(stretched.predict(image, size=(128, 180), tile=(128, 180)).probability - whole).max() == 0
    assert np.abs(stretched.predict(image, size=(128, 180), tile=(64, 64)).probability - whole).max() < 0.01


def test_flips_are_averaged(stretched):
    image = random_image(21, 33)
    one, other = stretched.predict([image, image[:, ::-1].copy()])
    expected = (one.probability + other.probability[..., ::-1]) / 2
    assert np.abs(stretched.predict(image, tta="flip").probability - expected).max() < 1e-6


def test_tiles_and_flips_together(stretched):
    image = random_image(64, 90)
    whole = stretched.predict(image, size="native", tta="d4").probability
    assert np.abs(stretched.predict(image, tile=(32, 32), overlap=0.5, tta="d4").probability - whole).max() < 0.01


def test_what_cannot_be_asked_for_is_said_before_the_image_is_read(stretched):
    with pytest.raises(ConfigError, match="tile: found 32, expected"):
        stretched.predict("gone.png", tile=32)


def test_pictures_smaller_than_the_network_takes_are_refused(write_model):
    predictor = Predictor(write_model(size=(8, 12), min_size=(4, 6)), "cpu")
    small, least = np.zeros((3, 9, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)
    for call in (lambda: predictor.predict(small), lambda: predictor.run(small[None])):
        with pytest.raises(ImageError, match=r"image: is 9x3 pixels, the network takes at least 6x4; give a size$"):
            call()
    assert predictor.predict(least).mask.shape == (4, 6)
    assert predictor.predict(small, size=(4, 6)).mask.shape == (3, 9)


@pytest.mark.parametrize("name", ["size", "tile"])
def test_sizes_below_the_least_of_the_network_are_refused(write_model, name):
    predictor = Predictor(write_model(size=(8, 12), min_size=(4, 6)), "cpu")
    with pytest.raises(ConfigError, match=rf"{name}: found \(8, 5\), expected at least \(4, 6\), \(height, width\) of"):
        predictor.predict(np.zeros((9, 9, 3), np.uint8), **{name: (8, 5)})
