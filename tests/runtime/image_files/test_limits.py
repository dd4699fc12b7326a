"""Limits of decoding: their own bounds, and what decoding may cost. Pixels and bytes: test_image_refusals.py."""

import re
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from damaged import png_chunk
from pictures import encoded
from PIL import Image, _imaging

from runtime.errors import ConfigError, ImageError, ImageMemoryError
from runtime.image import image_size, load_image
from runtime.image_files.limits import LimitError, Limits, LimitsByOption

SMALL = Image.new("RGB", (40, 30), (9, 99, 200))
HEADER = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
END = png_chunk(b"IDAT", zlib.compress(bytes(8 * 25))) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("value", [0, -1, True, 1e9, "5", None])
def test_limits_are_positive_integers(value):
    for name in ("pixels", "file_bytes", "header_bytes", "scans", "memory"):
        with pytest.raises(ConfigError) as caught:
            Limits(**{name: value})
        assert str(caught.value) == f"Limits.{name}: found {value!r}, expected an integer from 1"


def said_by(check, *arguments):
    """The text of the refusal."""
    with pytest.raises(LimitError) as caught:
        check(*arguments)
    return str(caught.value).partition("; ")[2]


def test_limits_for_pixels_grow_together_and_never_below_the_defaults():
    assert Limits.for_pixels(np.int64(5)) == Limits(pixels=5)
    assert Limits.for_pixels(200_000_000) == Limits()
    assert Limits.for_pixels(300_000_001) == Limits(pixels=300_000_001, file_bytes=1_610_612_742, memory=3_221_225_483)
    for value in (0, -1, 2.0, "5"):
        with pytest.raises(ConfigError) as caught:
            Limits.for_pixels(value)
        assert str(caught.value) == f"Limits.pixels: found {value!r}, expected an integer from 1"


def test_advice_in_python_is_a_call_that_keeps_the_other_limits():
    limits = Limits(pixels=300, truncated="warn")
    start = "make it smaller, or allow more with limits=runtime."
    assert said_by(limits.check_pixels, 30_000, 20_000) == f"{start}Limits.for_pixels(600000000)"
    assert said_by(limits.check_memory, 2**31 + 1) == (
        f"{start}Limits(pixels=300, truncated='warn', memory=2147483649)"
    )
    assert said_by(limits.check_file, 2**30 + 1) == (
        f"{start}Limits(pixels=300, truncated='warn', file_bytes=1073741825)"
    )
    assert said_by(Limits().check_scans, 20, 200_000_000) == f"{start}Limits(scans=200)"
    Limits(scans=200).check_scans(20, 200_000_000)


def test_advice_of_a_command_names_its_option_where_that_helps():
    limits, start = LimitsByOption(), "make it smaller, or "
    option = f"{start}allow more with --max-pixels "
    assert said_by(limits.check_pixels, 30_000, 20_000) == f"{option}600000000"
    assert said_by(limits.check_memory, 5 * 10**9) == f"{option}465661288"
    LimitsByOption.for_pixels(465_661_288).check_memory(5 * 10**9)
    assert said_by(limits.check_file, 2**31) == f"{option}400000000"
    LimitsByOption.for_pixels(400_000_000).check_file(2**31)
    stream = f"{start}allow more with a larger --max-pixels"
    assert said_by(lambda: limits.check_file(2**31, whole=False)) == stream
    in_python = f"{start}in Python allow more with limits=runtime.Limits"
    assert said_by(limits.check_header, 2**24 + 1) == f"{in_python}(header_bytes=...)"
    assert said_by(limits.check_scans, 101, 10) == f"{in_python}(scans=101)"


@pytest.mark.parametrize("limits", [Limits(), LimitsByOption()])
def test_headers_that_claim_more_than_any_computer_holds_are_not_encouraged(limits):
    assert said_by(limits.check_pixels, 100_001, 100_000) == "make it smaller"
    assert "10000000000" in said_by(limits.check_pixels, 100_000, 100_000)
    assert said_by(limits.check_memory, 2**40) == "make it smaller"


def with_scans(content, count):
    """A progressive JPEG whose last scan is repeated, to `count` scans in all."""
    starts = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    return content[:-2] + content[starts[-1] : -2] * (count - len(starts)) + b"\xff\xd9"


def test_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    bomb = with_scans(encoded(SMALL, "JPEG", progressive=True), 3_000)
    begun = time.process_time()
    with pytest.raises(ImageError) as caught:
        load_image(bomb)
    assert time.process_time() - begun < 0.1
    assert str(caught.value) == (
        "image: has 101 scans, expected at most 100 for its 1200 pixels; "
        "make it smaller, or allow more with limits=runtime.Limits(scans=101)"
    )
    plain = encoded(SMALL, "JPEG", progressive=True)
    assert np.array_equal(load_image(plain, limits=Limits(scans=10)), load_image(plain))
    with pytest.raises(ImageError, match="has 10 scans, expected at most 9"):
        load_image(plain, limits=Limits(scans=9))


def test_large_jpeg_may_have_fewer_scans():
    content = encoded(SMALL, "JPEG", progressive=True)  # 10 scans of 1,200 pixels
    assert load_image(content, limits=Limits(pixels=1_200)).shape == (30, 40, 3)
    with pytest.raises(ImageError, match="has 10 scans, expected at most 9 for its 1200 pixels"):
        load_image(content, limits=Limits(pixels=1_200, scans=90))


HEADERS = {
    "jpeg": (lambda filler: b"\xff\xd8" + b"\xff\xe5\xff\xff" + filler[:65_533] + encoded(SMALL, "JPEG")[2:], (30, 40)),
    "png": (lambda filler: HEADER + png_chunk(b"prVt", filler) + END, (8, 8)),
    "gif": (lambda filler: gif_with_comment(filler), (30, 40)),
    "ppm": (lambda filler: b"P5\n#" + filler + b"\n8 8\n255\n" + bytes(64), (8, 8)),
}


def gif_with_comment(filler):
    content = encoded(Image.new("L", (40, 30)), "GIF")
    blocks = b"".join(b"\xff" + filler[start : start + 255] for start in range(0, len(filler) // 255 * 255, 255))
    start = content.index(b",\0\0\0\0")
    return content[:start] + b"!\xfe" + blocks + b"\0" + content[start:]


@pytest.mark.parametrize("kind", HEADERS)
def test_header_that_is_too_long_is_refused_with_its_limit(tmp_path, kind):
    make, size = HEADERS[kind]
    path = tmp_path / "a"
    path.write_bytes(make(b"x" * 65_536))
    refusal = (
        f"{path}: has more than 60000 bytes before its pixels; "
        "make it smaller, or allow more with limits=runtime.Limits(header_bytes=...)"
    )
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path, limits=Limits(header_bytes=60_000))
        assert str(caught.value) == refusal
    assert load_image(path).shape[:2] == image_size(path) == size


FLOODS = {
    "segments of a jpeg": b"\xff\xd8" + b"\xff\xe5\0\2" * 200_000 + encoded(SMALL, "JPEG")[2:],
    "chunks of a png": HEADER + png_chunk(b"teXt", b"") * 100_000 + END,
    "empty pixels of a png": HEADER + png_chunk(b"IDAT", b"") * 100_000 + END,
    "texts of a png": HEADER + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 2_000 + END,
    "comments of a gif": gif_with_comment(b"x" * 2_000_000),
    "comments of a ppm": b"P6\n" + b"#\n" * 1_000_000 + b"8 8\n255\n" + bytes(192),
    "spaces of a ppm": b"P6\n" + b" " * 2_000_000 + b"8 8\n255\n" + bytes(192),
    "numbers of a ppm": b"P2\n1000 1000\n255\n" + b"1 " * 1_000_000,
    "levels of a ppm": b"P5\n1400 1400\n7\n" + b"\5" * 1_400**2,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_small_parts_cost_less_than_half_a_second_for_each_megabyte(tmp_path, kind):
    content, path = FLOODS[kind], tmp_path / "a"
    path.write_bytes(content)
    for read in (load_image, image_size):
        begun = time.process_time()
        read(path)
        assert time.process_time() - begun < 0.5 * max(1, len(content) / 1e6)


def test_length_of_a_chunk_takes_no_memory(tmp_path):
    path = tmp_path / "a.png"
    for name in (b"IDAT", b"zTXt"):
        path.write_bytes(HEADER + b"\xff\xff\xff\xf0" + name + bytes(100))
        for read in (load_image, image_size):
            with pytest.raises(ImageError, match=r"(its chunk IDAT is cut off|it has no pixels)\); replace it$"):
                read(path)


@pytest.mark.parametrize(("offsets", "message"), [(2_400_000, "has 2400000 strips or tiles, expected at most 100000")])
def test_tiff_in_too_many_pieces_is_refused_before_pillow_makes_a_list_of_them(tmp_path, offsets, message):
    entries = [(256, 1, 330), (257, 1, 300), (258, 1, 8), (259, 1, 1), (262, 1, 1), (322, 1, 1), (323, 1, 1)]
    entries += [(324, offsets, 8)]
    directory = b"".join(struct.pack("<HHLL", tag, 4, count, value) for tag, count, value in entries)
    path = tmp_path / "a.tif"
    path.write_bytes(
        b"II*\0" + struct.pack("<L", 8 + 4 * offsets) + bytes(4 * offsets) + struct.pack("<H", 8) + directory + bytes(4)
    )
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {message}; save it with larger ones"


def webp_header(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + bytes(8)


def test_webp_whose_decoder_takes_too_much_memory_is_refused_before_pillow_opens_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    path = tmp_path / "a.webp"
    path.write_bytes(webp_header(13_856, 13_856))
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: takes about {52 * 13_856**2 + 76} bytes to decode, expected at most 2147483648; "
            f"make it smaller, or allow more with limits=runtime.Limits(memory={52 * 13_856**2 + 76})"
        )


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("JPEG", 1200 * 3),
        ("PNG", 1200 * 7 + 8 * 30),
        ("GIF", 1200 * 5 + 8 * 30),
        ("BMP", 1200 * 7 + 8 * 30),
        ("TIFF", 1200 * 7 + 8 * 30 + 2 * 3 * 1200),
        ("WEBP", 1200 * 24),
        ("PPM", 1200 * 3 * 6),
    ],
)
def test_memory_is_estimated_from_the_header_and_the_limit_is_inclusive(kind, needed):
    content = encoded(SMALL, kind)
    step = max(1, len(content) // 16)
    for spare in range(0, 3 * len(content), step):  # the file itself counts once or more
        try:
            load_image(content, limits=Limits(memory=needed + spare))
            break
        except ImageError as error:
            message = str(error)
    assert spare > len(content) - step
    assert "bytes to decode, expected at most" in message


MEASURED = """
import sys
from runtime.image import load_image
from PIL import Image
def megabytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
load_image(sys.argv[2])
before = megabytes()
assert load_image(sys.argv[1]).shape == (3000, 4000, 3)
print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "options", "a_pixel"),
    [
        ("JPEG", {}, 3),
        ("JPEG", {"progressive": True, "subsampling": 0}, 9),
        ("PNG", {"compress_level": 1}, 7),
        ("TIFF", {"compression": "tiff_lzw"}, 7),
        ("WEBP", {"lossless": True, "method": 0}, 24),
    ],
    ids=lambda value: value if isinstance(value, str) else "progressive" if "progressive" in str(value) else None,
)
def test_decoding_takes_no_more_memory_than_estimated(root, tmp_path, kind, options, a_pixel):
    path, small = tmp_path / "a", tmp_path / "b"
    path.write_bytes(encoded(Image.new("RGB", (4_000, 3_000), (1, 2, 3)), kind, **options))
    small.write_bytes(encoded(SMALL, kind, **options))
    program = [sys.executable, "-c", MEASURED, path, small]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, check=True)
    estimate = (12_000_000 * a_pixel + 2 * path.stat().st_size) / 2**20
    assert 0.5 * estimate < float(done.stdout) < estimate + 15


def test_decoding_out_of_memory_is_an_error_of_its_own(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(_imaging, "fill", full)
    with pytest.raises(ImageMemoryError) as caught:
        load_image(encoded(SMALL))
    assert str(caught.value) == "image: decoding ran out of memory; make it smaller, or free memory"
    assert isinstance(caught.value, ImageError)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.exit_code == 2


def test_contents_of_a_file_are_not_quoted():
    for content in (b"P6\nsecretword 5\n255\n", b"P3\n2 1\n255\n1 2 secret", b"P6secret", b"P2 2 1 255\nsecretword 1 "):
        with pytest.raises(ImageError) as caught:
            load_image(content)
        assert "secret" not in str(caught.value)
    content = HEADER + b"\0\0\0\0se\x1bt" + bytes(4) + b"\0\0\0\0secr" + bytes(4)
    with pytest.raises(ImageError) as caught:
        load_image(content)
    assert str(caught.value) == "image: is damaged or truncated (it has no pixels); replace it"
