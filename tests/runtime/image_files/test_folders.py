"""Which files of a folder are images, and what is said about the others."""

from collections import Counter

import numpy as np
import pytest
from pictures import PIXELS, encoded

from runtime.image import list_images, load_image
from runtime.image_files import folders, heif
from runtime.image_files.folders import left_out_note, read_suffixes


@pytest.fixture
def installed(monkeypatch):
    """Set of the modules that are there to decode HEIC and AVIF."""
    modules = set()
    monkeypatch.setattr(heif, "is_installed", modules.__contains__)
    read_suffixes.cache_clear()
    yield modules
    read_suffixes.cache_clear()


FORMS = {"JPEG": ".jpg .jpe .jfif .mpo .JPEG", "PNG": ".png .apng", "TIFF": ".tif .geotiff", "BMP": ".bmp .dib"}
FORMS |= {"PPM": ".ppm .pnm", "GIF": ".gif", "WEBP": ".webp"}


def test_files_of_every_suffix_and_without_one_are_listed_and_read(tmp_path, installed):
    wanted = []
    for form, suffixes in FORMS.items():
        for suffix in ["", *suffixes.split()]:
            wanted.append(tmp_path / f"{form}{suffix}")
            wanted[-1].write_bytes(encoded(PIXELS, form))
    left_out = Counter()
    assert list_images(tmp_path, left_out) == sorted(wanted)
    assert left_out == {}
    assert {load_image(path).shape for path in wanted} == {(6, 9, 3)}


def test_other_files_are_counted_by_suffix_but_for_notes_and_hidden_ones(tmp_path, installed):
    for name in ("a.heic", "b.HEIC", "c.jp2", "LICENSE", "empty", "d.dng", ".DS_Store", "notes.txt", "labels.json"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"BMW and other words")
    (tmp_path / "folder.heic").mkdir()
    left_out = Counter()
    assert list_images(tmp_path, left_out) == []
    assert left_out == {".heic": 2, "": 2, ".jp2": 1, ".dng": 1}
    assert left_out_note(left_out) == (
        "6 files left out: no suffix (2), .heic (2), .dng (1), .jp2 (1); pip install pillow-heif to read HEIC"
    )


def test_heic_and_avif_are_listed_where_they_can_be_decoded(tmp_path, installed):
    for name in ("a.heic", "b.avif", "c.heif"):
        (tmp_path / name).touch()
    (tmp_path / "d").write_bytes(b"\0\0\0\x1cftypheic" + bytes(20))
    assert list_images(tmp_path) == []
    installed.add(heif.HEIC)
    read_suffixes.cache_clear()
    assert [path.name for path in list_images(tmp_path)] == ["a.heic", "c.heif", "d"]
    installed.add(heif.AVIF)
    read_suffixes.cache_clear()
    assert [path.name for path in list_images(tmp_path)] == ["a.heic", "b.avif", "c.heif", "d"]


def test_note_is_one_line_of_a_few_suffixes():
    assert left_out_note(Counter()) is None
    assert left_out_note(Counter({".jp2": 1})) == "1 file left out: .jp2 (1)"
    several = Counter({f".{letter}": 9 - index for index, letter in enumerate("abcdefg")})
    assert left_out_note(several) == "42 files left out: .a (9), .b (8), .c (7), .d (6), .e (5), others (7)"
    assert left_out_note(Counter({".avif": 1})).endswith("; Pillow 11.3 or newer reads AVIF")


def test_file_without_a_suffix_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(encoded(PIXELS))
    assert len(list_images(tmp_path)) == 1

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(folders, "open", refused, raising=False)
    assert list_images(tmp_path) == []
    np.testing.assert_array_equal(load_image(tmp_path / "a"), PIXELS)
