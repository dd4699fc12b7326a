"""Decoding: what is damaged, too large, or no image is refused in one line."""

import random

import numpy as np
import pytest
from pictures import GREY, PIXELS, encoded
from PIL import Image

from runtime.errors import ImageError
from runtime.image import load_image


@pytest.mark.parametrize(("value", "message"), [(65_536, "0..65536"), (-1, "-1..0"), (200, "0..200")])
def test_thirty_two_bit_values_out_of_range_are_refused_by_file_name(tmp_path, value, message):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.array([[0, value]], np.int32)).save(path)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value) == f"{path}: has 32-bit values {message}, expected 16 bits; convert it"


def test_floating_point_image_is_refused_by_file_name(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: has floating-point pixels, expected 8 or 16 bits")


def test_pixels_that_cannot_be_converted_are_an_image_error():
    with pytest.raises(
        ImageError, match=r"^image: has pixels that are not read \(conversion from .*convert it to RGB$"
    ):
        load_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF", "ignore:Tag data larger")
def test_truncated_file_is_an_image_error(tmp_path, form, share):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), form)
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(whole)
    assert load_image(path).shape == (64, 64, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_file_is_an_image_error_or_an_image(form, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    source = random.Random(2)
    whole = encoded(PIXELS, form)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            content[source.randrange(min(len(content), 150))] = source.randrange(256)
        try:
            assert load_image(bytes(content)).shape[2] == 3
        except ImageError:
            refused += 1
    assert refused > 20


def test_truncated_jpeg_message_says_what_to_do(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:-500])
    with pytest.raises(ImageError, match=r"cut\.jpg: is damaged or cut off \(.*\); replace it$"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)"),
        (b"just words\n" * 20, "is not an image of a known format"),
        (b"%PDF-1.7\n" + bytes(500), "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a known format"),
        (encoded(PIXELS, "TGA"), "is not an image of a known format"),
        (b"P6\n2", "cannot be read as an image (Reached EOF while reading header)"),
    ],
    ids=["empty", "text", "pdf", "postscript", "tga", "header cut off"],
)
def test_what_is_no_known_image_is_refused(tmp_path, content, message):
    path = tmp_path / "thing.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_missing_file_and_folder_say_so(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file$"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r": is a folder, expected an image$"):
        load_image(tmp_path)


@pytest.mark.parametrize("source", [None, 5, ("a.png",), "nul\0.png", "x" * 300], ids=repr)
def test_source_of_another_kind_is_an_image_error(source):
    with pytest.raises(ImageError, match="cannot be read as an image"):
        load_image(source)


def test_image_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match=r"^image: is too large \(.*54 pixels"):
        load_image(encoded(PIXELS))


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.uint16),
        GREY > 100,
        PIXELS[:, :, :2],
        PIXELS.transpose(2, 0, 1),
        PIXELS[None],
        PIXELS[0, 0],
        PIXELS[:0],
        np.uint8(5) * np.ones((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {list(array.shape)}",
)
def test_array_of_another_kind_is_refused_with_its_type_and_shape(array):
    with pytest.raises(ImageError) as caught:
        load_image(np.asarray(array))
    assert str(caught.value).startswith(
        f"array: found {array.dtype} {list(array.shape)}, expected uint8 [height, width]"
    )
