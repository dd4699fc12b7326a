"""AVIF and HEIC: read where their decoder is installed, else refused with its name."""

import importlib
import io
import sys
import types

import numpy as np
import pytest
from pictures import encoded
from PIL import Image, features

from runtime.errors import ImageError
from runtime.image import Limits, image_size, load_image
from runtime.image_files import heif

SMOOTH = (np.add.outer(np.arange(96), 2 * np.arange(80))[:, :, None] // 8 * 8 + np.array([0, 20, 50])).astype(np.uint8)

has_avif = pytest.mark.skipif(not features.check("avif"), reason="needs Pillow with AVIF")

HEIC = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(64)


@pytest.fixture
def pillow_heif(monkeypatch):
    """A stand-in for pillow-heif: its images are `SMOOTH`, or an error."""
    module = types.ModuleType("pillow_heif")
    module.__spec__ = importlib.machinery.ModuleSpec("pillow_heif", None)
    module.error = None

    def opened(file):
        assert file.read() == HEIC
        if module.error is not None:
            raise module.error
        return Image.fromarray(SMOOTH)

    module.HeifImageFile = opened
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    return module


@has_avif
def test_avif_is_read_upright_with_its_size(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.avif"
    path.write_bytes(encoded(SMOOTH, "AVIF", quality=100, exif=exif.tobytes()))
    found = load_image(path)
    assert found.shape == (80, 96, 3)
    assert np.abs(found - np.rot90(SMOOTH, -1).astype(int)).mean() < 1.5
    assert image_size(path) == (80, 96)
    assert image_size(path, upright=False) == (96, 80)


@has_avif
def test_avif_that_is_cut_or_too_large_is_refused():
    content = encoded(SMOOTH, "AVIF")
    for length in (300, len(content) // 2, len(content) - 9):
        with pytest.raises(ImageError) as caught:
            load_image(content[:length])
        assert str(caught.value) == "image: is damaged or truncated (its decoder finds an error); replace it"
    with pytest.raises(ImageError, match=r"^image: has 80 x 96 pixels, expected at most 7679 in all; "):
        load_image(content, limits=Limits(pixels=7_679))
    with pytest.raises(ImageError, match=r"^image: takes about \d+ bytes to decode, expected at most 100000; "):
        load_image(content, limits=Limits(memory=100_000))


def test_heic_is_read_by_pillow_heif(pillow_heif, tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(HEIC)
    np.testing.assert_array_equal(load_image(path), SMOOTH)
    assert image_size(path) == (96, 80)
    for error, told in (
        (ValueError("Unsupported feature: x"), "is a HEIC or AVIF of a kind that is not read; save it as PNG"),
        (ValueError("End of file"), "is damaged or truncated (its decoder finds an error); replace it"),
    ):
        pillow_heif.error = error
        for read in (load_image, image_size):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert str(caught.value) == f"{path}: {told}"


@pytest.mark.parametrize(
    ("brands", "told"),
    [
        (b"heic", "is a HEIC, which is not read here; pip install pillow-heif to read HEIC, or save it as PNG"),
        (b"mif1\0\0\0\0avif", "is an AVIF, which is not read here; Pillow 11.3 or newer reads AVIF, or save it as PNG"),
    ],
)
def test_without_its_decoder_a_file_is_refused_by_name(monkeypatch, brands, told):
    monkeypatch.setattr(heif, "is_installed", lambda module: False)
    content = (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + bytes(50)
    with pytest.raises(ImageError) as caught:
        load_image(content)
    assert str(caught.value) == f"image: {told}"


def test_films_and_other_boxes_are_no_images():
    for brands in (b"isom", b"qt  ", b"mp42\0\0\0\0isom"):
        with pytest.raises(ImageError, match=r"^image: is not an image of a known format"):
            load_image((8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + bytes(50))
    assert heif.module_of(b"\xff\xff\xff\xffftyp" + bytes(3)) is None
    assert Image.open(io.BytesIO(encoded(SMOOTH))).size == (80, 96)
