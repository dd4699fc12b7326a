"""Arrays become levels of 8 bits, and where that leaves hardly any difference it is said, once."""

import io
import re
import struct
import warnings

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from runtime.errors import ImageError, ImageWarning
from runtime.image import load_image
from runtime.image_files import warned
from runtime.images import pictures

NOISE = np.random.default_rng(0).random((20, 30, 4))


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(warned, "WARNED", set())


SQUEEZED = {
    "uint16": (NOISE * 4000).astype(np.uint16),
    "uint16 of the other byte order": (NOISE * 4000).astype(">u2"),
    "uint16 away from 0": (NOISE * 4000 + 30_000).astype(np.uint16),
    "float32": (NOISE * 0.01).astype(np.float32),
    "float64": NOISE * 0.001,
}


@pytest.mark.parametrize("name", SQUEEZED)
@pytest.mark.parametrize("channels", ["raw", "RGB", "L"])
def test_values_that_fill_few_levels_are_told_once(name, channels):
    array = SQUEEZED[name]
    with pytest.warns(ImageWarning) as caught:
        first, second = load_image(array, channels), load_image(array, channels)
    assert np.array_equal(first, second)
    assert len(caught) == 1 and caught[0].filename == __file__
    shown = array if channels == "raw" else array[:, :, :3]
    text = str(caught[0].message)
    kind, whole = array.dtype.name, "0 to 65535" if array.dtype.kind == "u" else "0 to 1"
    assert text.startswith(f"array: {kind} values from {shown.min():.6g} to {shown.max():.6g} fill ")
    assert text.endswith(
        f" of the 256 levels that the model gets, since {whole} becomes 0 to 255; scale the array so that it fills "
        "that range, as in training"
    )


def test_the_number_of_levels_is_told():
    with pytest.warns(ImageWarning, match="values from 0 to 4000 fill 16 of the 256 levels"):
        load_image(np.arange(4001, dtype=np.uint16)[None], "L")


@pytest.mark.parametrize(
    "array",
    [
        (NOISE * 20).astype(np.uint8),
        (NOISE * 65_535).astype(np.uint16),
        (NOISE * 20).astype(np.uint16) * 257,
        (NOISE * 20).astype(np.uint8) / 255,
        ((NOISE * 20).astype(np.uint8) / 255).astype(np.float16),
        NOISE * 0.3,
        np.full((5, 6, 4), 100, np.uint16),
        np.full((5, 6, 4), 0.002),
    ],
    ids=["uint8", "full uint16", "8 bits in 16", "8 bits in floats", "in float16", "77 levels", "flat", "flat floats"],
)
def test_other_arrays_are_taken_without_a_word(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(array, "raw")


def test_values_of_8_bits_in_16_are_told_to_be_given_as_such():
    array = (NOISE[:, :, 0] * 255).astype(np.uint16)
    with pytest.warns(ImageWarning) as caught:
        load_image(array, "L")
    assert str(caught[0].message) == (
        f"array: uint16 values from {array.min()} to {array.max()} fill 1 of the 256 levels that the model gets, since "
        "0 to 65535 becomes 0 to 255; they look like 8 bits, so give array.astype(np.uint8)"
    )


DEEP = (NOISE[:, :, 0] * 3000).astype(np.uint16)


@pytest.mark.parametrize("form", ["picture", "PNG", "TIFF"])
def test_pictures_of_16_bits_whose_values_fill_few_levels_are_told_once(form, tmp_path):
    source = Image.fromarray(DEEP)
    if form != "picture":
        source = tmp_path / f"deep.{form.lower()}"
        Image.fromarray(DEEP).save(source)
    with pytest.warns(ImageWarning) as caught:
        first, second = load_image(source), load_image(source)
    assert np.array_equal(first, second) and np.array_equal(first[:, :, 0], DEEP // 257)
    name = "image" if form == "picture" else source
    assert [str(one.message) for one in caught] == [
        f"{name}: 16-bit values from {DEEP.min()} to {DEEP.max()} fill 12 of the "
        "256 levels that the model gets, since 0 to 65535 becomes 0 to 255; scale them so that they fill that range, "
        "as in training, and give the array"
    ]
    assert caught[0].filename == __file__


def colour_file(form, values):
    """A file of uint16 [height, width, 3], RGB."""
    if form in (".png", ".ppm", ".tif"):
        return cv2.imencode(form, values[:, :, ::-1])[1].tobytes()
    if form == "lazy":
        return Image.open(io.BytesIO(colour_file(".png", values)))
    file, planes = io.BytesIO(), {"planarconfig": "separate", "photometric": "rgb"}
    tifffile.imwrite(file, np.moveaxis(values, 2, 0), compression="zlib" if form == "zlib" else None, **planes)
    return file.getvalue()


COLOURS = (NOISE[:, :, :3] * 3000).astype(np.uint16)


@pytest.mark.parametrize("form", [".png", ".ppm", ".tif", "planes", "zlib", "lazy"])
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_colours_of_16_bits_that_fill_few_levels_are_told_once(form, channels):
    """Planes that are compressed are decoded by Pillow alone, which gives the upper 8 bits."""
    with pytest.warns(ImageWarning) as caught:
        found = [load_image(colour_file(form, COLOURS), channels) for _ in range(2)]
    assert np.array_equal(*found) and 10 < found[0].max() < 13
    (text,) = [str(one.message) for one in caught]
    low, high = COLOURS.min(), COLOURS.max()
    if form == "zlib":
        low, high = re.search(r"from (\d+) to (\d+) fill", text).groups()
        assert abs(int(low) - COLOURS.min()) <= 257 and abs(int(high) - COLOURS.max()) <= (
            257 if channels == "RGB" else 514
        )
    used = int(high) // 257 - int(low) // 257 + 1
    assert text == (
        f"image: 16-bit values from {low} to {high} fill {used} of the 256 levels that the model gets, since 0 to "
        "65535 becomes 0 to 255; scale them so that they fill that range, as in training, and give the array"
    )


@pytest.mark.parametrize("form", [".png", ".ppm", ".tif", "planes", "lazy"])
@pytest.mark.parametrize(
    "array", [np.full((4, 5, 3), 300), COLOURS // 257 * 257, COLOURS * 20], ids=["flat", "8", "full"]
)
def test_other_colours_of_16_bits_are_taken_without_a_word(form, array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(colour_file(form, array.astype(np.uint16))).shape == array.shape


def test_colours_that_are_8_bits_in_16_are_told_to_be_given_as_such():
    values = (NOISE[:, :, :3] * 255).astype(np.uint16)
    with pytest.warns(ImageWarning) as caught:
        assert not load_image(colour_file(".png", values)).any()
    assert str(caught[0].message).endswith("they look like 8 bits, so give array.astype(np.uint8)")


def test_large_pictures_are_not_decoded_twice_for_their_range(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1)
    with pytest.warns(ImageWarning, match=r"^image: 16-bit values from 0 to \d+ fill 1[123] of the 256 levels"):
        load_image(colour_file(".png", COLOURS))


@pytest.mark.parametrize("array", [np.full((4, 5), 300), DEEP // 257 * 257, DEEP * 20], ids=["flat", "8 bits", "full"])
def test_other_pictures_of_16_bits_are_taken_without_a_word(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(Image.fromarray(array.astype(np.uint16)))


@pytest.mark.parametrize("channels", ["raw", "RGB"])
def test_mask_of_an_array_is_told_to_be_lost_once(channels):
    values = (NOISE[:, :, :3] * 255).astype(np.uint8)
    array = np.ma.masked_array(values, values > 250)
    with pytest.warns(ImageWarning) as caught:
        found = [load_image(array, channels), load_image(array, channels)]
    assert np.array_equal(found, [values] * 2)
    assert [str(one.message) for one in caught] == [
        f"array: is a masked array, and the {np.sum(values > 250)} values that its mask hides are seen by the "
        "model; replace them first, as in array.filled(0)"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warned.WARNED.clear()
        load_image(np.ma.masked_array(values), channels)


def signed_tiff(array):
    """A TIFF of one row of int8 or int16, uncompressed."""
    width, bits, content = array.size, 8 * array.itemsize, array.tobytes()
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 134, 277: 1, 278: 1, 279: len(content), 339: 2}
    entries = b"".join(struct.pack("<HHLHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)).ljust(134, b"\0") + content


@pytest.mark.parametrize("kind", ["int8", "int16"])
@pytest.mark.parametrize("opened", [False, True], ids=["file", "picture"])
def test_signed_values_are_refused_and_not_read_as_unsigned(kind, opened):
    content = signed_tiff(np.array([[1, 5, 127]], kind))
    source = Image.open(io.BytesIO(content)) if opened else content
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert str(caught.value) == (
        f"image: is a TIFF of 1 x {kind}, grey, uncompressed, which is not read; open it with tifffile and give the "
        "array"
    )
    with pytest.raises(ImageError, match=rf"^array: found {kind} values, expected uint8, uint16 or floating-point"):
        load_image(np.array([[1, 5, 127]], kind))
