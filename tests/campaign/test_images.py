"""Images of every format, damaged: an error, or whatever the bytes say now; a cut file gives all pixels or an error."""

import io
import struct

import numpy as np
import pytest
from damaged import PROPER, as_text, edited_png, rle_bmp, tiff_of_fewer_rows
from PIL import Image

from runtime.errors import ImageError
from runtime.image import Limits, load_image

LIMITS = Limits(pixels=2**22, memory=2**28)

OPTIONS = {
    "JPEG": [
        {"quality": 90},
        {"quality": 50, "progressive": True},
        {"quality": 90, "subsampling": 0, "restart_marker_blocks": 1},
        {"quality": 95, "subsampling": 1, "restart_marker_rows": 1},
    ],
    "PNG": [{}, {"compress_level": 0}, {"bits": 4}],
    "GIF": [{"interlace": 0}, {"interlace": 1}],
    "BMP": [{}],
    "TIFF": [{"compression": kind} for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")],
    "WEBP": [{"lossless": True}, {"quality": 80}, {"quality": 30, "method": 0}],
    "PPM": [{}],
}

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "1", "LA", "RGBA", "I;16"),
    "GIF": ("P", "L", "1"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "L", "1", "CMYK", "I;16", "P"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L", "1", "I;16"),
}


def pixels_of(random):
    """Smooth, noisy or flat pixels, uint8 [height, width, 3]."""
    height, width = (int(side) for side in random.integers(1, 80, 2))
    kind = random.integers(3)
    if kind == 0:
        return np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    noise = random.integers(0, 256, (height, width, 3), np.uint8)
    if kind == 1:
        return noise
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width) * 3)[:, :, None] + np.array([0, 40, 90])
    return (ramp % 256).astype(np.uint8) // 16 * 16 + noise // 16


def drawn(random):
    """A file: (format, content, pixels)."""
    pixels = pixels_of(random)
    form = str(random.choice(list(OPTIONS)))
    if form == "PPM" and random.integers(2):
        return "PPM as text", as_text(pixels if random.integers(2) else pixels[:, :, 0]), pixels
    if form == "BMP" and random.integers(2):
        return "BMP as runs", rle_bmp(pixels[:, :, 0] // 64 * 64), pixels
    options = OPTIONS[form][random.integers(len(OPTIONS[form]))]
    mode = str(random.choice(MODES[form]))
    if options.get("compression") == "group4":
        mode = "1"
    if options.get("compression") == "jpeg" and mode in ("1", "I;16", "P"):
        mode = "RGB"
    if options.get("bits"):
        mode = "P"
    if mode == "CMYK":
        options = {name: value for name, value in options.items() if name != "subsampling"}
    picture = Image.fromarray(pixels)
    picture = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    if mode == "P":
        picture = Image.fromarray(pixels).quantize(16)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return form, file.getvalue(), pixels


def cut_properly(random, form, content, pixels):
    share = float(random.choice([random.random(), 1 - random.random() ** 4, 0.5]))
    if form == "BMP as runs":
        return rle_bmp(
            pixels[:, :, 0], runs=content[1078 : 1078 + int(share * (len(content) - 1078)) // 2 * 2] + b"\0\1"
        )
    return PROPER[form](content, share)


def damaged(random, form, content, pixels):
    """(what was done, the damaged content, whether it is a cut)."""
    kind = str(random.choice(["cut", "cut and ended", "cut and ended", "bytes", "bits", "splice", "header", "chunk"]))
    if kind == "cut":
        return kind, content[: random.integers(1, len(content))], True
    if kind == "cut and ended":
        cut = cut_properly(random, form, content, pixels)
        if isinstance(cut, bytes):
            return kind, cut, True
        kind = "bytes"
    changed = bytearray(content)
    if kind == "chunk" and form == "PNG":
        number = int(random.integers(4))

        def edit(name, body):
            nonlocal number
            number -= 1
            if number or not body:
                return body
            place = int(random.integers(len(body)))
            return body[:place] + bytes([random.integers(256)]) + body[place + 1 :]

        return kind, edited_png(content, edit), False
    if kind == "splice":
        one, two, length = (int(place) for place in random.integers(0, len(content), 3))
        changed[one : one + length // 8] = content[two : two + length // 8]
        return kind, bytes(changed), False
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(min(len(content), 64) if kind == "header" else len(content)))
        changed[place] = changed[place] ^ (1 << random.integers(8)) if kind == "bits" else random.integers(256)
    if kind == "header" and random.integers(2):
        place = int(random.integers(min(len(content), 64)))
        value = int(random.choice([0, 0xFFFFFFF0, 0x7FFFFFFF, 0xFFFF, 1]))
        changed[place : place + 4] = struct.pack(str(random.choice(["<I", ">I"])), value)
    return kind, bytes(changed), False


@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")  # of levels, pages and masks
def test_damaged_images(campaign, capfd, tmp_path):
    def attempt(random):
        form, content, pixels = drawn(random)
        whole = load_image(content)
        kind, changed, is_cut = damaged(random, form, content, pixels)
        source = changed
        if random.integers(2):
            source = tmp_path / "a"
            source.write_bytes(changed)
        try:
            found = load_image(source, limits=LIMITS)
        except ImageError as error:
            outcome = f"refused: {type(error).__name__}"
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
            assert not is_cut or np.array_equal(found, whole), f"{form}, {kind}: other pixels"
            outcome = "same pixels" if np.array_equal(found, whole) else "other pixels, as the bytes say"
        printed = capfd.readouterr()
        assert not printed.err, f"{form}, {kind}: on stderr: {printed.err[:200]}"
        return outcome

    tally = campaign.run("images", attempt, share=0.25)
    assert tally.outcomes["refused: ImageError"] > tally.cases / 4


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_of_fewer_rows(compression):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    with pytest.raises(ImageError):
        load_image(tiff_of_fewer_rows(pixels, 20, compression=None if compression == "raw" else compression))
