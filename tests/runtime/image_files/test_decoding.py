"""Sources that several threads hold at once get the pixels that each would get alone; and which ones are turned."""

import base64
import io
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from pictures import PIXELS, encoded
from PIL import Image, ImageOps, PngImagePlugin

from runtime.errors import ImageError, ImageWarning
from runtime.image import image_size, load_image
from runtime.image_files import warned

LARGE = np.random.default_rng(3).integers(0, 256, (300, 500, 3), np.uint8)


def at_once(function, count=8):
    """The answers of so many threads that call a function at the same time."""
    start = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: (start.wait(), function())[1], range(count)))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF", "WEBP"])
def test_picture_that_nobody_has_decoded_yet_is_decoded_once_for_all_threads(form):
    content = encoded(LARGE, form)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for _ in range(3):
        picture = Image.open(io.BytesIO(content))
        assert all(np.array_equal(found, expected) for found in at_once(lambda one=picture: load_image(one)))


class Busy:
    """Runs a method of an object slowly, and takes note of threads that come in while another one is there."""

    def __init__(self, method):
        self.method, self.inside, self.most = method, 0, 0

    def __call__(self, *arguments):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.002)
        found = self.method(*arguments)
        self.inside -= 1
        return found


def test_one_thread_at_a_time_is_in_a_picture_and_others_do_not_wait_for_it():
    picture, other = (Image.open(io.BytesIO(encoded(PIXELS))) for _ in range(2))
    picture.load = busy = Busy(picture.load)
    assert all(np.array_equal(found, PIXELS) for found in at_once(lambda: load_image(picture)))
    assert busy.most == 1
    entered, leave = threading.Event(), threading.Event()
    picture.load = lambda: (entered.set(), leave.wait(10))
    waiting = threading.Thread(target=load_image, args=(picture,))
    waiting.start()
    assert entered.wait(10)
    assert np.array_equal(load_image(other), PIXELS)
    leave.set()
    waiting.join()


def test_file_object_is_read_by_one_thread_at_a_time():
    file = io.BytesIO(encoded(PIXELS))

    class Slow:
        seek, read = file.seek, Busy(file.read)

    assert all(np.array_equal(found, PIXELS) for found in at_once(lambda: load_image(Slow)))
    assert Slow.read.most == 1


def photo(orientation=6, form="JPEG"):
    """A file whose EXIF says that it is shown turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(LARGE, form, exif=exif)


COPIES = {
    "convert": lambda picture: picture.convert("RGB"),
    "convert and crop": lambda picture: picture.convert("RGB").crop((10, 20, 210, 120)),
    "resize": lambda picture: picture.resize((70, 30)),
    "copy": lambda picture: picture.copy(),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("way", COPIES)
def test_copy_of_a_turned_picture_is_taken_as_it_is_which_is_told_once(way, form, monkeypatch):
    monkeypatch.setattr(warned, "WARNED", set())
    copy = COPIES[way](Image.open(io.BytesIO(photo(form=form))))
    with pytest.warns(ImageWarning) as caught:
        found = [load_image(copy), load_image(copy)]
    assert np.array_equal(found, [np.asarray(copy)] * 2)
    assert [str(one.message) for one in caught] == [
        "image: is a copy of a picture that its EXIF says to turn; its pixels are taken as they are, so that the mask "
        "fits the copy; for an upright one, call PIL.ImageOps.exif_transpose(picture) first"
    ]
    assert caught[0].filename == __file__
    warned.WARNED.clear()
    with pytest.raises(ImageWarning):  # warnings are errors here
        load_image(copy)


def test_files_and_the_pictures_of_image_open_and_upright_copies_are_upright(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    upright = load_image(photo())
    assert upright.shape == (500, 300, 3) and image_size(tmp_path / "photo.jpg") == (500, 300)
    picture = Image.open(io.BytesIO(photo()))
    assert np.abs(load_image(picture).astype(int) - upright).max() <= 6  # two decoders
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turned = ImageOps.exif_transpose(picture)
        assert np.array_equal(load_image(turned.crop((5, 5, 100, 200))), np.asarray(turned)[5:200, 5:100])


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    b"</x:xmpmeta>"
)


def xmp_only(form):
    if form == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return encoded(LARGE, form, pnginfo=chunks)
    if form == "TIFF":
        return encoded(LARGE, form, tiffinfo={700: XMP})
    return encoded(LARGE, form, xmp=XMP, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_that_only_xmp_tells_is_passed_over_as_browsers_and_opencv_do(form, tmp_path):
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(xmp_only(form))
    with Image.open(path) as opened:  # not decoded yet, and decoded for its owner, too
        assert np.array_equal(load_image(opened), load_image(path))
        assert np.asarray(opened).shape == load_image(path).shape and "xmp" in opened.info
    picture = Image.open(io.BytesIO(path.read_bytes()))
    assert picture.getexif()[0x0112] == 6  # Pillow does otherwise
    found = load_image(path)
    assert found.shape == LARGE.shape == cv2.imread(path).shape
    assert image_size(path) == LARGE.shape[:2]
    assert form == "JPEG" or np.array_equal(found, LARGE)
    if form != "TIFF":
        assert load_image(picture).shape == LARGE.shape


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_picture_without_pixels_is_refused(size, mode):
    with pytest.raises(ImageError) as caught:
        load_image(Image.new(mode, size))
    assert str(caught.value) == f"image: has no pixels ({size[0]}x{size[1]}), expected at least 1x1"


LETTERS = base64.b64encode(encoded(LARGE)).decode()

TEXTS = {
    "base64": (
        LETTERS,
        f"{LETTERS[:40]}... ({len(LETTERS)} characters): looks like base64, expected a path; "
        "give base64.b64decode(text)",
    ),
    "data URL": (
        f"data:image/png;base64,{LETTERS}",
        f"data:image/png;base64,{LETTERS[:18]}... ({len(LETTERS) + 22} "
        "characters): is a data URL, expected a path; give base64.b64decode(text.partition(',')[2])",
    ),
    "URL": (
        "https://site/a.png",
        "https://site/a.png: is a URL, expected a path; download it, and give the file or its bytes",
    ),
    "bytes": (LETTERS.encode(), "image: looks like base64, expected an image; give base64.b64decode(text)"),
    "base64 in lines, for URLs": (
        base64.encodebytes(encoded(LARGE, "JPEG")).decode().replace("/", "_").replace("+", "-"),
        "looks like base64, expected a path; give base64.b64decode(text)",
    ),
    "base64 of no image": (
        "QUJD" * 100,
        "QUJD" * 10 + "... (400 characters): cannot be read as an image (file name too long)",
    ),
    "very long": (
        "a b." * 2000,
        "a b." * 10 + "... (8000 characters): cannot be read as an image (file name too long)",
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_is_no_path_is_named_and_never_echoed_whole(kind):
    source, message = TEXTS[kind]
    with pytest.raises(ImageError) as caught:
        load_image(source)
    if "lines" in kind:
        assert "\n" not in str(caught.value)[42:] and len(str(caught.value)) < 130
        assert str(caught.value).endswith(f"characters): {message}")
    else:
        assert str(caught.value) == message


@pytest.mark.parametrize("is_relative", [False, True])
def test_long_path_of_plain_letters_is_a_path(tmp_path, monkeypatch, is_relative):
    monkeypatch.chdir(tmp_path)
    folder = Path("data" if is_relative else tmp_path) / ("a" * 200) / ("b" * 200)
    folder.mkdir(parents=True)
    (folder / "image").write_bytes(encoded(PIXELS))
    assert np.array_equal(load_image(folder / "image"), PIXELS)
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(folder / "missing")
        assert str(caught.value) == f"{folder / 'missing'}: no such file"


class Upload:
    """As Starlette's UploadFile: its read is a coroutine, its file is an attribute."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    async def read(self, size=-1):
        raise AssertionError("nobody awaits it")


def test_upload_that_is_read_by_a_coroutine_is_read_by_its_file():
    assert np.array_equal(load_image(Upload(file=io.BytesIO(encoded(PIXELS)))), PIXELS)
    for other in (Upload(), Upload(file=Upload())):
        with pytest.raises(ImageError) as caught:
            load_image(other)
        assert str(caught.value) == "Upload: is read by a coroutine; give the bytes, await image.read()"


def test_a_thread_that_decodes_while_another_one_imports_pillow(monkeypatch):
    content = encoded(Image.new("RGB", (3, 2)), "JPEG")
    monkeypatch.setitem(sys.modules, "PIL.Image", ModuleType("PIL.Image"))  # as it is while its code runs
    assert load_image(content).tolist() == np.zeros((2, 3, 3)).tolist()
