"""Decoding: every source gives the same pixels, upright, and as many of them as are needed."""

import io
import subprocess
import sys

import numpy as np
import pytest
from pictures import BLACK_WHITE, GREY, PIXELS, encoded, palette_picture
from PIL import Image

from runtime.card import InputSpec
from runtime.errors import ImageError, ImageWarning
from runtime.image import (
    fit,
    image_size,
    list_images,
    load_image,
    place,
    resize,
)
from runtime.image_files.decoding import open_image
from runtime.image_files.sources import name_of


class Nameless:
    """A file object with no more than `read`, as network streams are."""

    def __init__(self, content):
        self.content = content

    def read(self, size=-1):
        size = len(self.content) if size < 0 else size
        part, self.content = self.content[:size], self.content[size:]
        return part


SOURCES = {
    "text path": lambda path: str(path),
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "stream": lambda path: Nameless(path.read_bytes()),
    "PIL image": lambda path: Image.fromarray(PIXELS),
    "RGB array": lambda path: PIXELS,
    "RGBA array": lambda path: np.dstack([PIXELS, np.zeros((6, 9), np.uint8)]),
    "strided array": lambda path: np.repeat(PIXELS, 2, axis=1)[:, ::2],
    "Fortran array": lambda path: np.asfortranarray(PIXELS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pixels(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PIXELS))
    image = load_image(SOURCES[kind](path))
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"] and image.flags["WRITEABLE"]
    assert np.array_equal(image, PIXELS)


def test_open_file_is_read_and_left_open(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PIXELS))
    with open(path, "rb") as file:
        assert np.array_equal(load_image(file), PIXELS)
        assert not file.closed


def test_loaded_array_is_a_copy():
    image = load_image(GREY, "L")
    image[:] = 0
    assert GREY.any()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(form):
    assert np.array_equal(load_image(encoded(PIXELS, form)), PIXELS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_are_close_in_colour(form):
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 30], np.uint8)
    difference = np.abs(load_image(encoded(flat, form, quality=95)).astype(int) - flat)
    assert difference.max() <= 4


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1)])
def test_grey_array_becomes_three_equal_channels_or_one(shape):
    array = GREY.reshape(shape)
    assert np.array_equal(load_image(array), np.dstack([GREY] * 3))
    assert np.array_equal(load_image(array, "L"), GREY[:, :, None])


def test_colour_to_grey_uses_the_luma_of_bt601():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert load_image(primaries, "L")[0, :, 0].tolist() == [76, 150, 29, 255]


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PIXELS, form, exif=exif)
    assert np.array_equal(load_image(content), UPRIGHT[orientation](PIXELS))
    with Image.open(io.BytesIO(content)) as picture:
        assert np.array_equal(load_image(picture), UPRIGHT[orientation](PIXELS))


def test_alpha_is_dropped_not_blended():
    transparent = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    assert np.array_equal(load_image(encoded(transparent)), PIXELS)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (9, 6), 0)])
    assert np.array_equal(load_image(encoded(grey), "L")[:, :, 0], GREY)


@pytest.mark.parametrize("transparency", [1, bytes([0, 128, 255])], ids=["one index", "a table"])
def test_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(transparency):
    picture = palette_picture([[0, 1, 2]], [(10, 20, 30), (40, 50, 60), (255, 0, 0)])
    content = encoded(picture, transparency=transparency)
    assert load_image(content).tolist() == [[[10, 20, 30], [40, 50, 60], [255, 0, 0]]]
    assert load_image(content, "L").shape == (1, 3, 1)


def test_palette_gif_gives_its_colours():
    picture = palette_picture([[0, 1], [1, 2]], [(9, 8, 7), (200, 0, 0), (0, 0, 99)])
    assert load_image(encoded(picture, "GIF")).tolist() == [[[9, 8, 7], [200, 0, 0]], [[200, 0, 0], [0, 0, 99]]]


def test_one_bit_image_gives_0_and_255():
    assert np.array_equal(load_image(encoded(Image.fromarray(BLACK_WHITE).convert("1")), "L")[:, :, 0], BLACK_WHITE)


def test_cmyk_gives_rgb():
    picture = Image.new("CMYK", (3, 1))
    picture.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)])
    assert load_image(encoded(picture, "TIFF")).tolist() == [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clamped(form):
    deep = np.array([[0, 256, 257, 32_768, 65_534, 65_535]], np.uint16)
    content = encoded(deep, form)
    assert load_image(content, "L")[0, :, 0].tolist() == [0, 0, 1, 127, 254, 255]
    assert load_image(content)[0, :, 2].tolist() == [0, 0, 1, 127, 254, 255]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP"])
def test_first_frame_of_an_animation_is_read(form, tmp_path):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if form == "WEBP" else {}
    path = tmp_path / "a"
    path.write_bytes(encoded(first, form, save_all=True, append_images=[second], **options))
    with pytest.warns(ImageWarning, match="only the first one is read"):
        assert np.unique(load_image(path).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_what_a_source_is_called(tmp_path):
    assert name_of(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert name_of("b.png") == "b.png"
    assert name_of(b"bytes") == name_of(Image.new("L", (1, 1))) == "image"
    with open(tmp_path / "c.png", "wb") as file:
        assert name_of(file) == str(tmp_path / "c.png")


def test_opening_does_not_change_the_given_picture():
    picture = palette_picture([[0, 1]], [(1, 2, 3), (4, 5, 6)])
    picture.info["transparency"] = 1
    opened = open_image(picture)
    opened.putpixel((0, 0), 1)
    assert picture.info["transparency"] == 1
    assert picture.getpixel((0, 0)) == 0


def test_threads_may_decode_at_once_in_a_fresh_process(tmp_path, root):
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        (tmp_path / f"a.{form.lower()}").write_bytes(encoded(PIXELS, form))
    program = """
import sys, threading
from pathlib import Path
from runtime.image import load_image
paths = sorted(Path(sys.argv[1]).iterdir()) * 4
start, shapes = threading.Barrier(len(paths)), []
def work(path):
    start.wait()
    shapes.append(load_image(path).shape)
threads = [threading.Thread(target=work, args=(path,)) for path in paths]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(shapes), set(shapes))
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("28 {(6, 9, 3)}\n", "")


def test_images_of_a_folder_are_listed_by_suffix_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.jpeg", ".hidden.png", "notes.txt", "d.onnx", "e.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(str(tmp_path))] == ["a.jpg", "b.PNG", "c.jpeg", "e.tiff"]


def test_listing_what_is_no_folder_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match=r"gone: cannot be listed \(no such file or directory\)$"):
        list_images(tmp_path / "gone")


def smooth(height=1280, width=1918):
    rough = np.random.default_rng(3).integers(0, 256, (24, 36, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("at_least", "share"),
    [((160, 240), 4), ((160, 160), 8), ((320, 320), 4), ((321, 1), 2), ((1, 641), 1), ((2000, 2000), 1)],
)
def test_a_large_jpeg_is_decoded_at_a_share_of_its_size_that_is_enough(at_least, share):
    content = encoded(smooth(), "JPEG", quality=90)
    whole, image = load_image(content), load_image(content, at_least=at_least)
    assert image.shape == (-(-1280 // share), -(-1918 // share), 3)
    difference = np.abs(resize(image, (160, 240)).astype(int) - resize(whole, (160, 240)))
    assert difference.mean() < 2
    assert (difference.max() == 0) == (share == 1)
    assert load_image(content, "L", at_least=at_least).shape == (*image.shape[:2], 1)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_what_is_enough_is_enough_for_a_turned_picture_too(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    smooth(400, 900).save(path, quality=90, exif=exif)
    image = load_image(path, at_least=(90, 200))
    assert sorted(image.shape[:2]) == [200, 450]
    whole = load_image(path)
    assert np.abs(image.astype(int) - resize(whole, image.shape[:2])).mean() < 2
    assert image_size(path) == whole.shape[:2]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
def test_only_jpegs_are_decoded_smaller(form, tmp_path):
    path = tmp_path / "a"
    smooth(64, 96).save(path, form)
    assert np.array_equal(load_image(path, at_least=(8, 8)), load_image(path))
    assert image_size(path) == (64, 96)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_size_is_that_of_the_displayed_image(orientation, form, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    path.write_bytes(encoded(PIXELS, form, exif=exif))
    assert image_size(path) == load_image(path).shape[:2]


def test_a_truncated_jpeg_is_refused_at_any_size(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(smooth(), "JPEG")[:-500])
    with pytest.raises(ImageError, match=r"cut\.jpg: is damaged or truncated \(.*\); replace it$"):
        load_image(path, at_least=(160, 240))
    assert image_size(path) == (1280, 1918)  # its header is whole


def test_size_of_what_is_no_image_is_an_image_error(tmp_path):
    (tmp_path / "words.jpg").write_text("just words\n")
    for name, message in (("gone.jpg", "no such file"), ("words.jpg", "is not an image of a known format (JPEG,")):
        with pytest.raises(ImageError) as caught:
            image_size(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize("original", [(1, 1), (10, 40), (37, 41), (5, 500), (24, 16)])
@pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])
def test_a_fitted_picture_and_its_original_size_tell_the_way_back(original, how):
    spec = InputSpec(size=(32, 48), fit=how)
    fitted = fit(np.zeros((*original, 3), np.uint8), spec)
    placed = place(fitted.image, original, spec)
    assert placed.image is fitted.image
    assert (placed.top, placed.left, placed.height, placed.width, placed.original) == (
        fitted.top,
        fitted.left,
        fitted.height,
        fitted.width,
        original,
    )


def test_place_of_a_wide_picture_in_a_letterbox():
    placed = place(np.zeros((32, 48, 3), np.uint8), (10, 40), InputSpec(size=(32, 48), fit="letterbox"))
    assert (placed.top, placed.left, placed.height, placed.width) == (10, 0, 12, 48)
