"""Files of several pages or frames: the first is read, and a warning says so once a file."""

import io
import struct
import time
import warnings

import numpy as np
import pytest
import tifffile
from pictures import PIXELS, encoded
from PIL import Image

from runtime.errors import ImageWarning
from runtime.image import Limits, load_image
from runtime.image_files.pages import has_several

FIRST, SECOND = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)


def tiff(*pages, **options):
    """A TIFF of pages, each an array and the value of its tag NewSubfileType."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for values, kind in pages:
            writer.write(values, subfiletype=kind, photometric="mask" if kind == 4 else "rgb", metadata=None)
    return file.getvalue()


SEVERAL = {
    "GIF": encoded(FIRST, "GIF", save_all=True, append_images=[SECOND]),
    "APNG": encoded(FIRST, "PNG", save_all=True, append_images=[SECOND]),
    "WebP": encoded(FIRST, "WEBP", lossless=True, save_all=True, append_images=[SECOND]),
    "TIFF": tiff((PIXELS, 0), (255 - PIXELS, 0)),
    "pages of a TIFF": tiff((PIXELS, 2), (PIXELS[::2], 1), (255 - PIXELS, 2), byteorder=">"),
    "BigTIFF": tiff((PIXELS, 0), (255 - PIXELS, 0), bigtiff=True),
}
ONE = {
    "GIF": encoded(FIRST, "GIF"),
    "GIF with a comment behind": encoded(FIRST, "GIF")[:-1] + b"!\xfe\1a\0;",
    "PNG": encoded(FIRST),
    "WebP": encoded(FIRST, "WEBP", lossless=True),
    "TIFF": tiff((PIXELS, 0)),
    "TIFF and smaller ones": tiff((PIXELS, 0), (PIXELS[::2, ::2], 1), (PIXELS[::4, ::4], 1)),
    "TIFF and a mask": tiff((PIXELS, 0), (PIXELS[:, :, 0] > 99, 4)),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_first_page_is_read_and_the_file_is_told_of_once(kind, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(SEVERAL[kind])
    with pytest.warns(ImageWarning) as told:
        found = [load_image(path) for _ in range(3)]
    expected = f"{path}: has several pages or frames, and only the first one is read"
    assert [str(one.message) for one in told] == [expected]
    if kind != "GIF":
        np.testing.assert_array_equal(found, [PIXELS] * 3)


@pytest.mark.parametrize("kind", ONE)
def test_one_page_is_read_without_a_word(kind, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(ONE[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).shape == (6, 9, 3)


def test_damage_behind_the_first_page_is_no_second_page(tmp_path):
    path = tmp_path / "a"
    for kind in ("TIFF", "BigTIFF"):
        content = bytearray(SEVERAL[kind])
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            place, size = file.pages[1].offset, 8 if kind == "BigTIFF" else 4
        start = content.rindex(place.to_bytes(size, "little"), 0, place)
        content[start : start + size] = (len(content) + 5).to_bytes(size, "little")
        path.write_bytes(content)
        np.testing.assert_array_equal(load_image(path), PIXELS)


def test_directory_that_leads_to_itself_has_no_second_page_and_takes_no_time(tmp_path):
    entry = struct.pack("<HHLL", 254, 4, 1, 1)
    size = len(entry) * 9_000
    content = b"II*\0" + struct.pack("<LH", 8, 9_000) + entry * 9_000 + struct.pack("<L", 8)
    assert len(content) == 14 + size
    begun = time.process_time()
    assert not has_several(content, Limits())
    assert time.process_time() - begun < 0.5
