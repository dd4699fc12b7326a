"""Cut-outs: opaque inside, nothing outside, a soft edge between, and what colours there are."""

from dataclasses import replace

import numpy as np
import pytest
from answers import IMAGE, ONE, THREE
from PIL import Image

from runtime.errors import ConfigError
from runtime.images import overlay
from runtime.output_formats import FORMATS, cutout_format
from runtime.result import Segmentation


def answer(probability, output=ONE, seed=5):
    probability = np.array(probability, np.float32)
    image = np.random.default_rng(seed).integers(1, 256, (*probability.shape[1:], 3), np.uint8)
    return Segmentation(probability=probability, image=image, output=output)


@pytest.fixture
def doubtful():
    """A ball of radius 20 in 60x80, hardly above the threshold inside and hardly below it outside."""
    y, x = np.mgrid[:60, :80]
    inside = 20 - np.hypot(x - 40.2, y - 29.7)  # pixels
    noise = np.random.default_rng(3).normal(0, 0.02, inside.shape)
    return inside, answer([0.5 + 0.12 * np.tanh(inside / 6) + noise * (np.abs(inside) > 4)])


def test_alpha_is_0_or_255_away_from_the_edge_however_doubtful_the_network_is(doubtful):
    inside, result = doubtful
    alpha = result.cutout()[:, :, 3]
    away = (np.abs(inside) > 3) & ((inside > 0) == result.region())
    assert (alpha[away] == np.where(inside > 0, 255, 0)[away]).mean() > 0.999
    assert (result.cutout(soft=True)[:, :, 3][inside < -4] > 25).all()  # the scene would shine through
    assert np.array_equal(alpha > 127, result.region())


def test_the_edge_is_the_true_coverage_of_pixels_by_what_the_probabilities_draw(doubtful):
    inside, result = doubtful
    alpha = result.cutout()[:, :, 3] / 255
    edge = np.abs(inside) < 3
    ramp = np.clip(0.5 + inside / 2, 0, 1)
    assert np.abs(alpha - ramp)[edge].max() < 0.08
    assert ((alpha > 0.05) & (alpha < 0.95))[edge].sum() > 200  # a ring two pixels wide


def test_a_line_of_one_pixel_stays_whole_and_sharp():
    probability = np.full((1, 9, 9), 0.01)
    probability[0, :, 4] = 0.99
    alpha = answer(probability).cutout()[:, :, 3]
    assert alpha[4].tolist() == [0, 0, 0, 0, 255, 0, 0, 0, 0]


def test_alpha_of_a_known_edge():
    probability = [[[0.1, 0.2, 0.3, 0.4, 0.48, 0.56, 0.7, 0.8, 0.9]] * 3]
    assert answer(probability).cutout()[1, :, 3].tolist() == [0, 0, 0, 0, 95, 198, 255, 255, 255]
    moved = answer(probability).threshold(0.44).cutout()[1, :, 3]
    assert moved.tolist() == [0, 0, 0, 70, 192, 255, 255, 255, 255]


def test_a_picture_without_an_edge_is_all_or_nothing():
    assert not answer(np.full((1, 5, 7), 0.5)).cutout().any()  # 0.5 is not above the threshold
    assert (answer(np.full((1, 5, 7), 0.5001)).cutout()[:, :, 3] == 255).all()
    assert (answer(np.full((3, 5, 7), 0.3), THREE).cutout(["road", "car", "tree"])[:, :, 3] == 255).all()


@pytest.mark.parametrize("classes", [None, "road", "car", ["road", "tree"]], ids=str)
def test_the_edge_between_classes_is_where_the_most_probable_one_changes(classes):
    random = np.random.default_rng(8).dirichlet(np.ones(3), (23, 17)).transpose(2, 0, 1)
    result = answer(random, THREE)
    assert np.array_equal(result.cutout(classes)[:, :, 3] > 127, result.region(classes))


def test_the_union_of_two_classes_has_no_seam():
    x = np.linspace(0, 1, 40)
    probability = np.zeros((3, 6, 40))
    probability[0], probability[1], probability[2] = 0.2, 0.8 * (1 - x), 0.8 * x
    assert (answer(probability, THREE).cutout()[:, :, 3] == 255).all()


def test_a_mask_that_was_changed_is_what_is_cut_out():
    result = answer(np.zeros((1, 12, 12)))
    result.mask[4:9, 4:9] = 1
    assert np.array_equal(result.cutout()[:, :, 3], 255 * result.mask)


def test_what_is_no_probability_is_outside(single):
    odd = np.array([[[np.nan, -1, 2], [np.nan, 1, 1 + 1e-6]]], np.float32)
    result = replace(single, probability=odd)
    assert np.array_equal(result.cutout()[:, :, 3] > 127, result.region())
    assert result.cutout(soft=True)[:, :, 3].tolist() == [[0, 0, 255], [0, 255, 255]]


@pytest.mark.parametrize("pixels", [1, 40, 200])
def test_strips_leave_no_trace(doubtful, monkeypatch, pixels):
    _, result = doubtful
    expected = result.cutout(), result.cutout(background="red")
    monkeypatch.setattr(overlay, "STRIP", pixels)
    assert np.array_equal(result.cutout(), expected[0])
    assert np.array_equal(result.cutout(background="red"), expected[1])


def test_soft_alpha_is_the_probability(single, several):
    picture = single.cutout(soft=True, keep_colours=True)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[:, :, :3], IMAGE)
    assert picture[:, :, 3].tolist() == [[0, 125, 128], [130, 255, 128]]
    for classes, alpha in ((None, [[51, 230, 230], [230, 230, 51]]), ("car", [[26, 26, 204], [26, 26, 26]])):
        # 0.1 + 0.8 in float32 may round up
        assert np.abs(several.cutout(classes, soft=True)[:, :, 3].astype(int) - alpha).max() <= 1


def test_colours_under_transparency_are_removed_unless_they_are_to_be_kept(doubtful):
    _, result = doubtful
    picture = result.cutout()
    hidden = picture[:, :, 3] == 0
    assert hidden.sum() > 1000 and not picture[hidden].any()
    assert np.array_equal(picture[~hidden][:, :3], result.image[~hidden])
    assert np.array_equal(result.cutout(keep_colours=True)[:, :, :3], result.image)


def test_a_grey_image_is_cut_out_in_grey(single):
    picture = replace(single, image=np.full((2, 3, 1), 7, np.uint8)).cutout(keep_colours=True)
    assert picture.shape == (2, 3, 4) and (picture[:, :, :3] == 7).all()


@pytest.mark.parametrize(
    ("background", "colour"),
    [
        ("white", (255, 255, 255)),
        ("#ff8800", (255, 136, 0)),
        ("#0F0", (0, 255, 0)),
        ((1, 2, 3), (1, 2, 3)),
        (np.array([1, 2, 3]), (1, 2, 3)),
        ("rgb(9, 8, 7)", (9, 8, 7)),
    ],
    ids=str,
)
def test_a_background_of_one_colour(doubtful, background, colour):
    _, result = doubtful
    picture = result.cutout(background=background)
    assert picture.shape == (60, 80, 3)
    share = result.cutout()[:, :, 3:] / 255
    assert np.abs(picture - (share * result.image + (1 - share) * np.array(colour))).max() < 0.51
    assert picture[0, 0].tolist() == list(colour)


@pytest.mark.parametrize("background", [None, "transparent", "Transparent"])
def test_a_transparent_background(single, background):
    assert np.array_equal(single.cutout(background=background), single.cutout())


@pytest.mark.parametrize(
    "background", ["whit", "", "#ff880080", (1, 2), (0, 0, 256), (0.5, 0, 0), 7, b"white"], ids=str
)
def test_a_background_that_is_no_colour_is_refused(single, background):
    with pytest.raises(ConfigError) as caught:
        single.cutout(background=background)
    assert str(caught.value) == (
        f'background: found {background!r}, expected "transparent", an opaque colour such as "white" or "#ff8800", '
        "or (red, green, blue) of 0 to 255"
    )


def test_colours_that_nothing_hides_cannot_be_kept(single):
    line = "^keep_colours: is for a transparent background, found a colour; leave out one of the two$"
    with pytest.raises(ConfigError, match=line):
        single.cutout(background="white", keep_colours=True)
    with pytest.raises(ConfigError, match=line):
        cutout_format(background="white", keep_colours=True)


def test_save_takes_a_format_with_options(doubtful, tmp_path):
    _, result = doubtful
    with Image.open(result.save(tmp_path / "a.png", "cutout")) as picture:
        assert picture.mode == "RGBA" and np.array_equal(picture, result.cutout())
    form = cutout_format(background="white", soft=True)
    with Image.open(result.save(tmp_path / "b.png", form)) as picture:
        assert picture.mode == "RGB" and np.array_equal(picture, result.cutout(background="white", soft=True))
    assert (FORMATS["cutout"].thresholded, form.thresholded) == (True, False)
    assert form.is_finished(tmp_path / "b.png", 1, (60, 80)) and not form.is_finished(tmp_path / "a.png", 1, (60, 80))
