import numpy as np
import pytest
from folders import write_pair
from PIL import Image

from runtime.image import load_image
from unet_core.data import find_pairs
from unet_core.pictures import PANEL_SIDE, save_curves, save_panel

BORDER = 4


def thirds(path):
    """The three pictures of a panel, without their borders."""
    panel = np.asarray(Image.open(path)).astype(int)
    width = (panel.shape[1] - 4 * BORDER) // 3
    starts = [BORDER + index * (width + BORDER) for index in range(3)]
    return [panel[BORDER:-BORDER, start : start + width] for start in starts]


def test_panel_shows_image_truth_and_prediction_in_this_order(tmp_path):
    truth = write_pair(tmp_path, "val", "a")
    (pair,) = find_pairs(tmp_path, "val")
    predicted = np.zeros_like(truth)
    predicted[20:30, 5:15] = 1
    save_panel(tmp_path / "panel.png", pair, predicted, truth)
    image, with_truth, with_prediction = thirds(tmp_path / "panel.png")
    assert np.array_equal(image, load_image(pair.image))
    for shown, mask in ((with_truth, truth), (with_prediction, predicted)):
        changed = (shown != image).any(axis=2)
        assert np.array_equal(changed, mask == 1)
        assert (shown[mask == 1].mean(axis=0) - image[mask == 1].mean(axis=0))[0] > 20  # towards red


def test_panels_of_large_images_are_scaled_down_in_proportion(tmp_path):
    truth = write_pair(tmp_path, "val", "a", size=(600, 1200))
    (pair,) = find_pairs(tmp_path, "val")
    save_panel(tmp_path / "panel.png", pair, truth, truth)
    assert thirds(tmp_path / "panel.png")[0].shape == (PANEL_SIDE // 2, PANEL_SIDE, 3)


@pytest.mark.parametrize("epochs", [1, 5])
def test_curves_are_drawn_from_the_first_epoch_on(tmp_path, epochs):
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "image_dice": 0.5, "pixel_dice": 0.6, "iou": 0.4}
        for epoch in range(1, epochs + 1)
    ]
    save_curves(tmp_path / "curves.png", history)
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    red = (picture[:, :, 0] > 180) & (picture[:, :, 1] < 80) & (picture[:, :, 2] < 80)
    assert red[:, : picture.shape[1] // 2].any()  # the loss, on the left
    assert not red[:, picture.shape[1] // 2 :].any()
