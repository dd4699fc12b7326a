"""Kinds of TIFF by name, and planes of 16 bits, which Pillow reads as 8 bits."""

import io

import numpy as np
import pytest
import tifffile
from image_corpus import smooth
from pictures import encoded
from PIL import Image

from runtime.errors import ImageError
from runtime.image import Limits, image_size, load_image

LEVELS = np.round(smooth(6) * 65_535).astype(np.uint16)
"""[21, 37, 6]"""


def tiff(values, order="<", **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=order) as writer:
        writer.write(values, metadata=None, **options)
    return file.getvalue()


def planes(values, **options):
    """A TIFF of values [height, width, bands] with a plane for each band."""
    return tiff(np.moveaxis(values, -1, 0), planarconfig="separate", photometric="rgb", **options)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", [{"rowsperstrip": 5}, {"rowsperstrip": 21}, {"tile": (16, 32)}], ids=str)
@pytest.mark.parametrize("more", [[], ["unassalpha"], ["unspecified", "unspecified"]], ids=len)
def test_planes_of_16_bits_are_read_as_tifffile_reads_them(order, layout, more):
    values = LEVELS[:, :, : 3 + len(more)]
    content = planes(values, order=order, extrasamples=more or None, **layout)
    np.testing.assert_array_equal(load_image(content), values[:, :, :3] // 257)
    np.testing.assert_array_equal(np.moveaxis(tifffile.imread(io.BytesIO(content)), 0, -1), values)


def test_planes_of_16_bits_are_turned_upright(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(planes(LEVELS[:, :, :3], extratags=[(274, "H", 1, 6, True)]))
    np.testing.assert_array_equal(load_image(path), np.rot90(LEVELS[:, :, :3] // 257, -1))
    assert image_size(path) == (37, 21)
    assert image_size(path, upright=False) == (37, 21)  # as for every TIFF, which Pillow turns itself


def test_colours_in_planes_that_alpha_was_multiplied_with_are_divided_by_it():
    alpha = np.full((21, 37, 1), 32_768, np.uint16)
    values = np.concatenate([LEVELS[:, :, :3] // 2, alpha], axis=2)
    found = load_image(planes(values, extrasamples=["assocalpha"]))
    np.testing.assert_array_equal(found, values[:, :, :3].astype(np.uint32) * 255 // 32_768)
    hidden = load_image(planes(values * np.array([1, 1, 1, 0], np.uint16), extrasamples=["assocalpha"]))
    np.testing.assert_array_equal(hidden, values[:, :, :3] // 257)


REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


@pytest.mark.parametrize("compression", [None, "lzw", "packbits"])
@pytest.mark.parametrize(("dtype", "bands"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)], ids=str)
def test_bits_in_reversed_order_are_read(dtype, bands, compression):
    top = np.iinfo(dtype).max
    values = np.round(smooth(3)[:, :, :bands].squeeze() * top).astype(dtype)
    content = bytearray(tiff(values, photometric="rgb" if bands == 3 else "minisblack", compression=compression))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        unit = page.tags[296]  # becomes the order of bits
        content[unit.offset : unit.offset + 2] = (266).to_bytes(2, "little")
        content[unit.valueoffset] = 2
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            content[start : start + count] = REVERSED[list(content[start : start + count])].tobytes()
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(content)), values)
    levels = values if dtype is np.uint8 else values // 257
    np.testing.assert_array_equal(
        load_image(bytes(content)), levels.reshape(21, 37, bands) + np.zeros((1, 1, 3), np.uint8)
    )


def test_planes_that_are_cut_off_are_damaged_and_their_memory_is_limited():
    content = planes(LEVELS[:, :, :3])
    with pytest.raises(
        ImageError, match=r"^image: is damaged or truncated \(its strips or tiles are cut off\); replace"
    ):
        load_image(content[:-10])
    with pytest.raises(ImageError, match=r"^image: takes about \d+ bytes to decode, expected at most 10000; make it"):
        load_image(content, limits=Limits(memory=10_000))


GREY = LEVELS[:, :, 0]
REFUSED = {
    "int8": (tiff(GREY.astype(np.int8)), "1 x int8, grey, uncompressed"),
    "int16": (tiff(GREY.astype(np.int16), order=">"), "1 x int16, grey, uncompressed"),
    "uint32": (tiff(GREY.astype(np.uint32)), "1 x uint32, grey, uncompressed"),
    "float16": (
        tiff((GREY / 65_535).astype(np.float16), compression="zlib", predictor=3),
        "1 x float16, grey, Deflate with predictor 3",
    ),
    "float32 RGB": (tiff(LEVELS[:, :, :3].astype(np.float32), photometric="rgb"), "3 x float32, RGB, uncompressed"),
    "predictor of PackBits": (
        tiff(GREY, compression="packbits", predictor=2),
        "1 x uint16, grey, PackBits with predictor 2",
    ),
    "bands": (
        tiff(LEVELS, photometric="minisblack", planarconfig="contig", compression="lzw"),
        "6 x uint16, grey with 5 more channels, LZW",
    ),
    "bands in planes": (
        tiff(np.moveaxis(LEVELS[:, :, :3], -1, 0), photometric="minisblack", planarconfig="separate"),
        "3 x uint16 in planes, grey with 2 more channels, uncompressed",
    ),
    "LERC": (tiff(GREY, compression="lerc"), "1 x uint16, grey, LERC"),
    "WebP": (
        tiff((LEVELS[:, :, :3] // 257).astype(np.uint8), compression="webp", photometric="rgb"),
        "3 x uint8, RGB, WebP",
    ),
    "10 bits": (tiff(GREY // 64, bitspersample=10), "1 x uint10, grey, uncompressed"),
}


BANDS = ("float32 RGB", "bands", "bands in planes")
"""Kinds that networks of as many channels take, see tests/runtime/images/test_channels.py."""


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kind_is_refused_by_name(kind, tmp_path):
    content, name = REFUSED[kind]
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    told = f"is a TIFF of {name}, which is not read; open it with tifffile and give the array"
    if kind in BANDS:
        told += f" of its colours, or train with --channels {name[0]}"
        assert image_size(path) == GREY.shape
    for read in (load_image,) if kind in BANDS else (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {told}"


@pytest.mark.parametrize(("black", "is_read"), [(0, True), (15, False)])
def test_ycbcr_is_read_in_the_usual_range_only(black, is_read):
    picture = Image.fromarray((LEVELS[:, :, :3] // 257).astype(np.uint8)).convert("YCbCr")
    with Image.open(io.BytesIO(encoded(picture, "TIFF"))) as opened:
        assert tuple(opened.tag_v2[532]) == (0, 255, 128, 255, 128, 255)
    content = encoded(picture, "TIFF", tiffinfo={532: (black, 255, 128, 255, 128, 255)})
    if is_read:
        np.testing.assert_array_equal(load_image(content), np.asarray(picture.convert("RGB")))
    else:
        with pytest.raises(
            ImageError, match=r"^image: is a TIFF of 3 x uint8, YCbCr, uncompressed, which is not read; "
        ):
            load_image(content)


def test_big_endian_bigtiff_is_refused_by_name():
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=">", bigtiff=True) as writer:
        writer.write(GREY)
    with pytest.raises(ImageError) as caught:
        load_image(file.getvalue())
    told = "is a BigTIFF in big-endian byte order, which is not read; open it with tifffile and give the array"
    assert str(caught.value) == f"image: {told}"


@pytest.mark.parametrize("loaded", [False, True])
def test_picture_that_pillow_reads_wrongly_is_refused(loaded):
    for content, told in (
        (REFUSED["int8"][0], "which is not read; open it with tifffile and give the array"),
        (planes(LEVELS[:, :, :3]), "which Pillow reads as 8 bits; give the path or the bytes of the file"),
    ):
        with Image.open(io.BytesIO(content)) as picture:
            if loaded:
                picture.load()
            with pytest.raises(ImageError, match=rf"^image: is a TIFF of .*, {told}$"):
                load_image(picture)


def test_kind_that_this_pillow_does_not_know_is_refused_by_name():
    with pytest.raises(ImageError) as caught:
        load_image(tiff(GREY, order=">", photometric="miniswhite"))
    told = "is a TIFF of 1 x uint16, grey with white as 0, uncompressed, which is not read"
    assert str(caught.value) == f"image: {told}; open it with tifffile and give the array"


def test_directory_without_a_size_is_damaged():
    content = bytearray(encoded(GREY, "TIFF"))
    start = content.index(b"\0\1\4\0") if b"\0\1\4\0" in content else content.index(b"\0\1\3\0")
    content[start : start + 2] = b"\0\x80"
    with pytest.raises(ImageError) as caught:
        load_image(bytes(content))
    assert str(caught.value) == "image: is damaged or truncated (its directory has no width or height); replace it"
