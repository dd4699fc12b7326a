"""Crops of training pictures: windows of image and labels, some of which are chosen to contain foreground."""

import numpy as np
import pytest

from unet_core.data.crops import crop
from unet_core.data.labels import IGNORED

SIZE = (32, 48)


def spotted(size=(200, 300)):
    """An image of its own coordinates, with one pixel of class 2 and some of class 1."""
    labels = np.zeros(size, np.uint8)
    labels[150:190, 20:60] = 1
    labels[10, 290] = 2
    rows, columns = np.indices(size)
    return np.dstack([rows, columns % 256, columns // 256]).astype(np.uint8), labels


def crops(image, labels, share, count=300, size=SIZE):
    return [crop(image, labels, size, np.random.default_rng(seed), share) for seed in range(count)]


def test_crops_are_windows_of_both_and_foreground_comes_up_as_often_as_asked():
    image, labels = spotted()
    shares = {}
    for share in (0.0, 0.5, 1.0):
        cut = crops(image, labels, share)
        for window, truth in cut:
            row, column = int(window[0, 0, 0]), int(window[0, 0, 1]) + 256 * int(window[0, 0, 2])
            assert np.array_equal(window, image[row : row + 32, column : column + 48])
            assert np.array_equal(truth, labels[row : row + 32, column : column + 48])
        shares[share] = [np.mean([(truth == label).any() for _, truth in cut]) for label in (1, 2)]
    assert np.mean([(truth > 0).any() for _, truth in cut]) == 1.0
    assert np.allclose(shares[1.0], 0.5, atol=0.08)  # the rare class as often as the other
    assert np.allclose(shares[0.5][1], 0.25, atol=0.08)
    assert shares[0.0][1] < 0.02


def test_crops_reach_every_corner_and_need_no_foreground():
    image = spotted()[0][:34, :50]
    for share, label in ((0.0, 0), (1.0, 0), (1.0, IGNORED)):
        cut = crops(image, np.full((34, 50), label, np.uint8), share)
        corners = {tuple(window[0, 0, :2].tolist()) for window, _ in cut}
        assert corners == {(row, column) for row in range(3) for column in range(3)}


def test_the_pixel_of_a_class_is_anywhere_in_its_crops():
    image, labels = np.zeros((200, 300, 3), np.uint8), np.zeros((200, 300), np.uint8)
    labels[100, 150] = 7
    places = np.array([np.argwhere(truth == 7)[0] for _, truth in crops(image, labels, 1.0)])
    assert places.min(axis=0).tolist() == [0, 0] and places.max(axis=0).tolist() == [31, 47]


def test_what_is_smaller_than_a_crop_gets_its_edge_and_labels_that_do_not_count():
    image, labels = spotted((20, 300))
    window, truth = crop(image, labels, SIZE, np.random.default_rng(0), 1.0)
    column = int(window[0, 0, 1]) + 256 * int(window[0, 0, 2])
    assert window.shape == (*SIZE, 3)
    assert np.array_equal(window[:20], image[:, column : column + 48])
    assert (window[20:] == window[19]).all()
    assert np.array_equal(truth[:20], labels[:, column : column + 48])
    assert (truth[20:] == IGNORED).all()
    assert (truth == 2).sum() == 1
    tiny, truth = crop(image[:1, :1], labels[:1, :1], SIZE, np.random.default_rng(0), 1.0)
    assert tiny.shape == (*SIZE, 3) and (truth != IGNORED).sum() == 1


@pytest.mark.parametrize(("background", "least", "most"), [(1, 40, 40), (None, 8, 32), (0, 0, 5)])
def test_crops_look_for_what_is_not_background_whatever_its_index(background, least, most):
    """One pixel of class 0 in a sea of class 1."""
    labels = np.ones((64, 64), np.uint8)
    labels[40, 50] = 0
    image = np.zeros((64, 64, 3), np.uint8)
    windows = [crop(image, labels, (8, 8), np.random.default_rng(seed), 1.0, background)[1] for seed in range(40)]
    assert least <= sum(0 in window for window in windows) <= most
