"""Geometry: to the model's size and back, exactly."""

import numpy as np
import pytest
from pictures import PIXELS

from runtime.card import InputSpec
from runtime.image import fit, resize, restore


def test_area_is_used_on_shrinking():
    blocks = np.array([[0, 10, 100, 104], [20, 30, 100, 104]], np.uint8)[:, :, None]
    assert resize(blocks, (1, 2)).tolist() == [[[15], [102]]]
    assert resize(blocks.astype(np.float32), (1, 2)).tolist() == [[[15.0], [102.0]]]
    assert resize(blocks, (2, 2))[:, :, 0].tolist() == [[5, 102], [25, 102]]
    row = np.array([[0, 4, 8, 100]], np.float32)[:, :, None]
    assert resize(row, (1, 1)).tolist() == [[[28]]]
    assert np.allclose(resize(row[:, :3], (1, 2))[0, :, 0], [(0 + 4 / 2) / 1.5, (4 / 2 + 8) / 1.5], atol=1e-6)


def test_bilinear_is_used_on_growing():
    edge = np.array([[0, 1]], np.float32)[:, :, None]
    assert resize(edge, (1, 4))[0, :, 0].tolist() == [0, 0.25, 0.75, 1]
    assert resize(edge.transpose(1, 0, 2), (4, 1))[:, 0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_one_side_may_shrink_while_the_other_grows():
    array = np.array([[0, 8], [4, 12], [100, 200], [100, 200]], np.float32)[:, :, None]
    assert resize(array, (2, 4))[:, :, 0].tolist() == [[2, 4, 8, 10], [100, 125, 175, 200]]


def test_same_size_is_the_same_array():
    assert resize(PIXELS, (6, 9)) is PIXELS


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 128, 129, 300])
@pytest.mark.parametrize("size", [(9, 14), (3, 4)])
def test_channels_are_resized_apart_from_each_other(channels, size):
    array = np.random.default_rng(9).random((6, 9, channels), dtype=np.float32)
    whole = resize(array, size)
    assert whole.shape == (*size, channels)
    for channel in {0, channels // 2, channels - 1}:
        alone = resize(np.ascontiguousarray(array[:, :, channel : channel + 1]), size)
        assert np.abs(whole[:, :, channel : channel + 1] - alone).max() < 1e-6


def spec(size, how, channels="RGB", mean=None):
    count = len(channels)
    return InputSpec(size=size, fit=how, channels=channels, mean=mean or (0.0,) * count, std=(1.0,) * count)


SIZES = [(1, 1), (1, 50), (50, 1), (6, 9), (16, 24), (37, 41), (5, 500)]


@pytest.mark.parametrize("original", SIZES)
@pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])
def test_fit_gives_the_model_its_size_and_restore_gives_the_image_its_own(original, how):
    image = np.full((*original, 3), 77, np.uint8)
    fitted = fit(image, spec((16, 24), how))
    assert fitted.image.shape == ((*original, 3) if how == "native" else (16, 24, 3))
    assert fitted.image.dtype == np.uint8
    assert fitted.original == original
    inside = fitted.image[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width]
    assert inside.size and (inside == 77).all()
    probability = np.stack([np.full(fitted.image.shape[:2], value, np.float32) for value in (0.25, 0.75)])
    back = restore(probability, fitted)
    assert back.shape == (2, *original)
    assert back.dtype == np.float32
    assert back.flags["C_CONTIGUOUS"]
    assert np.abs(back[0] - 0.25).max() < 1e-6 and np.abs(back[1] - 0.75).max() < 1e-6


@pytest.mark.parametrize(
    ("original", "size", "box"),
    [
        ((10, 20), (40, 40), (10, 0, 20, 40)),
        ((20, 10), (40, 40), (0, 10, 40, 20)),
        ((10, 10), (16, 25), (0, 4, 16, 16)),
        ((80, 80), (20, 31), (0, 5, 20, 20)),
        ((1, 1000), (16, 16), (7, 0, 1, 16)),
    ],
)
def test_letterbox_keeps_the_aspect_ratio_in_the_middle(original, size, box):
    fitted = fit(np.full((*original, 3), 255, np.uint8), spec(size, "letterbox", mean=(0.2, 0.4, 0.6)))
    assert (fitted.top, fitted.left, fitted.height, fitted.width) == box
    bars = np.ones(size, bool)
    bars[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = False
    assert (fitted.image[~bars] == 255).all()
    assert np.unique(fitted.image[bars], axis=0).tolist() == [[51, 102, 153]]


def test_letterbox_bars_stay_out_of_the_answer():
    fitted = fit(np.zeros((10, 20, 3), np.uint8), spec((40, 40), "letterbox"))
    probability = np.full((1, 40, 40), 1, np.float32)
    probability[:, 10:30] = 0.125
    assert (restore(probability, fitted) == 0.125).all()


@pytest.mark.parametrize("how", ["stretch", "letterbox"])
@pytest.mark.parametrize("original", [(100, 150), (33, 47), (300, 200)])
def test_linear_ramp_survives_the_way_there_and_back(how, original):
    height, width = original
    ramp = (np.arange(width) / width + np.arange(height)[:, None] / height) / 2
    image = np.rint(255 * ramp).astype(np.uint8)[:, :, None]
    fitted = fit(image, spec((64, 96), how, "L"))
    back = restore((fitted.image.astype(np.float32) / 255).transpose(2, 0, 1), fitted)[0]
    inside = np.s_[height // 8 : -height // 8, width // 8 : -width // 8]
    assert np.abs(back - ramp)[inside].max() < 0.005
    assert np.abs(back - ramp).max() < 0.02


def test_probabilities_are_resized_not_thresholded():
    fitted = fit(np.zeros((2, 4, 3), np.uint8), spec((2, 2), "stretch"))
    probability = np.array([[[0, 0.8], [0, 0.8]]], np.float32)
    assert np.allclose(restore(probability, fitted)[0, 0], [0, 0.2, 0.6, 0.8], atol=1e-7)


@pytest.mark.parametrize(
    ("original", "scale", "fitted_size"), [((10, 25), 0.5, (5, 12)), ((1, 3), 0.25, (1, 1)), ((9, 9), 1.0, (9, 9))]
)
def test_native_at_a_fraction_of_an_images_own_size(original, scale, fitted_size):
    image = np.random.default_rng(0).integers(0, 256, (*original, 3), np.uint8)
    fitted = fit(image, InputSpec(size=(16, 24), fit="native", scale=scale, stride=1))
    assert fitted.image.shape == (*fitted_size, 3) and fitted.original == original
    assert np.array_equal(fitted.image, resize(image, fitted_size))
    probability = np.random.default_rng(1).random((2, *fitted_size), np.float32)
    expected = [resize(one[:, :, None], original)[:, :, 0] for one in probability]
    assert np.array_equal(restore(probability, fitted), np.stack(expected))


@pytest.mark.parametrize("original", [(90, 140), (9, 14), (90, 14), (24, 33), (24, 14), (90, 33)])
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("how", ["stretch", "letterbox"])
def test_each_class_is_restored_as_it_is_alone(original, classes, how):
    spec = InputSpec(size=(24, 33), fit=how)
    fitted = fit(np.zeros((*original, 3), np.uint8), spec)
    probability = np.random.default_rng(0).random((classes, 24, 33), np.float32)
    rows, columns = slice(fitted.top, fitted.top + fitted.height), slice(fitted.left, fitted.left + fitted.width)
    alone = [resize(np.ascontiguousarray(one[rows, columns])[:, :, None], original)[:, :, 0] for one in probability]
    assert np.array_equal(restore(probability, fitted), np.stack(alone))
