"""A file that lacks pixels is refused, also where its structure, lengths and checksums are right."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from damaged import (
    PROPER,
    as_text,
    cut_tiff,
    cut_webp,
    edited_png,
    gif_of_fewer_rows,
    png_chunk,
    rle_bmp,
    tiff_of_fewer_rows,
)
from pictures import encoded
from PIL import Image

from runtime.errors import ImageError
from runtime.image import load_image
from runtime.image_files.whole import MARKS

NOISE = np.random.default_rng(3).integers(0, 256, (96, 80, 3), np.uint8)
SMOOTH = (np.add.outer(np.arange(96), 2 * np.arange(80))[:, :, None] // 8 * 8 + np.array([0, 20, 50])).astype(np.uint8)
GREY = NOISE[:, :, 0]

KINDS = {
    "jpeg": ("JPEG", encoded(SMOOTH, "JPEG")),
    "grey jpeg": ("JPEG", encoded(GREY, "JPEG")),
    "jpeg with restarts": ("JPEG", encoded(SMOOTH, "JPEG", restart_marker_rows=1)),
    "progressive jpeg": ("JPEG", encoded(SMOOTH, "JPEG", progressive=True)),
    "cmyk jpeg": ("JPEG", encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")),
    "png": ("PNG", encoded(NOISE)),
    "mask png": ("PNG", encoded(np.uint8(255) * (GREY > 100))),
    "one-bit png": ("PNG", encoded(Image.fromarray(GREY).convert("1"))),
    "palette png": ("PNG", encoded(Image.fromarray(NOISE).quantize(9))),
    "png with alpha": ("PNG", encoded(Image.fromarray(NOISE).convert("RGBA"))),
    "16-bit png": ("PNG", encoded(GREY.astype(np.uint16) * 257)),
    "gif": ("GIF", encoded(NOISE, "GIF", interlace=0)),
    "interlaced gif": ("GIF", encoded(NOISE, "GIF", interlace=1)),
    "bmp": ("BMP", encoded(NOISE, "BMP")),
    "palette bmp": ("BMP", encoded(Image.fromarray(NOISE).quantize(16), "BMP")),
    "tiff": ("TIFF", encoded(NOISE, "TIFF")),
    "tiff, lzw": ("TIFF", encoded(NOISE, "TIFF", compression="tiff_lzw")),
    "tiff, deflate": ("TIFF", encoded(NOISE, "TIFF", compression="tiff_adobe_deflate")),
    "tiff, packbits": ("TIFF", encoded(NOISE, "TIFF", compression="packbits")),
    "tiff, jpeg": ("TIFF", encoded(SMOOTH, "TIFF", compression="jpeg")),
    "tiff, group 4": ("TIFF", encoded(Image.fromarray(SMOOTH).convert("1"), "TIFF", compression="group4")),
    "webp": ("WEBP", encoded(SMOOTH, "WEBP")),
    "lossless webp": ("WEBP", encoded(NOISE, "WEBP", lossless=True)),
    "ppm": ("PPM", encoded(NOISE, "PPM")),
    "pbm": ("PPM", encoded(Image.fromarray(GREY).convert("1"), "PPM")),
    "16-bit pgm": ("PPM", encoded(GREY.astype(np.uint16) * 257, "PPM")),
    "ppm as text": ("PPM as text", as_text(NOISE)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_is_cut_and_ended_properly_is_an_image_error_or_the_whole_image(kind):
    form, content = KINDS[kind]
    whole, refused = load_image(content), 0
    for share in (0, 0.01, 0.1, 0.31, 0.5, 0.75, 0.9, 0.97, 0.995, 0.999):
        cut = PROPER[form](content, share)
        try:
            assert np.array_equal(load_image(cut), whole)
        except ImageError:
            refused += 1
    assert refused >= 8
    assert np.array_equal(load_image(PROPER[form](content, 1)), whole)


@pytest.mark.parametrize("size", [(100, 100), (14_000, 14_000)])
def test_png_whose_finished_stream_holds_one_row_is_refused(size):
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    row = png_chunk(b"IDAT", zlib.compress(bytes(1 + size[0])))
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + row + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError) as caught:
        load_image(content)
    assert str(caught.value) == "image: is damaged or truncated (pixels are missing at its end); replace it"


@pytest.mark.parametrize("size", [(9, 6), (1, 5), (5, 1), (1, 1), (3, 2), (8, 8)])
@pytest.mark.parametrize("level", [0, *MARKS, 255], ids=["black", "first mark", "second mark", "white"])
def test_interlaced_png_is_whole_with_every_level_and_refused_without_its_last_byte(size, level):
    width, height = size
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [(width - x + dx - 1) // dx for x, y, dx, dy in passes for _ in range(y, height, dy)]
    data = b"".join(b"\0" + bytes([level]) * length for length in rows if length > 0)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    files = [
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
        for pixels in (data, data[:-1])
    ]
    assert (load_image(files[0], "L") == level).all()
    with pytest.raises(ImageError, match=r"is damaged or truncated \(.*\); replace it$"):
        load_image(files[1], "L")


@pytest.mark.parametrize("level", [0, *MARKS, 255], ids=["black", "first mark", "second mark", "white"])
def test_rows_of_the_levels_that_are_decoded_onto_are_read(level):
    pixels = np.full((5, 7), level, np.uint8)
    for form in ("PNG", "GIF", "BMP"):
        assert np.array_equal(load_image(encoded(pixels, form), "L")[:, :, 0], pixels)


def test_damaged_chunk_of_pixels_is_refused_by_its_checksum():
    content = bytearray(encoded(NOISE))
    content[content.find(b"IDAT") + 400] ^= 1
    with pytest.raises(ImageError, match=r"the checksum of its chunk IDAT is wrong\); replace it$"):
        load_image(bytes(content))
    assert np.array_equal(load_image(edited_png(encoded(NOISE), lambda name, body: body)), NOISE)


@pytest.mark.parametrize("rows", [1, 50, 95])
def test_gif_and_tiff_of_fewer_rows_are_refused(rows):
    with pytest.raises(ImageError):
        load_image(gif_of_fewer_rows(GREY, rows))
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        with pytest.raises(ImageError):
            load_image(tiff_of_fewer_rows(NOISE, rows, compression=compression))


SMALL_WEBP = bytes.fromhex(
    "524946465a00000057454250565038204e0000003003009d012a26000e003f117eb6542c2825232aa8018022094d054b4c921b5f570000fee877"
    "a9bc2657a6d9afb0c49dee5a291515fdfee6bfc6c5da080faf5ba39eb8cf1dda89e0541e1d970000"
)
"""A lossy file of 38x14 pixels, whose last blocks of 16x16 are mostly outside of the picture."""


def test_webp_whose_missing_bytes_change_pixels_only_with_some_values_is_refused():
    whole = load_image(SMALL_WEBP)
    for missing in range(1, 60):
        cut = cut_webp(SMALL_WEBP, 1 - missing / 78 + 1e-9)
        if missing == 1:  # padding of the encoder
            assert np.array_equal(load_image(cut), whole)
            continue
        with pytest.raises(ImageError):
            load_image(cut)


def test_progressive_jpeg_that_ends_between_two_scans_is_refused():
    content = KINDS["progressive jpeg"][1]
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    assert len(scans) > 5
    for start in scans[1:]:
        with pytest.raises(ImageError) as caught:
            load_image(content[:start] + b"\xff\xd9")
        assert str(caught.value) == "image: is damaged or truncated (scans are missing at its end); replace it"


@pytest.mark.parametrize("junk", [b"\0", b"junk", b"\xff\xff\xff", b"\xff\0\xff"])
def test_jpeg_with_junk_between_its_segments_is_read_if_it_is_whole(junk):
    for kind in ("jpeg", "progressive jpeg"):
        content = KINDS[kind][1]
        tables = content.index(b"\xff\xdb")
        frame = re.search(rb"\xff[\xc0\xc2]\0\x11", content).start()
        longer = junk.join((content[:tables], content[tables:frame], content[frame:]))
        assert np.array_equal(load_image(longer), load_image(content))
        with pytest.raises(ImageError, match=r"is damaged or truncated"):
            load_image(PROPER["JPEG"](longer, 0.5))


def test_jpeg_with_junk_in_too_many_places_is_refused():
    content = KINDS["jpeg"][1]
    for count, is_read in ((100, True), (101, False)):
        longer = content[:2] + b"\xff\xfe\0\2\0" * count + content[2:]
        if is_read:
            assert np.array_equal(load_image(longer), load_image(content))
        else:
            with pytest.raises(
                ImageError, match=r"\(there are bytes between the segments of its header\); replace it$"
            ):
                load_image(longer)


def test_tiff_with_a_jpeg_of_two_channels_is_refused_by_name():
    with pytest.raises(ImageError, match=r"^image: is a TIFF with a JPEG of 2 channels, which is not read; save it as"):
        load_image(encoded(Image.fromarray(GREY).convert("LA"), "TIFF", compression="jpeg"))


@pytest.mark.parametrize("compression", ["group3", "tiff_ccitt", "tiff_raw_16"])
def test_tiff_with_another_fax_compression_is_refused_by_name(compression):
    picture = Image.new("1", (64, 64), 1)
    with pytest.raises(ImageError, match=r"^image: is a TIFF with fax compression other than Group 4 in strips"):
        load_image(encoded(picture, "TIFF", compression=compression))


def test_half_of_a_jpeg_with_an_end_marker_is_refused_in_libjpegs_words():
    content = KINDS["jpeg"][1]
    with pytest.raises(ImageError) as caught:
        load_image(PROPER["JPEG"](content, 0.5))
    told = "Corrupt JPEG data, premature end of data segment"
    assert str(caught.value) == f"image: is damaged or truncated ({told}); replace it"


def test_text_that_is_cut_inside_its_last_number_is_refused():
    content = as_text(np.array([[1, 20, 255]], np.uint8))
    assert load_image(content, "L").tolist() == [[[1], [20], [255]]]
    for length in range(2, 5):
        with pytest.raises(ImageError) as caught:
            load_image(content[:-length])
    assert "it has 2 of 3 values" in str(caught.value) or "its last number may be cut off" in str(caught.value)


def test_text_that_ends_with_a_number_that_cannot_be_longer_is_read():
    for content, values in (
        (b"P2 2 1 255 7 25\n\0\0", [7, 25]),
        (b"P2 2 1 255 7 26", [7, 26]),
        (b"P2 2 1 15\n7 15", [119, 255]),
        (b"P2 1 1 1 1", [255]),
    ):
        assert load_image(content, "L").ravel().tolist() == values
    for content in (b"P2 2 1 255 7 25", b"P2 2 1 255 7 25\0", b"P2 2 1 15\n7 1", b"P2 2 1 255 7 0"):
        with pytest.raises(ImageError, match=r"its last number may be cut off"):
            load_image(content)


def test_run_lengths_of_a_bmp_are_read_and_refused_if_they_leave_pixels_out():
    indices = np.repeat(np.arange(0, 60, dtype=np.uint8).reshape(6, 10), 3, axis=1)
    colours = np.array([(index // 2, 255 - index, index) for index in range(60)], np.uint8)
    content = rle_bmp(indices)
    assert np.array_equal(load_image(content), colours[indices])
    with Image.open(io.BytesIO(content)) as picture:
        assert np.array_equal(load_image(content), np.asarray(picture.convert("RGB")))
    for runs in (
        b"\x1e\5\0\1",
        b"\x1e\5\0\0" * 5 + b"\x1d\5\0\1",
        b"\x1e\5\0\2\1\1" + b"\x1e\5\0\0" * 5,
        b"\x1f\5" * 9,
    ):
        with pytest.raises(ImageError, match=r"(leave pixels out|goes beyond its row|end early)\); replace it$"):
            load_image(rle_bmp(indices, runs))


def test_strip_of_a_tiff_that_is_shorter_than_its_rows_is_refused():
    with pytest.raises(ImageError, match=r"its strips or tiles are too short\); replace it$"):
        load_image(cut_tiff(encoded(NOISE, "TIFF"), 0.5))


def test_zero_bytes_between_the_blocks_of_a_gif_are_passed_over():
    content = encoded(GREY, "GIF")
    frame = content.index(b",", 13 + 3 * 256)
    np.testing.assert_array_equal(load_image(content[:frame] + b"\0\0" + content[frame:], "L")[:, :, 0], GREY)
