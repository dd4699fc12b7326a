"""Decoding: what is damaged, too large, or no image is refused in one line."""

import io
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import GREY, PIXELS, encoded
from PIL import Image, ImageFile

from runtime.errors import ImageError
from runtime.image import Limits, image_size, load_image


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
    told = "is a TIFF of 1 x float32, grey, uncompressed, which is not read; open it with tifffile and give the array"
    assert str(caught.value) == f"{path}: {told}"
    with pytest.raises(
        ImageError, match=r"^image: has floating-point pixels, expected 8 or 16 bits an integer channel"
    ):
        load_image(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_pixels_that_cannot_be_converted_are_an_image_error():
    with pytest.raises(
        ImageError, match=r"^image: has pixels that are not read \(conversion from .*convert it to RGB$"
    ):
        load_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.5, 0.9])
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
def test_damaged_file_is_an_image_error_or_an_image(form):
    source = random.Random(2)
    whole = encoded(PIXELS, form)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            content[source.randrange(min(len(content), 150))] = source.randrange(256)
        try:
            assert load_image(bytes(content), limits=Limits(pixels=10_000)).shape[2] == 3
        except ImageError:
            refused += 1
    assert refused > 20


def test_truncated_jpeg_message_says_what_to_do(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:-500])
    with pytest.raises(ImageError, match=r"cut\.jpg: is damaged or truncated \(.*\); replace it$"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes), expected an image"),
        (b"just words\n" * 20, "is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)"),
        (b"%PDF-1.7\n" + bytes(500), "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a known format"),
        (encoded(PIXELS, "TGA"), "is not an image of a known format"),
        (b"P6\n2", "is damaged or truncated (its header makes no sense, or is cut off); replace it"),
    ],
    ids=["empty", "text", "pdf", "postscript", "tga", "header cut off"],
)
def test_what_is_no_known_image_is_refused(tmp_path, content, message):
    path = tmp_path / "thing.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("place", [24, 25], ids=["bits", "colour type"])
def test_file_of_a_known_format_whose_header_makes_no_sense_is_damaged(place, tmp_path):
    content = bytearray(encoded(PIXELS))
    content[place] = 77
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = tmp_path / "a"
    path.write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: is damaged or truncated (its header makes no sense); replace it"


def test_missing_file_and_folder_say_so(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file$"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r": is a folder, expected an image$"):
        load_image(tmp_path)


@pytest.mark.parametrize("source", [None, 5, ("a.png",), "nul\0.png", "x" * 300 + ".png"], ids=repr)
def test_source_of_another_kind_is_an_image_error(source):
    with pytest.raises(ImageError, match="cannot be read as an image"):
        load_image(source)


def animated(form, **options):
    return encoded(PIXELS, form, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], **options)


FILES = {
    "jpeg": encoded(PIXELS, "JPEG", quality=95),
    "progressive jpeg": encoded(PIXELS, "JPEG", progressive=True),
    "cmyk jpeg": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "mpo": animated("MPO"),
    "png": encoded(PIXELS),
    "apng": animated("PNG"),
    "palette png": encoded(Image.fromarray(PIXELS).quantize(16)),
    "16-bit png": encoded(GREY.astype(np.uint16) * 257),
    "gif": animated("GIF"),
    "bmp": encoded(PIXELS, "BMP"),
    "tiff": encoded(PIXELS, "TIFF"),
    "pages": animated("TIFF"),
    "webp": encoded(PIXELS, "WEBP", lossless=True),
    "animated webp": animated("WEBP", lossless=True),
    "ppm": encoded(PIXELS, "PPM"),
    "pgm": encoded(GREY.astype(np.uint16) * 257, "PPM"),
}


@pytest.mark.filterwarnings("ignore:.*only the first one is read:runtime.errors.ImageWarning")
@pytest.mark.parametrize("tolerant", [False, True], ids=["strict", "where a program set LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("kind", FILES)
def test_file_cut_off_at_any_byte_is_an_image_error_or_the_whole_image(kind, tolerant, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    content = FILES[kind]
    whole = load_image(content)
    refused = 0
    for length in range(1, len(content)):
        try:
            assert np.array_equal(load_image(content[:length]), whole)
        except ImageError:
            refused += 1
    assert refused >= len(content) // 4  # what follows the first frame, or the last pixel, is not missed


BOMBS = {
    "PNG": encoded(Image.new("1", (15_000, 13_500))),
    "GIF": encoded(Image.new("1", (15_000, 13_500)), "GIF"),
    "TIFF": encoded(Image.new("1", (15_000, 13_500)), "TIFF", compression="group4"),
    "PPM": b"P4\n15000 13500\n",
}


@pytest.mark.parametrize("form", BOMBS)
def test_image_of_too_many_pixels_is_refused_by_its_header(form, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    refusal = (
        "image: has 15000 x 13500 pixels, expected at most 200000000 in all; "
        "make it smaller, or allow more with limits=runtime.Limits.for_pixels(202500000)"
    )
    with pytest.raises(ImageError) as caught:
        load_image(BOMBS[form])
    assert str(caught.value) == refusal
    with Image.open(io.BytesIO(encoded(PIXELS))) as picture, pytest.raises(ImageError, match=r"has 9 x 6 pixels"):
        load_image(picture, limits=Limits(pixels=53))


def test_size_of_an_image_of_too_many_pixels_is_refused_too(tmp_path):
    (tmp_path / "a.png").write_bytes(BOMBS["PNG"])
    with pytest.raises(ImageError, match=r"a\.png: has 15000 x 13500 pixels, expected at most 200000000 in all"):
        image_size(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png", Limits(pixels=15_000 * 13_500)) == (13_500, 15_000)


def test_limits_are_inclusive_and_arrays_have_none(tmp_path):
    content = encoded(PIXELS)
    exact = Limits(pixels=54, file_bytes=len(content))
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, bytearray(content), io.BytesIO(content), tmp_path / "a.png"):
        assert load_image(source, limits=exact).shape == (6, 9, 3)
        with pytest.raises(ImageError) as caught:
            load_image(source, limits=Limits(file_bytes=len(content) - 1))
        assert f"has more bytes than the {len(content) - 1} that are read; make it smaller, or allow" in str(
            caught.value
        )
    for source in (PIXELS, Image.fromarray(PIXELS)):
        assert load_image(source, limits=Limits(pixels=1, file_bytes=1)).shape == (6, 9, 3)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_device_without_an_end_is_not_read_to_it():
    with pytest.raises(ImageError, match=r"^/dev/zero: has more bytes than the 5000000 that are read"):
        load_image("/dev/zero", limits=Limits(file_bytes=5_000_000))


def test_text_file_and_closed_file_are_told_apart(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PIXELS))
    with pytest.raises(ImageError, match=r"is a text file, expected a binary one; open it with mode 'rb'$"):
        load_image(io.StringIO("words"))
    with open(path, encoding="latin-1") as text, pytest.raises(ImageError, match=r"a\.png: is a text file, expected"):
        load_image(text)
    with open(path, "rb") as file:
        pass
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image \(.*closed file"):
        load_image(file)


@pytest.mark.parametrize(
    "array",
    [
        PIXELS[:, :, :2],
        PIXELS.transpose(2, 0, 1),
        PIXELS[None],
        PIXELS[0, 0],
        PIXELS[:0],
        np.uint8(5) * np.ones((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {list(array.shape)}",
)
def test_array_of_another_shape_is_refused_with_its_shape(array):
    with pytest.raises(ImageError) as caught:
        load_image(np.asarray(array))
    expected = "expected [height, width] or [height, width, 1, 3 or 4]"
    assert str(caught.value) == f"array: found uint8 {list(array.shape)}, {expected}"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GREY > 100, "bool values, expected uint8, uint16 or floating-point; a mask is not an image; for black"),
        (
            GREY.astype(np.int64),
            "int64 values, expected uint8, uint16 or floating-point; convert it with array.ast",
        ),
        (GREY.astype(complex), "complex128 values, expected uint8, uint16 or floating-point"),
        (np.array([[4, 255]], np.float32), "float32 values from 4.0 to 255.0, expected 0 to 1; divide by 255"),
        (np.array([[0.5, np.nan]]), "float64 values from nan to nan, expected 0 to 1; scale it, or replace NaN"),
        (np.array([[0.5, np.inf]]), "float64 values from 0.5 to inf, expected 0 to 1; scale it"),
        (np.array([[-0.25, 1]]), "float64 values from -0.25 to 1.0, expected 0 to 1; scale it"),
        (np.array([[0, 1.5]]), "float64 values from 0.0 to 1.5, expected 0 to 1; scale it"),
    ],
)
def test_array_of_other_values_is_refused_with_advice(array, message):
    with pytest.raises(ImageError) as caught:
        load_image(array)
    assert str(caught.value).startswith(f"array: found {message}")
