"""Pillow is strict and quiet within our calls, and for the rest of the program as if we were not there."""

import io
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from pictures import PIXELS, encoded
from PIL import Image, ImageFile

from runtime.image import image_size, load_image
from runtime.image_files import pillow_guard
from runtime.image_files.limits import LimitError, Limits
from runtime.image_files.pillow_guard import strict

LARGE = encoded(Image.new("1", (10_000, 9_000)))
"""90 million pixels in 12 kB: Pillow warns above 89.5 million."""

BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x1a\x01\x05\0\x01\0\0\0\xff\xff\0\0" * 3
"""It says 65,535 entries, has three, and their data lies behind its end."""


def test_large_image_is_read_quietly():
    assert load_image(LARGE, "L").shape == (9_000, 10_000, 1)  # warnings are errors here


def test_rest_of_the_program_is_warned_as_ever_also_while_we_decode():
    with strict(Limits()), pytest.raises(LimitError, match=r"^has 20000 x 20000 pixels, "):
        Image._decompression_bomb_check((20_000, 20_000))
    seen = []

    def elsewhere():
        with pytest.warns(Image.DecompressionBombWarning, match="90000000 pixels") as caught:
            Image.open(io.BytesIO(LARGE))
        seen.append(caught[0].filename)
        with pytest.raises(Image.DecompressionBombError):
            Image._decompression_bomb_check((20_000, 20_000))

    with strict(Limits()):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    elsewhere()
    assert [name.endswith("Image.py") for name in seen] == [True, True]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_as_none_and_quiet(form, tmp_path):
    content = encoded(PIXELS, form, exif=BROKEN_EXIF)
    assert load_image(content).shape == (6, 9, 3)
    (tmp_path / "a").write_bytes(content)
    assert image_size(tmp_path / "a") == (6, 9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(content)).getexif()
    assert caught  # so there was something to be quiet about


def test_setting_of_the_program_that_lets_cut_off_images_pass_holds_outside_only(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:-500]
    with pytest.raises(Exception, match="damaged or truncated"):
        load_image(content)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.open(io.BytesIO(content)).convert("L").size == (64, 64)


def test_stand_ins_are_put_in_place_once():
    load_image(encoded(PIXELS))
    check, stand_in = Image._decompression_bomb_check, vars(Image)["warnings"]
    load_image(encoded(PIXELS))
    assert Image._decompression_bomb_check is check
    assert vars(Image)["warnings"] is stand_in
    assert isinstance(stand_in, pillow_guard.QuietWarnings)
    assert stand_in.catch_warnings is warnings.catch_warnings


def test_nothing_is_changed_before_an_image_is_read(root):
    program = """
import warnings
import runtime.image
from PIL import Image
print(Image.warnings is warnings, hasattr(Image._decompression_bomb_check, "__wrapped__"))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True False\n", "")
