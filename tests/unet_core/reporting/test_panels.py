import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import OutputError
from runtime.images.overlay import COLOURS
from unet_core.data.labels import IGNORED
from unet_core.reporting import panels
from unet_core.reporting.panels import (
    CELL_WIDTH,
    FALSE,
    FIRST_COLOURS,
    GAP,
    HATCH,
    MARGIN,
    MISSED,
    NOT_COUNTED,
    PALE_TINT,
    PANEL_SIDE,
    PICTURES_TOP,
    RIGHT,
    TINT,
    class_colours,
    panel,
    save_panel,
    shown_channels,
)

CAR = ("car",)
THREE = ("background", "car", "road")


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def labels(height, width, **areas):
    """Zeros, and in the columns start to stop of `v<label>=(start, stop)` that label."""
    result = np.zeros((height, width), np.uint8)
    for name, (start, stop) in areas.items():
        result[:, start:stop] = int(name[1:])
    return result


def four(drawn, height, width):
    """The pictures of a panel by name; all around them has to be white."""
    cell = max(width, CELL_WIDTH)
    outside = drawn[PICTURES_TOP : PICTURES_TOP + height].copy()
    found = {}
    for index, name in enumerate(("image", "truth", "prediction", "difference")):
        left = MARGIN + index * (cell + GAP)
        found[name] = outside[:, left : left + width].copy()
        assert found[name].shape == (height, width, 3)
        outside[:, left : left + width] = 255
    assert (outside == 255).all()
    assert drawn.shape[1] == 2 * MARGIN + 4 * cell + 3 * GAP
    return found


def blend(image, colour, opacity):
    return image + opacity * (np.array(colour) - image.astype(float))


def grey(image):
    """The difference's grey, one channel."""
    return 128 + image.astype(float) @ (0.299, 0.587, 0.114) * 112 / 255


def test_panel_of_one_class_is_exact():
    image = noise(200, 240)
    truth = labels(200, 240, v1=(40, 100), v255=(200, 240))
    predicted = labels(200, 240, v1=(60, 120))
    predicted[:, 230:] = 1  # where nothing counts
    shown = four(panel(image, predicted, truth, CAR, "a"), 200, 240)
    assert np.array_equal(shown["image"], image)

    for name, mask in (("truth", truth), ("prediction", predicted)):
        assert np.array_equal(shown[name][mask == 0], image[mask == 0])
    inner = np.s_[:, 41:99]
    assert np.abs(shown["truth"][inner] - blend(image[inner], COLOURS[0], TINT)).max() <= 0.5
    assert (shown["truth"][:, [40, 99]] == COLOURS[0]).all()  # the outline
    assert (shown["prediction"][:, [60, 119, 230]] == COLOURS[0]).all()

    difference = shown["difference"]
    assert (difference[:, 40:60] == MISSED).all()
    assert (difference[:, 100:120] == FALSE).all()
    assert np.abs(difference[:, 120:200] - grey(image)[:, 120:200, None]).max() <= 0.51
    right = blend(grey(image)[:, 60:100, None], RIGHT, TINT)
    assert np.abs(difference[:, 60:100] - right).max() <= 1
    ignored = shown["truth"][:, 200:]
    assert np.array_equal(difference[:, 200:], ignored)
    dark, line = (ignored == NOT_COUNTED).all(axis=2), (ignored == HATCH).all(axis=2)
    assert (dark | line).all()
    assert line.mean() == pytest.approx(0.25)


def test_panel_of_several_classes_tints_all_but_the_background():
    image = noise(200, 200)
    truth = labels(200, 200, v1=(50, 100), v2=(100, 150), v255=(190, 200))
    predicted = labels(200, 200, v1=(50, 120), v2=(120, 160))
    shown = four(panel(image, predicted, truth, THREE, "a"), 200, 200)
    assert np.array_equal(shown["truth"][:, :50], image[:, :50])
    for start, colour in ((50, COLOURS[0]), (100, COLOURS[1])):
        inner = np.s_[:, start + 1 : start + 49]
        assert np.abs(shown["truth"][inner] - blend(image[inner], colour, TINT)).max() <= 0.5
    difference = shown["difference"]
    wrong = (difference == FALSE).all(axis=2)
    assert np.array_equal(wrong, (predicted != truth) & (truth != IGNORED))
    assert np.abs(difference[:, :50] - grey(image)[:, :50, None]).max() <= 0.51
    right = blend(grey(image)[:, 50:100, None], RIGHT, PALE_TINT)
    assert np.abs(difference[:, 50:100] - right).max() <= 1


def test_every_class_is_tinted_where_none_is_the_background():
    image = noise(180, 180)
    truth = labels(180, 180, v1=(90, 180))
    shown = four(panel(image, truth, truth, ("sky", "road"), "a"), 180, 180)
    tinted = blend(image[:, 1:89], FIRST_COLOURS[0], TINT)
    assert np.abs(shown["truth"][:, 1:89] - tinted).max() <= 0.5
    assert np.abs(shown["difference"] - blend(grey(image)[:, :, None], RIGHT, PALE_TINT)).max() <= 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((600, 1200), (240, 480)),  # down to PANEL_SIDE
        ((1000, 250), (480, 120)),
        ((160, 100), (160, 100)),
        ((32, 48), (128, 192)),  # up by a whole factor
        ((1, 1), (160, 160)),
        ((8, 2000), (2, 480)),
        ((2000, 8), (480, 2)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_of_any_image(size, shown, channels):
    image = noise(*size, channels)
    truth = np.zeros(size, np.uint8)
    truth[: (size[0] + 1) // 2] = 1
    pictures = four(panel(image, truth, truth, CAR, "a"), *shown)
    assert max(shown) <= PANEL_SIDE
    factor = shown[0] // size[0]
    if factor >= 1:
        expected = np.broadcast_to(image, (*size, 3)).repeat(factor, axis=0).repeat(factor, axis=1)
        assert np.array_equal(pictures["image"], expected)
    else:
        assert pictures["image"].mean() == pytest.approx(image.mean(), abs=1)  # by area
    changed = (pictures["truth"] != pictures["image"]).any(axis=(1, 2))
    half = shown[0] // 2 or 1
    assert changed.sum() == (half if size != (1, 1) else 160)


@pytest.mark.parametrize(("channels", "caption"), [(4, "channels 1-3 of 4"), (16, "channels 1-3 of 16")])
def test_three_of_many_channels_are_shown_and_named(channels, caption):
    image, truth = noise(200, 240, channels), labels(200, 240, v1=(20, 90))
    drawn = panel(image, truth, truth, CAR, "a")
    assert np.array_equal(four(drawn, 200, 240)["image"], image[:, :, :3])
    assert shown_channels(channels) == caption
    colours = panel(image[:, :, :3], truth, truth, CAR, "a")
    left = MARGIN + 50  # behind "image"
    assert (colours[PICTURES_TOP - 22 : PICTURES_TOP - 3, left : MARGIN + 240] == 255).all()
    assert (drawn[PICTURES_TOP - 22 : PICTURES_TOP - 3, left : MARGIN + 240] < 255).any()
    assert np.array_equal(drawn[PICTURES_TOP:], colours[PICTURES_TOP:])


def test_the_mean_of_two_channels_is_shown():
    image, truth = noise(200, 240, 2), labels(200, 240)
    shown = four(panel(image, truth, truth, CAR, "a"), 200, 240)["image"]
    assert np.array_equal(shown, np.repeat(np.rint(image.mean(axis=2, keepdims=True)), 3, axis=2))
    assert (shown_channels(1), shown_channels(2), shown_channels(3)) == ("", "mean of 2 channels", "")


def test_a_column_is_as_wide_as_its_caption():
    truth = labels(160, 30)
    drawn = panel(noise(160, 30, 16), truth, truth, CAR, "a")
    cell = (drawn.shape[1] - 2 * MARGIN - 3 * GAP) // 4
    assert cell > CELL_WIDTH
    caption = drawn[PICTURES_TOP - 22 : PICTURES_TOP - 3, MARGIN : MARGIN + cell + GAP]
    assert (caption[:, -GAP:] == 255).all() and (caption[:, CELL_WIDTH:] < 255).any()


def test_labels_are_scaled_by_majority():
    truth = np.zeros((960, 960), np.uint8)
    truth[:, 1:480] = 1  # 1 of 2 pixels in the first column of the panel, both in the next ones
    truth[::2, 481::2] = 1  # 1 of 4
    shown = four(panel(np.zeros((960, 960, 3), np.uint8), truth, truth, CAR, "a"), 480, 480)["truth"]
    assert (shown[:, 1:240] > 0).any(axis=2).all()
    assert (shown[:, 240:] == 0).all()


def test_captions_stand_above_their_pictures_and_the_legend_below():
    drawn = panel(noise(200, 240), labels(200, 240), labels(200, 240, v255=(0, 9)), CAR, "a title")
    dark = (drawn != 255).any(axis=2)
    captions, keys = dark[PICTURES_TOP - 22 : PICTURES_TOP - 3], dark[PICTURES_TOP + 200 :]
    for index, has_key in enumerate((False, True, False, True)):
        left = MARGIN + index * (240 + GAP)
        assert captions[:, left : left + 20].any()
        assert keys[:, left : left + 240].any() == has_key
        assert not captions[:, left + 120 : left + 240].any()
    left = MARGIN + 3 * (240 + GAP)
    below = drawn[PICTURES_TOP + 200 :, left:].reshape(-1, 3).tolist()
    assert [below.count(list(colour)) >= 144 for colour in (RIGHT, MISSED, FALSE, NOT_COUNTED)] == [True] * 4
    assert drawn[PICTURES_TOP + 200 :, MARGIN + 240 + GAP :].reshape(-1, 3).tolist().count(list(COLOURS[0])) == 144


def test_legend_names_the_classes_that_occur_and_counts_the_rest():
    classes = tuple(f"class {index}" for index in range(60))
    truth = np.zeros((200, 240), np.uint8)
    truth[0, :4] = (0, 3, 58, IGNORED)
    entries = panels.class_legend(truth, truth, classes)
    assert entries == [
        (FIRST_COLOURS[0], "class 0"),
        (COLOURS[2], "class 3"),
        (class_colours()[58], "class 58"),
    ]
    assert panels.class_legend(labels(2, 3), labels(2, 3, v2=(1, 2)), THREE) == [(COLOURS[1], "road")]
    truth[0, :60] = np.arange(60)
    assert panels.class_legend(truth, truth, classes)[-1] == ((255, 255, 255), "and 36 more")
    drawn = panel(noise(200, 240), truth, truth, classes, "a")
    legend = (drawn[PICTURES_TOP + 200 :] != 255).any(axis=(0, 2))
    assert np.flatnonzero(legend)[0] == MARGIN + 240 + GAP
    assert not legend[MARGIN + 3 * (240 + GAP) - GAP : MARGIN + 3 * (240 + GAP)].any()  # wrapped before the next


def cielab(colours):
    return cv2.cvtColor(np.array([colours], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


@pytest.mark.parametrize(("count", "least"), [(12, 40), (20, 36), (255, 11)])
def test_colours_of_classes_are_far_from_each_other(count, least):
    places = cielab(class_colours()[:count])
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert distances[~np.eye(count, dtype=bool)].min() > least


def test_colours_of_classes_are_those_of_overlays_and_neither_grey_nor_nearly_white():
    colours = class_colours()
    assert (len(colours), colours[1:7]) == (255, COLOURS)
    lightness, *chroma = cielab(colours).T
    assert lightness.min() > 28 and lightness.max() < 90
    assert np.hypot(*chroma).min() > 35


@pytest.mark.parametrize("title", ["", "Größe 日本 😀 שלום", "broken \udcff\n\x00 name", "x" * 400 + "  Dice 0.61"])
def test_any_title_is_drawn_within_the_margins(title):
    drawn = panel(noise(40, 40), labels(40, 40), labels(40, 40), CAR, title)
    strip = (drawn[: PICTURES_TOP - 22] != 255).any(axis=2)
    assert strip.any() == bool(title)
    assert not strip[:, :MARGIN].any() and not strip[:, -MARGIN:].any()


def test_long_title_keeps_its_end():
    first, second = (
        panel(noise(40, 40), labels(40, 40), labels(40, 40), CAR, "x" * 400 + f"  Dice {dice}")
        for dice in ("0.61", "0.62")
    )
    changed = np.flatnonzero((first != second).any(axis=(0, 2)))
    assert changed.size and changed[0] > first.shape[1] - 2 * MARGIN - 16


def test_arrays_of_different_size_are_refused():
    with pytest.raises(ValueError) as caught:
        panel(noise(4, 5), labels(4, 5), labels(5, 4), CAR, "a")
    assert str(caught.value) == "image of (4, 5), labels of (4, 5) and (5, 4) do not match"


def test_panel_is_saved_as_it_is(tmp_path):
    drawn = panel(noise(40, 40), labels(40, 40), labels(40, 40), CAR, "a")
    save_panel(tmp_path / "new" / "panel.png", drawn)
    with Image.open(tmp_path / "new" / "panel.png") as file:
        assert file.format == "PNG"
        assert np.array_equal(np.asarray(file), drawn)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["panel.png"]
    with pytest.raises(OutputError, match="is a folder"):
        save_panel(tmp_path / "new", drawn)
