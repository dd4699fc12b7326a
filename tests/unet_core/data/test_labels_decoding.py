"""Decoding masks to the values they store."""

import io

import numpy as np
import pytest
from answers import one_class, three_classes
from pictures import BLACK_WHITE, GREY, PIXELS, encoded, palette_picture
from PIL import Image

from runtime.errors import ImageError, ImageWarning
from runtime.image import load_image
from runtime.image_files import warned
from unet_core.data.labels import LabelSpec, load_labels, load_truth


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("inverted", [False, True], ids=["black first", "white first"])
def test_palette_of_black_and_white_gives_0_and_255_whatever_its_order(form, inverted):
    colours = [(0, 0, 0), (255, 255, 255)]
    indices = (BLACK_WHITE == 0) if inverted else (BLACK_WHITE == 255)
    picture = palette_picture(indices.astype(np.uint8), colours[::-1] if inverted else colours)
    labels = load_labels(io.BytesIO(encoded(picture, form)))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, BLACK_WHITE)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_colour_palette_gives_indices(form):
    picture = palette_picture(
        [[0, 1, 2], [2, 5, 0]], [(0, 0, 0), (128, 0, 0), (0, 128, 0), *[(9, 9, 9)] * 2, (1, 2, 3)]
    )
    assert load_labels(io.BytesIO(encoded(picture, form))).tolist() == [[0, 1, 2], [2, 5, 0]]


@pytest.mark.parametrize("values", [(0, 2), (0, 1, 2), (0, 200), (0, 255), (3, 7)])
def test_gif_that_renumbered_its_values_gives_the_values(values):
    labels = np.resize(np.array(values, np.uint8), (5, 8))
    assert np.array_equal(load_labels(io.BytesIO(encoded(Image.fromarray(labels), "GIF"))), labels)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize(
    ("answer", "labels"),
    [(one_class, [[0, 0, 0], [255, 255, 255]]), (three_classes, [[0, 2, 1], [2, 2, 0]])],
    ids=["one class", "three classes"],
)
def test_a_saved_answer_gives_its_mask(tmp_path, answer, labels, suffix):
    assert load_labels(answer().save(tmp_path / f"mask{suffix}")).tolist() == labels


@pytest.mark.parametrize("answer", [one_class, three_classes])
def test_a_palette_picture_gives_the_values_of_its_mask(tmp_path, answer):
    path = answer().save(tmp_path / "mask.png", format="palette")
    assert np.array_equal(load_labels(path), answer().mask)


def test_grey_file_gives_its_values():
    assert np.array_equal(load_labels(io.BytesIO(encoded(GREY))), GREY)


def test_one_bit_mask_gives_0_and_255():
    assert np.array_equal(load_labels(io.BytesIO(encoded(Image.fromarray(BLACK_WHITE).convert("1")))), BLACK_WHITE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_mask_stored_in_several_channels_is_read(mode):
    picture = Image.fromarray(GREY).convert(mode)
    assert np.array_equal(load_labels(io.BytesIO(encoded(picture))), GREY)


@pytest.mark.parametrize(
    ("picture", "mode"),
    [
        (Image.fromarray(PIXELS), "RGB"),
        (Image.merge("CMYK", [*[Image.new("L", (3, 2))] * 3, Image.fromarray(BLACK_WHITE)]), "CMYK"),
    ],
    ids=["RGB", "CMYK"],
)
def test_mask_with_colours_or_many_bits_is_refused(tmp_path, picture, mode):
    path = tmp_path / "mask.tif"
    picture.save(path)
    with pytest.raises(ImageError) as caught:
        load_labels(path)
    assert str(caught.value).startswith(f"{path}: has {mode} pixels")
    assert ", expected a mask of one 8-bit channel or a palette" in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_mask_of_16_bits_holds_labels_or_black_and_white(form):
    labels = np.array([[0, 1, 2], [200, 255, 0]], np.uint16)
    for stored, expected in ((labels, labels), (BLACK_WHITE.astype(np.uint16) * 257, BLACK_WHITE)):
        assert load_labels(io.BytesIO(encoded(Image.fromarray(stored), form))).tolist() == expected.tolist()


def test_grey_mask_of_16_bits_with_many_instances_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1, 300]], np.uint16)).save(path)
    with pytest.raises(ImageError) as caught:
        load_labels(path)
    assert str(caught.value) == (
        f"{path}: has 16-bit values up to 300, expected labels up to 255, or 0 and 65535; for numbers of instances "
        "use: unet-data convert --instances foreground"
    )


def test_one_palette_is_read_one_way_whatever_indices_are_in_use():
    """Index 7 of the VOC palette is grey: a file that uses only 0 and 7 still holds indices."""
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), *[(0, 0, 128)] * 3, (128, 128, 128)]
    for values in ([[0, 7]], [[0, 1, 7]]):
        assert load_labels(io.BytesIO(encoded(palette_picture(values, colours)))).tolist() == values


@pytest.mark.parametrize("transparency", [1, bytes([0, 128, 255])], ids=["one index", "a table"])
def test_palette_with_transparency_keeps_its_indices_and_warns_of_nothing(transparency):
    picture = palette_picture([[0, 1, 2]], [(10, 20, 30), (40, 50, 60), (255, 0, 0)])
    assert load_labels(io.BytesIO(encoded(picture, transparency=transparency))).tolist() == [[0, 1, 2]]


def test_exif_orientation_of_a_jpeg_and_of_a_mask_agree():
    half = np.zeros((16, 32), np.uint8)
    half[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(encoded(half, "JPEG", quality=95, exif=exif), "L")[:, :, 0]
    labels = load_labels(io.BytesIO(encoded(half, "PNG", exif=exif)))
    assert image.shape == labels.shape == (32, 16)
    assert np.array_equal(image > 127, labels == 255)
    assert labels[:16].all() and not labels[16:].any()


RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 0), (255, 255, 255)
CAR = LabelSpec(classes=("car",))


@pytest.fixture
def not_warned(monkeypatch):
    monkeypatch.setattr(warned, "WARNED", set())


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def with_alpha(mode, colour, alpha):
    picture = Image.new(mode, (4, 1), colour)
    picture.putalpha(Image.fromarray(np.array([alpha], np.uint8)))
    return picture


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGB", WHITE), ("RGB", BLACK), ("RGB", RED), ("L", 255), ("L", 0)], ids=str
)
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize(
    ("alpha", "labels"), [((0, 255, 255, 0), [0, 1, 1, 0]), ((0, 1, 1, 0), [0, 1, 1, 0]), ((0, 0, 0, 0), [0, 0, 0, 0])]
)
def test_the_mask_of_a_picture_of_one_colour_is_its_alpha(tmp_path, not_warned, name, mode, colour, alpha, labels):
    path = saved(tmp_path / name, with_alpha(mode, colour, alpha))
    with pytest.warns(ImageWarning) as told:
        found = [load_truth(path, CAR).tolist() for _ in range(2)]
    assert found == [[labels]] * 2
    assert [str(warning.message) for warning in told] == [
        f"{path}: has one colour everywhere, so its alpha channel is taken as the mask; other masks of this kind are "
        "read in the same way"
    ]


def test_alpha_of_many_values_is_no_mask(tmp_path, not_warned):
    path = saved(tmp_path / "m.png", with_alpha("RGB", WHITE, (0, 100, 255, 0)))
    with pytest.warns(ImageWarning), pytest.raises(ImageError) as caught:
        load_truth(path, CAR)
    assert str(caught.value).startswith(f"{path}: has invalid labels (100); expected 0 and 255, or 0 and 1;")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_alpha_is_left_out_where_the_picture_varies_or_is_opaque(tmp_path, mode):
    picture = Image.fromarray(np.array([[0, 255, 0, 255]], np.uint8)).convert(mode)
    picture.putalpha(Image.fromarray(np.array([[255, 0, 0, 255]], np.uint8)))
    assert load_labels(saved(tmp_path / "varies.png", picture)).tolist() == [[0, 255, 0, 255]]
    for value in (0, 255):
        picture = with_alpha(mode, (value,) * len(mode), (255,) * 4)
        assert load_labels(saved(tmp_path / "opaque.png", picture)).tolist() == [[value] * 4]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255]), bytes([0])], ids=["one index", "a table", "a short one"])
def test_the_mask_of_a_palette_of_one_colour_is_its_alpha(tmp_path, not_warned, transparency):
    picture = palette_picture([[0, 1, 1, 0]], [WHITE, WHITE])
    with pytest.warns(ImageWarning, match="has one colour everywhere, so its alpha channel is taken as the mask"):
        assert load_truth(saved(tmp_path / "m.png", picture, transparency=transparency), CAR).tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("name", ["m.png", "m.gif", "m.tif", "m.bmp"])
@pytest.mark.parametrize("colours", [(BLACK, RED), (RED, BLACK), (GREEN, BLACK, BLACK, BLACK), (RED,)], ids=str)
@pytest.mark.parametrize("classes", [("car",), ("background", "car")], ids=len)
def test_black_is_background_in_a_palette_of_black_and_one_other_colour(tmp_path, name, colours, classes):
    indices = np.arange(4)[None] % min(2, len(colours))
    expected = np.array(colours).any(axis=1).astype(int)[indices]
    path = saved(tmp_path / name, palette_picture(indices, colours))
    assert load_truth(path, LabelSpec(classes=classes)).tolist() == expected.tolist()
    assert load_truth(path, LabelSpec(classes=classes, ignore_index=255)).tolist() == expected.tolist()


def test_an_adaptive_palette_gives_what_was_black_as_background(tmp_path):
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[2:7, 1:] = RED
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE):
        path = saved(tmp_path / "m.png", Image.fromarray(mask).quantize(2, method))
        assert np.array_equal(load_truth(path, CAR), mask.any(axis=2))


@pytest.mark.parametrize(
    ("colours", "classes"),
    [((RED, BLACK), ("sky", "car")), ((RED, GREEN), ("car",)), ((RED, BLACK, GREEN), ("car",)), ((RED, BLACK), "abc")],
    ids=str,
)
def test_other_palettes_hold_indices(tmp_path, colours, classes):
    path = saved(tmp_path / "m.png", palette_picture([[0, 1, 1, 0]], colours))
    assert load_truth(path, LabelSpec(classes=tuple(classes))).tolist() == [[0, 1, 1, 0]]
