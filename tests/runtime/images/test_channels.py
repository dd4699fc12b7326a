"""Files with all of their channels: TIFF files, NumPy's, pictures with alpha."""

import io
import zipfile

import cv2
import numpy as np
import pytest
import tifffile
from pictures import encoded
from PIL import Image

from runtime.errors import ImageError, ImageWarning
from runtime.image import Limits, has_deep_values, image_size, load_image, stored_values

SIDES = (37, 50)
OTHER, DAMAGED = "other channels:", "is damaged or truncated"


def bands(count, dtype="uint8"):
    """Noise [37, 50, count] of a type; floating-point numbers are 0..1."""
    noise = np.random.default_rng(count).random((*SIDES, count))
    return noise.astype(dtype) if np.dtype(dtype).kind == "f" else (noise * np.iinfo(dtype).max).astype(dtype)


def levels_of(values):
    """The uint8 levels of stored values, as those of arrays are."""
    if values.dtype == np.uint8:
        return values
    return (values // 257).astype(np.uint8) if values.dtype == np.uint16 else np.rint(255 * values).astype(np.uint8)


def tiff(values, planar=False, **options):
    """A TIFF of values [height, width, channels] as tifffile writes it."""
    file = io.BytesIO()
    options = {"photometric": "minisblack", "rowsperstrip": None if "tile" in options else 10} | options
    if values.shape[2] > 1:
        options |= {"planarconfig": "separate" if planar else "contig"}
    tifffile.imwrite(file, np.moveaxis(values, 2, 0) if planar else values, **options)
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(compressed=True, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize(
    ("planar", "options"),
    [
        (False, {}),
        (True, {}),
        (False, {"compression": "lzw", "predictor": 2}),
        (True, {"compression": "zlib", "predictor": 2, "tile": (16, 32)}),
        (False, {"compression": "zlib", "predictor": 2, "tile": (16, 32), "byteorder": ">"}),
        (False, {"compression": "packbits", "byteorder": ">"}),
        (False, {"compression": "zstd", "bigtiff": True, "tile": (32, 16)}),
        (True, {"byteorder": ">", "tile": (16, 16)}),
    ],
    ids=str,
)
def test_a_tiff_of_any_number_of_channels_gives_them_all(count, dtype, planar, options):
    values = bands(count, dtype)
    if values.dtype.kind == "f":
        options = {name: value for name, value in options.items() if name != "predictor"}
    content = tiff(values, planar and count > 1, **options)
    assert np.array_equal(load_image(content, "raw", count=count), levels_of(values))
    if values.dtype.kind == "u":
        stored, top = stored_values(content, channels="raw")
        assert np.array_equal(stored, values) and top == np.iinfo(dtype).max


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float16"])
def test_arrays_in_numpys_files_are_taken_as_arrays_are(tmp_path, suffix, dtype):
    values = bands(5, dtype)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(npy(np.asfortranarray(values)) if suffix == "npy" else npz(image=values))
    expected = load_image(values, "raw")
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert np.array_equal(load_image(source, "raw", count=5), expected)
    assert image_size(path) == SIDES
    assert has_deep_values(path) == (np.dtype(dtype).kind == "u" and np.dtype(dtype).itemsize == 2)


def test_levels_apply_to_stored_values_and_not_to_floating_point_numbers(tmp_path):
    values = (bands(4, "uint16") // 16).astype(np.uint16)  # 12 bits
    expected = load_image(values, "raw", levels=(0, 4095))
    assert expected.max() > 250
    for content in (npy(values), npz(image=values), tiff(values), tiff(values, planar=True, compression="zlib")):
        assert np.array_equal(load_image(content, "raw", count=4, levels=(0, 4095)), expected)
    floats = bands(4, "float32")
    assert np.array_equal(load_image(npy(floats), "raw", levels=(0, 4095)), levels_of(floats))


def test_the_image_is_found_among_several_arrays():
    values = bands(3)
    for content in (npz(image=values, mask=values[:, :, 0]), npz(arr_0=values, arr_1=values + 1)):
        assert np.array_equal(load_image(content, "raw"), values)
    assert np.array_equal(load_image(npz(bands=values), "raw"), values)
    with pytest.raises(ImageError) as caught:
        load_image(npz(a=values, b=values), "raw")
    assert str(caught.value) == (
        "image: is an archive of 2 arrays (a, b), expected one, or one that is called image; save it with "
        "numpy.savez_compressed(path, image=array)"
    )


def test_pictures_give_their_colours_and_alpha():
    rgba = bands(4)
    assert np.array_equal(load_image(encoded(Image.fromarray(rgba)), "raw", count=4), rgba)
    assert np.array_equal(load_image(Image.fromarray(rgba), "raw", count=4), rgba)
    assert np.array_equal(load_image(encoded(Image.fromarray(rgba[:, :, :3])), "raw", count=3), rgba[:, :, :3])
    assert np.array_equal(load_image(encoded(Image.fromarray(rgba[:, :, 0])), "raw", count=1), rgba[:, :, :1])
    grey_alpha = Image.fromarray(rgba[:, :, :2], "LA")
    assert np.array_equal(load_image(encoded(grey_alpha), "raw", count=2), rgba[:, :, :2])
    jpeg = encoded(Image.fromarray(rgba[:, :, :3]), "JPEG")
    assert np.array_equal(load_image(jpeg, "raw", count=3), load_image(jpeg))


@pytest.mark.parametrize("levels", [None, (0, 4095)])
def test_a_png_of_16_bits_keeps_its_alpha(levels):
    deep = (bands(4, "uint16") // 16).astype(np.uint16) if levels else bands(4, "uint16")
    content = cv2.imencode(".png", deep[:, :, [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(load_image(content, "raw", count=4, levels=levels), load_image(deep, "raw", levels=levels))
    grey = cv2.imencode(".png", deep[:, :, 0])[1].tobytes()
    assert np.array_equal(
        load_image(grey, "raw", count=1, levels=levels), load_image(deep[:, :, :1], "raw", levels=levels)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright(orientation, tmp_path):
    values = bands(5)
    path = tmp_path / "a.tif"
    turn = [(274, "H", 1, orientation, True)]
    path.write_bytes(tiff(values, extratags=turn))
    upright = np.dstack([load_image(tiff(values[:, :, [band]], extratags=turn), "L") for band in range(5)])
    assert np.array_equal(load_image(path, "raw"), upright)
    assert image_size(path) == upright.shape[:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(bands(3)), f"{OTHER} 3"),
        (encoded(Image.fromarray(bands(4))), f"{OTHER} 4"),
        (encoded(Image.new("L", (7, 5)), "JPEG"), f"{OTHER} 1"),
        (npy(bands(6)), f"{OTHER} 6"),
        (
            npy(np.zeros((5, 37, 50), np.uint8)),
            "found uint8 [5, 37, 50], expected [height, width, 5] for this model; numpy.moveaxis(array, 0, -1) puts "
            "the channels last",
        ),
        (npy(bands(5)[:, :, 0]), "found uint8 [37, 50], expected [height, width, 5] for this model"),
        (
            npy(bands(5).astype(np.int16)),
            "found int16 values, expected uint8, uint16 or floating-point; convert it with array.astype(np.uint8) if "
            "its values are 0..255",
        ),
        (
            npy(np.linspace(0, 2, 20, dtype=np.float32).reshape(2, 2, 5)),
            "found float32 values from 0.0 to 2.0, expected 0 to 1; scale it, or replace NaN and infinity",
        ),
        (npy(bands(5))[:-1], f"{DAMAGED} (it holds fewer values than its header says); replace it"),
        (npy(bands(5))[:40], f"{DAMAGED} (its header makes no sense); replace it"),
        (npz(image=bands(5))[:-200], f"{DAMAGED} (its archive is cut off or changed); replace it"),
        (tiff(bands(5))[:-1], f"{DAMAGED} (its strips or tiles are cut off); replace it"),
        (
            tiff(bands(5, "float32"), compression="zlib", predictor=3),
            "is a TIFF of 5 x float32, grey with 4 more channels, Deflate with predictor 3, which is not read; open it "
            "with tifffile and give the array",
        ),
    ],
)
def test_what_is_not_five_channels_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path, "raw", count=5)
    count = message.removeprefix(OTHER).strip()
    if message.startswith(OTHER):
        message = (
            f"has {count} channel{'s' * (count != '1')}, expected 5; use images of 5 channels, or a model that is "
            f"trained with --channels {count}"
        )
    assert str(caught.value) == f"{path}: {message}"


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ImageError) as caught:
        load_image(path, "raw")
    assert str(caught.value) == (
        f"{path}: holds Python objects or records, which are never loaded; save an array of numbers with numpy.save"
    )


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd"])
def test_damaged_pixels_are_refused(compression):
    content = bytearray(tiff(bands(5) // 64 * 64, compression=compression))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        start, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    content[start : start + count] = bytes([128]) * count
    with pytest.raises(ImageError, match=r"^image: is damaged or truncated"):
        load_image(bytes(content), "raw")


def test_pillow_says_nothing_of_a_damaged_directory():
    """Warnings are errors here: a tag that points behind the end, which Pillow warns of, is passed over."""
    content = bytearray(tiff(bands(5), software="x" * 40))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages[0].tags["Software"]
    content[tag.offset + 8 : tag.offset + 12] = (len(content) - 5).to_bytes(4, "little")
    assert np.array_equal(load_image(bytes(content), "raw"), bands(5))


@pytest.mark.parametrize("make", [tiff, npy, lambda values: npz(image=values)], ids=["tiff", "npy", "npz"])
def test_limits_count_pixels_and_not_channels(make):
    content = make(bands(16))
    assert load_image(content, "raw", limits=Limits(pixels=37 * 50)).shape == (37, 50, 16)
    with pytest.raises(ImageError, match="has 50 x 37 pixels, expected at most 1849 in all"):
        load_image(content, "raw", limits=Limits(pixels=37 * 50 - 1))
    with pytest.raises(ImageError, match=r"takes about [0-9]+ bytes to decode, expected at most 40000"):
        load_image(content, "raw", limits=Limits(memory=40_000))


def test_an_archive_that_unfolds_to_more_is_refused_before():
    content = npz(image=np.zeros((1000, 1000, 16), np.uint8))
    assert len(content) < 50_000
    with pytest.raises(ImageError, match="has more bytes than the 1000000 that are read"):
        load_image(content, "raw", limits=Limits(file_bytes=1_000_000))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.infolist()[0].file_size > 16_000_000


def test_further_pages_are_told(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([bands(5), bands(5)]), photometric="minisblack", planarconfig="contig")
    with pytest.warns(ImageWarning, match="has several pages or frames, and only the first one is read"):
        assert np.array_equal(load_image(path, "raw"), bands(5))


def test_colour_and_grey_models_name_what_such_files_are_for(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(bands(5, "uint16")))
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value) == (
        f"{path}: is a TIFF of 5 x uint16, grey with 4 more channels, uncompressed, which is not read; open it with "
        "tifffile and give the array of its colours, or train with --channels 5"
    )
    with pytest.raises(ImageError) as caught:
        load_image(npy(bands(5)))
    assert str(caught.value) == (
        "image: is an array of NumPy, expected a picture; give the array of its colours, or train with --channels N"
    )
