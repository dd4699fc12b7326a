"""Levels of a card: the stored values that become 0 and 255, in every kind of source that has more than 8 bits."""

import io
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from runtime.errors import ImageError, ImageWarning
from runtime.image import load_image, stored_values
from runtime.image_files import warned

TWELVE = (0, 4095)
GREY = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 4096, (20, 30, 3)).astype(np.uint16)
LEVELS = (GREY.astype(int) * 255 // 4095).astype(np.uint8)
COLOUR_LEVELS = (COLOURS.astype(int) * 255 // 4095).astype(np.uint8)


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(warned, "WARNED", set())


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(array):
    order = array[:, :, [2, 1, 0, 3][: array.shape[2]]] if array.ndim == 3 else array
    return cv2.imencode(".png", order)[1].tobytes()


GREYS = {
    "PNG": png(GREY),
    "TIFF": tiff(GREY),
    "TIFF, big-endian, Deflate": tiff(GREY, byteorder=">", compression="zlib", predictor=True),
    "TIFF, white as 0": tiff(GREY, photometric="miniswhite"),
    "PGM": b"P5\n30 20\n65535\n" + GREY.astype(">u2").tobytes(),
    "PGM of 12 bits": b"P5\n30 20\n4095\n" + GREY.astype(">u2").tobytes(),
    "PGM as text": b"P2\n30 20\n9999\n" + b" ".join(str(value).encode() for value in GREY.flat) + b"\n",
    "array": GREY,
    "array of the other byte order": GREY.astype(">u2"),
    "PIL image": Image.fromarray(GREY),
    "PIL image of 32 bits": Image.fromarray(GREY.astype(np.int32)),
}


@pytest.mark.parametrize("kind", GREYS)
def test_greys_of_12_bits_keep_all_levels(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_image(GREYS[kind], "L", levels=TWELVE)
    assert np.array_equal(found[:, :, 0], 255 - LEVELS if kind == "TIFF, white as 0" else LEVELS)


def planes(array, **options):
    return tiff(np.moveaxis(array, 2, 0), planarconfig="separate", photometric="rgb", **options)


ALPHA = np.dstack([COLOURS, GREY])
FILES = {
    "PNG": png(COLOURS),
    "PNG with alpha": png(ALPHA),
    "TIFF": tiff(COLOURS, photometric="rgb"),
    "TIFF, LZW, big-endian": tiff(COLOURS, photometric="rgb", compression="lzw", byteorder=">"),
    "TIFF with alpha": tiff(ALPHA, photometric="rgb", extrasamples=["unassalpha"]),
    "TIFF in planes": planes(COLOURS),
    "TIFF in planes, tiles": planes(COLOURS, tile=(16, 16)),
    "TIFF in planes, strips": planes(COLOURS, rowsperstrip=7),
    "PPM": b"P6\n30 20\n65535\n" + COLOURS.astype(">u2").tobytes(),
    "PPM of 12 bits": b"P6\n30 20\n4095\n" + COLOURS.astype(">u2").tobytes(),
    "array": COLOURS,
}


@pytest.mark.parametrize("kind", FILES)
def test_colours_of_12_bits_keep_all_levels(kind):
    assert np.array_equal(load_image(FILES[kind], levels=TWELVE), COLOUR_LEVELS)
    grey = np.asarray(Image.fromarray(COLOUR_LEVELS).convert("L"))
    assert np.array_equal(load_image(FILES[kind], "L", levels=TWELVE)[:, :, 0], grey)


def test_grey_with_alpha_keeps_all_levels():
    rows = np.dstack([GREY, 65_535 - GREY]).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", bytes((0, 0, 0, 30, 0, 0, 0, 20, 16, 4, 0, 0, 0))), (b"IDAT", body), (b"IEND", b"")]
    parts = [
        len(part).to_bytes(4, "big") + name + part + zlib.crc32(name + part).to_bytes(4, "big") for name, part in chunks
    ]
    found = load_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts), "L", levels=TWELVE)
    assert np.array_equal(found[:, :, 0], LEVELS)


def test_a_picture_that_pillow_has_opened_keeps_all_levels():
    assert np.array_equal(load_image(Image.open(io.BytesIO(FILES["PNG"])), levels=TWELVE), COLOUR_LEVELS)


UPRIGHT = {
    2: COLOUR_LEVELS[:, ::-1],
    3: COLOUR_LEVELS[::-1, ::-1],
    4: COLOUR_LEVELS[::-1],
    5: COLOUR_LEVELS.transpose(1, 0, 2),
    6: np.rot90(COLOUR_LEVELS, -1),
    7: np.rot90(COLOUR_LEVELS, 2).transpose(1, 0, 2),
    8: np.rot90(COLOUR_LEVELS),
}


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "planes"])
def test_colours_are_turned_upright(form, turn):
    if form == "PNG":
        exif = Image.Exif()
        exif[274] = turn
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        file = FILES["PNG"]
        head = len(chunk) - 4
        content = file[:33] + head.to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + file[33:]
    elif form == "TIFF":
        content = tiff(COLOURS, photometric="rgb", extratags=[(274, 3, 1, turn, True)])
    else:
        content = planes(COLOURS, extratags=[(274, 3, 1, turn, True)])
    assert np.array_equal(load_image(content, levels=TWELVE), UPRIGHT[turn])


@pytest.mark.parametrize(
    "content",
    [
        planes(COLOURS, compression="zlib"),
        tiff(ALPHA, photometric="separated"),
        tiff(ALPHA, photometric="rgb", extrasamples=["assocalpha"]),
    ],
    ids=["compressed planes", "CMYK", "premultiplied"],
)
def test_colours_whose_stored_values_are_lost_are_refused(content, capfd):
    with pytest.raises(ImageError) as caught:
        load_image(content, levels=TWELVE)
    assert str(caught.value) == (
        "image: has colours of 16 bits of which decoders keep 8, and this model needs their stored values; save it as "
        "an RGB PNG or TIFF of 16 bits, or give the array"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("levels", [(0, 1), (0, 65_535), (100, 101), (3000, 3500), (0, 255)])
def test_black_and_white_become_0_and_255(levels):
    black, white = levels
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = np.clip((values.astype(int) - black) * 255 // (white - black), 0, 255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(load_image(values, "L", levels=levels)[:, :, 0], expected)
    if levels == (0, 65_535):
        assert np.array_equal(expected, load_image(values, "L")[:, :, 0])


def test_values_beyond_the_levels_are_told_once(tmp_path):
    path = tmp_path / "full.png"
    path.write_bytes(png(GREY * 16))
    with pytest.warns(ImageWarning) as caught:
        first, second = (load_image(path, levels=TWELVE) for _ in range(2))
    assert np.array_equal(first, second)
    beyond = f"{(GREY * 16 > 4095).mean():.0%}"
    assert [str(one.message) for one in caught] == [
        f"{path}: {beyond} of its values, which are {16 * int(GREY.min())} to {16 * int(GREY.max())}, are beyond the "
        "levels of this model, 0 to 4095, and become black or white; scale them as the training images were"
    ]


EIGHT = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("form", [".png", ".jpg", ".ppm", "array", "PIL"])
def test_8_bits_count_as_scaled_already_which_is_told_once(form):
    sources = {"array": EIGHT, "PIL": Image.fromarray(EIGHT)}
    source = sources[form] if form in sources else cv2.imencode(form, EIGHT)[1].tobytes()
    expected = load_image(source)
    with pytest.warns(ImageWarning) as caught:
        found = [load_image(source, levels=(16, 4095)) for _ in range(2)]
    assert all(np.array_equal(one, expected) for one in found)
    assert [str(one.message) for one in caught] == [
        f"{'array' if form == 'array' else 'image'}: has 8 bits, and this model was trained on values from 16 to 4095; "
        "it is taken as scaled to 0..255 from these already; give the original of 16 bits if it was scaled otherwise"
    ]
    assert np.array_equal(load_image(source, levels=(0, 255)), expected)
    below = np.clip((expected.astype(int) - 10) * 255 // 190, 0, 255)
    assert np.array_equal(load_image(source, levels=(10, 200)), below)


def test_floating_point_numbers_are_0_to_1_whatever_the_levels():
    floats = (EIGHT / 255).astype(np.float32)
    assert np.array_equal(load_image(floats, levels=TWELVE), EIGHT)


def test_raw_channels_have_levels_too():
    five = np.dstack([COLOURS, GREY, GREY])
    found = load_image(five, "raw", count=5, levels=TWELVE)
    assert np.array_equal(found, np.dstack([COLOUR_LEVELS, LEVELS, LEVELS]))


@pytest.mark.parametrize(
    ("content", "expected", "top"),
    [
        (GREYS["PNG"], GREY, 65_535),
        (GREYS["PGM of 12 bits"], GREY, 4095),
        (GREYS["TIFF, white as 0"], GREY, 65_535),
        (FILES["PNG"], COLOURS, 65_535),
        (FILES["PPM of 12 bits"], COLOURS, 65_535),
        (png(EIGHT), EIGHT, 255),
        (cv2.imencode(".ppm", EIGHT)[1].tobytes(), EIGHT[:, :, ::-1], 255),
    ],
    ids=["PNG", "PGM", "TIFF", "colour PNG", "PPM", "8 bits", "PPM of 8 bits"],
)
def test_stored_values_are_those_of_the_file(content, expected, top):
    values, found = stored_values(content)
    assert np.array_equal(values.reshape(expected.shape), expected) and found == top
