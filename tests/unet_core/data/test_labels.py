"""The meaning of mask files, and the resampling of labels, by hand-made examples."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.card import InputSpec
from runtime.errors import ImageError
from runtime.image import fit
from unet_core.data.labels import IGNORED, LabelSpec, fit_truth, load_labels, load_truth, present_labels, resize_labels

CAR = LabelSpec(classes=("car",))


def several(count, ignore_index=None):
    return LabelSpec(classes=tuple(f"c{index}" for index in range(count)), ignore_index=ignore_index)


def mask_file(tmp_path, values, name="m.png"):
    """A grey picture of these values, one row."""
    path = tmp_path / name
    Image.fromarray(np.array([values], np.uint8)).save(path)
    return path


def truth(tmp_path, values, spec, name="m.png"):
    labels = load_truth(mask_file(tmp_path, values, name), spec)
    assert (labels.dtype, labels.ndim) == (np.uint8, 2)
    return labels[0].tolist()


@pytest.mark.parametrize("name", ["m.gif", "m.png", "m.bmp", "m.tif"])
@pytest.mark.parametrize("values", [(0, 255, 255, 0), (0, 1, 1, 0)])
def test_masks_of_0_255_and_0_1_mean_the_same(tmp_path, values, name):
    assert truth(tmp_path, values, CAR, name) == [0, 1, 1, 0]


@pytest.mark.parametrize("value", [0, 1, 255])
def test_uniform_masks_are_empty_or_full(tmp_path, value):
    assert truth(tmp_path, [value] * 3, CAR) == [int(value > 0)] * 3


@pytest.mark.parametrize(
    ("values", "ignore_index", "expected"),
    [
        ((0, 1, 255), 255, [0, 1, IGNORED]),
        ((0, 128, 255), 128, [0, IGNORED, 1]),
        ((0, 1, 128), 128, [0, 1, IGNORED]),
        ((0, 1, 255), 1, [0, IGNORED, 1]),
        ((0, 0, 255), 255, [0, 0, IGNORED]),  # 255 no longer means the class
        ((255, 255), 255, [IGNORED, IGNORED]),
        ((7, 7), 7, [IGNORED, IGNORED]),
    ],
)
def test_a_value_of_one_class_that_does_not_count(tmp_path, values, ignore_index, expected):
    assert truth(tmp_path, values, LabelSpec(classes=("car",), ignore_index=ignore_index)) == expected


@pytest.mark.parametrize(
    ("count", "values", "ignore_index", "expected"),
    [
        (3, (0, 1, 2), None, [0, 1, 2]),
        (3, (0, 2, 255), 255, [0, 2, IGNORED]),
        (3, (3, 1, 0), 3, [IGNORED, 1, 0]),
        (3, (0, 1, 2), 0, [IGNORED, 1, 2]),  # "void" may have an index among the classes
        (3, (9, 9, 9), 9, [IGNORED] * 3),
        (255, (0, 254), None, [0, 254]),
        (2, (0, 1), None, [0, 1]),
        (2, (0, 255), None, [0, 1]),
        (2, (255, 255), None, [1, 1]),
        (2, (0, 128, 255), 128, [0, IGNORED, 1]),
        (2, (0, 1, 255), 255, [0, 1, IGNORED]),
    ],
)
def test_indices_of_several_classes(tmp_path, count, values, ignore_index, expected):
    assert truth(tmp_path, values, several(count, ignore_index)) == expected


@pytest.mark.parametrize(
    ("count", "values", "ignore_index", "expected"),
    [
        (3, (1, 3, 2), None, [0, 2, 1]),
        (3, (0, 1, 3, 0), 0, [IGNORED, 0, 2, IGNORED]),  # as ADE20K
        (2, (0, 1, 2), 0, [IGNORED, 0, 1]),
        (2, (255, 1), 255, [IGNORED, 0]),
        (255, (1, 255), None, [0, 254]),
        (255, (0, 1, 255), 0, [IGNORED, 0, 254]),
    ],
)
def test_indices_that_do_not_begin_with_0(tmp_path, count, values, ignore_index, expected):
    assert truth(tmp_path, values, replace(several(count, ignore_index), class_offset=1)) == expected


MORE = "; name more --classes; or give the value that does not count with --ignore-index"
OR_MORE = "; or name more --classes"
NOT_COUNTED = "give --ignore-index 255 if pixels of 255 do not count"
OF_MODEL = "; or give the value that does not count with --ignore-index"


def one_value(value):
    """The advice for masks of 0 and one other value."""
    threshold = f"--mask-threshold {value} if pixels of {value} are foreground"
    return f"give {threshold}, --ignore-index {value} if they do not count"


@pytest.mark.parametrize(
    ("spec", "values", "shown", "expected"),
    [
        (
            CAR,
            (255, 1, 0),
            "0, 1, 255",
            "0 and 255, or 0 and 1; give --ignore-index 255 if pixels of 255 do not count, --mask-threshold 1 if they "
            f"are foreground{OR_MORE}",
        ),
        (CAR, (0, 128), "128", f"0 and 255, or 0 and 1; {one_value(128)}{OR_MORE}"),
        (CAR, (0, 2), "2", f"0 and 255, or 0 and 1; {one_value(2)}{OR_MORE}"),
        (CAR, (128,), "128", f"0 and 255, or 0 and 1; {one_value(128)}{OR_MORE}"),
        (
            CAR,
            (0, 127, 255),
            "127",
            "0 and 255, or 0 and 1; give --ignore-index 127 if pixels of 127 do not count, --mask-threshold 128 if "
            f"they are soft edges{OR_MORE}",
        ),
        (
            CAR,
            (1, 2, 3),
            "2, 3",
            f"0 and 255, or 0 and 1; give --class-offset 1 and 3 --classes if 1 is the first class{OR_MORE}",
        ),
        (CAR, (9, 7, 3, 8, 2, 4, 5), "2, 3, 4, 5, 7, 8, 9", f"0 and 255, or 0 and 1{MORE}"),
        (CAR, range(100), "2, 3, 4, 5, 6, ..., 99", f"0 and 255, or 0 and 1{MORE}"),
        (
            CAR,
            range(200),
            "2, 3, 4, 5, 6, ..., 199",
            f"0 and 255, or 0 and 1; give --mask-threshold 128 if these are shades of grey, as JPEG has{OR_MORE}",
        ),
        (several(3), (0, 255), "255", f"class indices 0 to 2; {NOT_COUNTED}{OR_MORE}"),
        (several(11), range(12), "11", f"class indices 0 to 10{MORE}"),
        (
            several(3),
            (1, 2, 3),
            "3",
            f"class indices 0 to 2; give --class-offset 1 and 3 --classes if 1 is the first class{OR_MORE}",
        ),
        (several(2), (0, 1, 255), "0, 1, 255", f"class indices 0 to 1; {NOT_COUNTED}{OR_MORE}"),
        (several(2), (0, 1, 7), "7", f"class indices 0 to 1{MORE}"),
        (several(3, 255), (255, 1, 7), "7", "--ignore-index 255, and class indices 0 to 2; name more --classes"),
        (replace(several(3), class_offset=1), (0, 1, 4), "0, 4", f"class indices 1 to 3{MORE}"),
        (replace(several(2), class_offset=1), (0, 255), "0, 255", f"class indices 1 to 2{MORE}"),
        (replace(CAR, of_model=True), (0, 9), "9", f"0 and 255, or 0 and 1 as the model has 1 class; {one_value(9)}"),
        (replace(several(3), of_model=True), (9,), "9", f"class indices 0 to 2 as the model has 3 classes{OF_MODEL}"),
        (
            replace(several(3, 8), of_model=True),
            (8, 9),
            "9",
            "--ignore-index 8, and class indices 0 to 2 as the model has 3 classes",
        ),
    ],
)
def test_invalid_mask_values_are_named_with_the_options_that_fit_them(tmp_path, spec, values, shown, expected):
    with pytest.raises(ImageError) as caught:
        load_truth(mask_file(tmp_path, values), spec)
    assert str(caught.value) == f"{tmp_path / 'm.png'}: has invalid labels ({shown}); expected {expected}"


def palette_file(tmp_path, indices, colours, name="m.png"):
    picture = Image.fromarray(np.array([indices], np.uint8))
    picture.putpalette(np.array(colours, np.uint8).tobytes())
    path = tmp_path / name
    picture.save(path)
    return path


@pytest.mark.parametrize("name", ["m.png", "m.gif"])
def test_a_palette_of_colours_holds_indices_and_one_of_greys_holds_greys(tmp_path, name):
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    coloured = palette_file(tmp_path, (0, 2, 1, 0), colours, name)
    assert load_truth(coloured, several(3)).tolist() == [[0, 2, 1, 0]]
    greys = palette_file(tmp_path, (0, 1, 1, 0), [(255,) * 3, (0,) * 3], name)
    assert load_truth(greys, CAR).tolist() == [[1, 0, 0, 1]]


def test_a_picture_of_colours_is_no_mask(tmp_path):
    path = tmp_path / "m.png"
    pixels = np.zeros((1, 7, 3), np.uint8)
    pixels[0, 1:3] = (128, 64, 128), (0, 0, 142)
    Image.fromarray(pixels).save(path)
    with pytest.raises(ImageError) as caught:
        load_truth(path, several(3))
    assert str(caught.value) == (
        f"{path}: has RGB pixels (#000000, #00008e, #804080), expected a mask of one 8-bit channel or a palette; if "
        "its colours are classes, give --colours NAME=#RRGGBB for each"
    )
    pixels[0, :, 0] = range(7)
    Image.fromarray(pixels).save(path)
    with pytest.raises(ImageError, match=r"\(#000000, #014080, #02008e, #030000, #040000, \.\.\.\), expected a mask"):
        load_truth(path, several(3))


def test_mask_of_16_bits_in_colour_is_refused_though_its_channels_are_equal(tmp_path):
    """Pillow gives the upper 8 bits, and classes are in the lower ones."""
    path = tmp_path / "m.png"
    cv2.imwrite(str(path), np.full((4, 5, 3), 2, np.uint16))
    with pytest.raises(ImageError) as caught:
        load_labels(path)
    assert str(caught.value) == f"{path}: has 16-bit RGB pixels, expected a mask of one 8-bit channel or a palette"


@pytest.mark.parametrize(
    ("labels", "size", "expected"),
    [
        ([[1, 1, 0, 0], [1, 0, 0, 0]], (1, 2), [[1, 0]]),  # 3 of 4, 0 of 4
        ([[1, 1, 3, 3], [0, 0, 2, 2]], (1, 2), [[0, 2]]),  # a tie is the lower label's
        ([[2, 2, 1, 0, 3]], (1, 1), [[2]]),  # the largest share, though less than half
        ([[IGNORED, IGNORED, 1, 0]], (1, 1), [[IGNORED]]),
        ([[IGNORED, 4]], (1, 1), [[4]]),
        ([[0, 0, 7, 7, 7, 0, 0, 0, 0]], (1, 3), [[0, 7, 0]]),
        ([[5, 0, 0], [0, 0, 0]], (2, 3), [[5, 0, 0], [0, 0, 0]]),  # its own size
        ([[0, 9]], (1, 4), [[0, 0, 9, 9]]),  # growth: the nearer one
        ([[0, 9]], (2, 4), [[0, 0, 9, 9]] * 2),
        ([[3, 6], [3, 6], [6, 6]], (1, 4), [[3, 3, 6, 6]]),  # less high, wider
        ([[8]], (2, 2), [[8, 8], [8, 8]]),
    ],
)
def test_the_label_that_covers_most_wins(labels, size, expected):
    resized = resize_labels(np.array(labels, np.uint8), size)
    assert resized.dtype == np.uint8
    assert resized.tolist() == expected


def test_resized_labels_are_the_largest_area_of_each():
    labels = np.random.default_rng(0).integers(0, 6, (60, 90)).astype(np.uint8)
    blocks = labels.reshape(10, 6, 15, 6).transpose(0, 2, 1, 3).reshape(10, 15, 36)  # [row, column, pixel]
    counts = np.stack([(blocks == label).sum(axis=2) for label in range(6)])
    assert np.array_equal(resize_labels(labels, (10, 15)), counts.argmax(axis=0))


def test_present_labels_are_listed_in_order():
    assert present_labels(np.array([[255, 0], [3, 3]], np.uint8)) == [0, 3, 255]


def fitted_truth(labels, **spec):
    labels = np.array(labels, np.uint8)
    return fit_truth(labels, fit(np.zeros((*labels.shape, 3), np.uint8), InputSpec(**spec)))


def test_truth_follows_its_image_into_the_letterbox():
    labels = np.ones((10, 40), np.uint8)
    labels[:, 20:] = 0
    found = fitted_truth(labels, size=(32, 48), fit="letterbox")
    assert found.shape == (32, 48)
    assert (found[:10] == IGNORED).all() and (found[22:] == IGNORED).all()
    assert (found[10:22, :24] == 1).all() and (found[10:22, 24:] == 0).all()


def test_truth_is_stretched_or_left_alone():
    labels = [[1, 1, 0, 0], [1, 0, 0, IGNORED]]
    assert fitted_truth(labels, size=(1, 2), stride=2).tolist() == [[1, 0]]
    assert fitted_truth(labels, size=(1, 2), stride=2, fit="native").tolist() == labels
    assert fitted_truth(labels, size=(2, 4), stride=2).tolist() == labels


def test_truth_of_another_size_than_its_image_fits_too():
    """A JPEG may be decoded at a fraction of its size; its mask is not."""
    labels = np.zeros((64, 96), np.uint8)
    labels[:32] = 2
    fitted = fit(np.zeros((16, 24, 3), np.uint8), InputSpec(size=(8, 16), stride=2, fit="letterbox"))
    expected = np.full((8, 16), IGNORED)
    expected[:4, 2:14], expected[4:, 2:14] = 2, 0
    assert fit_truth(labels, fitted).tolist() == expected.tolist()
