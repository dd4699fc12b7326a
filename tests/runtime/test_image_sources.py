"""Arrays of every type and order, streams of every kind, files of every depth: the same pixels."""

import io
import os
import struct
import threading

import cv2
import numpy as np
import pytest
from pictures import GREY, PIXELS, encoded
from PIL import Image

from runtime.image import load_image

READ_ONLY = PIXELS.copy()
READ_ONLY.flags.writeable = False

ARRAYS = {
    "read-only": READ_ONLY,
    "turned and back": PIXELS[::-1, ::-1].copy()[::-1, ::-1],
    "channels turned": PIXELS[:, :, ::-1].copy()[:, :, ::-1],
    "planes first in memory": PIXELS.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "part of a larger one": np.pad(PIXELS, ((2, 1), (3, 4), (1, 2)))[2:-1, 3:-4, 1:-2],
    "broadcast": np.broadcast_to(PIXELS, (6, 9, 3)),
    "uint16": PIXELS.astype(np.uint16) * 257,
    "uint16 big-endian": (PIXELS.astype(np.uint16) * 257).astype(">u2"),
    "float16": (PIXELS / 255).astype(np.float16),
    "float32": (PIXELS / 255).astype(np.float32),
    "float32 big-endian": (PIXELS / 255).astype(">f4"),
    "float64 Fortran": np.asfortranarray(PIXELS / 255),
    "long double": (PIXELS / 255).astype(np.longdouble),
    "with alpha": np.dstack([PIXELS / 255, np.zeros((6, 9))]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_type_and_order_give_the_same_pixels(kind):
    image = load_image(ARRAYS[kind])
    assert (image.dtype, image.flags["C_CONTIGUOUS"], image.flags["WRITEABLE"]) == (np.uint8, True, True)
    assert np.array_equal(image, PIXELS)
    assert not np.shares_memory(image, ARRAYS[kind])
    assert np.array_equal(load_image(ARRAYS[kind], "L"), load_image(Image.fromarray(PIXELS), "L"))


def test_sixteen_bits_are_divided_by_257_and_floats_are_rounded():
    assert load_image(np.array([[0, 256, 257, 65_535]], np.uint16), "L").ravel().tolist() == [0, 0, 1, 255]
    values = np.array([[0, 0.49 / 255, 0.51 / 255, 0.5, 1]])
    assert load_image(values, "L").ravel().tolist() == [0, 0, 1, 128, 255]


def test_large_array_of_floats_is_scaled_in_pieces_to_the_same_values():
    values = np.random.default_rng(4).random((3, 2**20 + 5), np.float32)
    assert np.array_equal(load_image(values, "L")[:, :, 0], np.rint(values * 255).astype(np.uint8))


class Pipe(io.RawIOBase):
    """A stream without a way back, which gives a few bytes at a time."""

    def __init__(self, content):
        self.rest = content

    def readable(self):
        return True

    def readinto(self, buffer):
        part, self.rest = self.rest[:7], self.rest[7:]
        buffer[: len(part)] = part
        return len(part)


CONTENT = encoded(PIXELS)


def at_its_end():
    file = io.BytesIO()
    file.write(CONTENT)
    return file


STREAMS = {
    "at its end": at_its_end,
    "pipe": lambda: Pipe(CONTENT),
    "buffered pipe": lambda: io.BufferedReader(Pipe(CONTENT)),
    "bytearray": lambda: bytearray(CONTENT),
    "memoryview": lambda: memoryview(CONTENT),
    "strided memoryview": lambda: memoryview(np.repeat(np.frombuffer(CONTENT, np.uint8), 2))[::2],
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_and_buffers_of_every_kind_give_the_same_pixels(kind):
    assert np.array_equal(load_image(STREAMS[kind]()), PIXELS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_is_read_as_a_path(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(CONTENT,))
    writer.start()
    assert np.array_equal(load_image(tmp_path / "pipe"), PIXELS)
    writer.join()


@pytest.mark.parametrize("form", [".png", ".tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colour_of_16_bits_is_within_one_level_and_exact_where_it_was_8_bits(form, alpha):
    def load(deep):
        bgr = deep[:, :, ::-1]
        return load_image(cv2.imencode(form, np.dstack([bgr, bgr[:, :, :1]]) if alpha else bgr)[1].tobytes())

    assert np.array_equal(load(PIXELS.astype(np.uint16) * 257), PIXELS)
    deep = np.random.default_rng(1).integers(0, 65_536, (40, 50, 3), np.uint16)
    assert np.abs(load(deep).astype(int) - deep // 257).max() == 1


def grey_tiff(bits, content, width, photometric=1, order="<"):
    """A TIFF of one row, uncompressed."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1, 279: len(content)}
    entries = b"".join(struct.pack(f"{order}HHLHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(tags))
    return (head + entries + bytes(4)).ljust(122, b"\0") + content


DEEP = np.array([0, 256, 257, 32_768, 65_535])


@pytest.mark.parametrize(
    ("content", "grey"),
    [
        (grey_tiff(16, DEEP.astype("<u2").tobytes(), 5), [0, 0, 1, 127, 255]),
        (grey_tiff(16, DEEP.astype(">u2").tobytes(), 5, order=">"), [0, 0, 1, 127, 255]),
        (grey_tiff(16, DEEP.astype("<u2").tobytes(), 5, photometric=0), [255, 255, 254, 128, 0]),
        (grey_tiff(12, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x11]), 4), [0, 255, 127, 1]),
        (b"P5\n2 1\n65535\n" + bytes(4), [0, 0]),
        (b"P5\n3 1\n1023\n" + np.array([0, 512, 1023], ">u2").tobytes(), [0, 127, 255]),
    ],
    ids=["little-endian", "big-endian", "white is zero", "12 bits", "black pgm", "10 bits"],
)
def test_grey_of_more_than_8_bits_is_scaled_by_its_files_white(content, grey):
    assert load_image(content, "L").ravel().tolist() == grey
    assert load_image(content)[0, :, 2].tolist() == grey


def test_cmyk_jpeg_whose_inks_are_inverted_as_adobe_does():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    content = encoded(picture, "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(load_image(content).astype(int) - [255, 0, 0]).max() <= 3
    assert np.abs(load_image(content, "L").astype(int) - 76).max() <= 3


def lab_tiff(*pixels):
    """A row of CIELAB pixels, L 0..255 and signed a and b, uncompressed."""
    content = b"".join(struct.pack("<Bbb", *pixel) for pixel in pixels)
    tags = {256: len(pixels), 257: 1, 258: 8, 259: 1, 262: 8, 273: 132, 277: 3, 278: 1, 279: len(content)}
    entries = [struct.pack("<HHLHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    entries[2] = struct.pack("<HHLL", 258, 3, 3, 126)  # bits of three channels, which lie behind the list
    head = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return head.ljust(126, b"\0") + struct.pack("<HHH", 8, 8, 8) + content


def test_lab_is_seen_as_its_colour_and_as_the_grey_of_that():
    content = lab_tiff((0, 0, 0), (137, 0, 0), (255, 0, 0), (138, 81, 70), (224, -79, 81))  # of red and green, last
    grey, colour = load_image(content, "L")[0, :, 0].astype(int), load_image(content)[0].astype(int)
    assert np.abs(colour - [[0] * 3, [128] * 3, [255] * 3, [255, 0, 0], [0, 255, 0]]).max() <= 14
    assert np.abs(grey - colour @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.filterwarnings("ignore:.*only the first one is read:runtime.errors.ImageWarning")
@pytest.mark.parametrize("form", ["MPO", "PNG"])
def test_first_picture_of_several_is_read(form):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    content = encoded(first, form, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.n_frames == 2
    assert np.abs(load_image(content).astype(int) - [255, 0, 0]).max() <= 3


def test_grey_with_alpha_of_16_bits_keeps_its_grey():
    head = struct.pack(">LLBBBBB", 2, 1, 16, 4, 0, 0, 0)  # width, height, depth, grey with alpha
    rows = b"\0" + struct.pack(">HHHH", 0, 0, 51_400, 65_535)
    assert load_image(png(head, rows), "L").ravel().tolist() == [0, 200]


def png(head, rows):
    import zlib

    def chunk(name, content):
        return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))

    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_picture_that_its_owner_has_not_decoded_yet_is_read_and_stays_usable():
    with Image.open(io.BytesIO(CONTENT)) as picture:
        assert np.array_equal(load_image(picture), PIXELS)
        assert np.array_equal(np.asarray(picture), PIXELS)
        assert picture.info == Image.open(io.BytesIO(CONTENT)).info
    assert np.array_equal(load_image(Image.fromarray(GREY), "L")[:, :, 0], GREY)


def test_floats_that_resizing_left_just_outside_are_clipped():
    found = load_image(np.array([[-0.0009, 1.0009, 0.5]], np.float32), "L")
    assert found[:, :, 0].tolist() == [[0, 255, 128]]
