"""Files that are read all the same: on request a JPEG without end marker; a PNG with large profiles or texts."""

import warnings
import zlib

import numpy as np
import pytest
from damaged import png_chunk
from pictures import PIXELS, encoded
from PIL import Image

from runtime.errors import ConfigError, ImageError, ImageWarning
from runtime.image import Limits, image_size, load_image

WARN = Limits(truncated="warn")
SMOOTH = (np.add.outer(np.arange(96), 2 * np.arange(80))[:, :, None] // 8 * 8 + np.array([0, 20, 50])).astype(np.uint8)

BIG = zlib.compress(bytes(2**21))
TEXTS = {
    "profile": (b"iCCP", b"profile\0\0" + BIG),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
    "EXIF in text": (b"zTXt", b"Raw profile type exif\0\0" + BIG),
    "text": (b"tEXt", b"Comment\0" + b"word " * 1_000_000),
    "XMP that is damaged": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG[:9] + b"\xff" * 9),
}


def with_chunk(name, body, count=1):
    content = encoded(PIXELS)
    start = content.index(b"IDAT") - 4
    return content[:start] + png_chunk(name, body) * count + content[start:]


@pytest.mark.parametrize("kind", TEXTS)
def test_large_profile_or_text_of_a_png_is_passed_over(kind, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(*TEXTS[kind]))
    np.testing.assert_array_equal(load_image(path), PIXELS)
    assert image_size(path) == (6, 9)


@pytest.mark.parametrize(("lines", "shape"), [(900_000, (9, 6, 3)), (2_000_000, (6, 9, 3))])
def test_exif_in_a_text_turns_the_picture_up_to_a_megabyte(lines, shape):
    exif = Image.Exif()
    exif[274] = 6
    text = b"\nexif\n  34\n" + exif.tobytes().hex().encode() + b"\n" * lines
    content = with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    assert load_image(content).shape == shape


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_jpeg_without_end_marker_is_read_on_request_with_a_warning(options, tmp_path):
    path = tmp_path / "a.jpg"
    whole = encoded(SMOOTH, "JPEG", **options)
    path.write_bytes(whole[:-2])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value) == f"{path}: is damaged or truncated (it ends before its end marker); replace it"
    with pytest.warns(ImageWarning) as told:
        found = load_image(path, limits=WARN)
    assert [str(one.message) for one in told] == [f"{path}: has no end marker, but all of its pixels"]
    assert told[0].filename == __file__
    np.testing.assert_array_equal(found, load_image(whole))


@pytest.mark.parametrize("progressive", [False, True])
def test_half_of_a_jpeg_is_read_on_request_with_another_warning(progressive):
    whole = encoded(SMOOTH, "JPEG", progressive=progressive)
    with pytest.warns(ImageWarning) as told:
        found = load_image(whole[: len(whole) * 3 // 4], limits=WARN)
    message = "image: is truncated, and the pixels that are missing are grey or blurred; replace it"
    assert [str(one.message) for one in told] == [message]
    assert found.shape == SMOOTH.shape
    if not progressive:
        np.testing.assert_array_equal(found[:32], load_image(whole)[:32])
        assert not np.array_equal(found, load_image(whole))


def test_jpeg_that_ends_before_its_pixels_is_refused_also_on_request():
    whole = encoded(SMOOTH, "JPEG")
    for end in (whole.index(b"\xff\xda"), whole.index(b"\xff\xc0")):
        with pytest.raises(ImageError, match=r"^image: is damaged or truncated \(it ends before its end marker\)"):
            load_image(whole[:end], limits=WARN)


def test_whole_files_are_read_without_a_warning_and_warnings_may_be_errors():
    whole = encoded(SMOOTH, "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(whole, limits=WARN), load_image(whole))
        with pytest.raises(ImageWarning, match=r"^image: has no end marker, but all of its pixels$"):
            load_image(whole[:-2], limits=WARN)


def test_other_words_for_truncated_files_are_refused():
    with pytest.raises(ConfigError) as caught:
        Limits(truncated="ignore")
    assert str(caught.value) == "Limits.truncated: found 'ignore', expected one of refuse, warn"
