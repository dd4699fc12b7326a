"""Predictor at other sizes than the trained one: whole, in tiles, and seen in several ways."""

import numpy as np
import pytest

from runtime.errors import ConfigError, ImageError
from runtime.image import resize
from runtime.options import ProviderOptions
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
    with pytest.raises(ConfigError, match=rf"{name}: found 5x8, expected at least 6x4 \(width x height\)$"):
        predictor.predict(np.zeros((9, 9, 3), np.uint8), **{name: (8, 5)})


WHOLE = "since the network looks at the whole picture at once, so that padding would change all of its answers"


@pytest.fixture
def exact(write_model):
    """A model whose pictures are never padded: multiples of 4 alone."""
    return Predictor(write_model(size=(8, 12), fit="stretch", padded=False), "cpu")


def test_where_nothing_is_padded_pictures_are_resized_to_multiples_of_the_stride(exact):
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    assert exact.predict(image).mask.shape == (9, 13)
    assert exact.predict(image, size=(16, 4)).mask.shape == (9, 13)
    assert exact.run(image[None, :8, :12]).shape == (1, 1, 8, 12)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": (8, 10)}, f"size: found 10x8, expected multiples of 4, {WHOLE}"),
        ({"tile": (6, 8)}, f"tile: found 8x6, expected multiples of 4, {WHOLE}"),
        ({"size": "native"}, f"size: found 'native', expected (height, width), multiples of 4, {WHOLE}; or give tile"),
    ],
)
def test_where_nothing_is_padded_other_sizes_are_refused_by_name(exact, asked, message):
    with pytest.raises(ConfigError) as caught:
        exact.predict("gone.png", **asked)
    assert str(caught.value) == message


def test_where_nothing_is_padded_a_batch_of_another_size_is_refused(exact):
    with pytest.raises(ImageError) as caught:
        exact.run(np.zeros((1, 8, 10, 3), np.uint8))
    assert str(caught.value) == f"image: is 10x8 pixels, the network takes multiples of 4 alone, {WHOLE}; give a size"


def test_where_nothing_is_padded_tiles_are_whole(write_model):
    """Each tile is asked about as it is; no part of a picture is shown at another size."""
    exact, shapes = Predictor(write_model(size=(8, 12), fit="stretch", padded=False), "cpu"), set()
    run = exact._model.session.run
    exact._model.session.run = lambda batch: shapes.add(batch.shape[1:3]) or run(batch)
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    assert exact.predict(image, tile=(8, 4)).mask.shape == exact.predict(image, tile=(8, 4), size="native").mask.shape
    assert shapes == {(8, 4)}
    with pytest.raises(ImageError) as caught:
        exact.predict(image, tile=(12, 8))
    assert str(caught.value) == (
        f"image: is 13x9 pixels, smaller than a tile of 8x12, which is never cut or padded, {WHOLE}; give a smaller "
        "tile, or leave it out"
    )


def test_with_a_stride_of_one_no_size_needs_padding(write_model):
    free = Predictor(write_model(size=(8, 12), fit="native", stride=1, padded=False), "cpu")
    assert free.predict(np.zeros((5, 7, 3), np.uint8)).mask.shape == (5, 7)
    assert free.predict(np.zeros((5, 7, 3), np.uint8), size="native").mask.shape == (5, 7)


def test_buckets_are_refused_where_nothing_is_padded(write_model):
    path = write_model(size=(8, 12), fit="stretch", padded=False)
    with pytest.raises(ConfigError) as caught:
        Predictor(path, "cpu", options=ProviderOptions(bucket=8))
    assert str(caught.value) == f"bucket: found 8, expected None, {WHOLE}"


def test_a_model_that_sees_half_of_an_images_size(write_model):
    predictor = Predictor(write_model("conv", fit="native", scale=0.5), "cpu")
    image = random_image(24, 37)
    half = predictor.predict(image).probability
    assert half.shape == (1, 24, 37)
    assert np.array_equal(half, predictor.predict(image, size=(12, 18)).probability)
    tiled = predictor.predict(image, tile=(12, 18)).probability
    assert np.abs(half - tiled).max() < 1e-6
    whole = Predictor(write_model("conv", "whole.onnx"), "cpu").predict(image)
    assert np.array_equal(predictor.predict(image, size="native").probability, whole.probability)
    assert np.abs(half - whole.probability).max() > 0.01


def test_a_picture_that_is_turned_has_to_be_large_enough_both_ways(write_model):
    predictor = Predictor(write_model(size=(8, 12), min_size=(4, 9)), "cpu")
    image = np.zeros((8, 12, 3), np.uint8)
    assert predictor.predict(image, tta="flip").mask.shape == (8, 12)
    with pytest.raises(ImageError, match=r"image: is 8x12 pixels, the network takes at least 9x4; give a size$"):
        predictor.predict(image, tta="d4")
