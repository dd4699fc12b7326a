"""Images of every format, cut and ended properly: structure, lengths and checksums are right, pixels are missing."""

import io
import re
import struct
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

PROPER = {}
"""Function for each format that cuts a file and ends it: (content, share) -> content; share is a fraction, 0 to 1."""


def proper(*forms):
    def register(function):
        PROPER.update(dict.fromkeys(forms, function))
        return function

    return register


@proper("JPEG")
def cut_jpeg(content, share):
    """Cut the data of the scans, and append an end marker."""
    start = re.search(rb"\xff\xda", content).end() + 10
    return content[: start + int(share * (len(content) - start))] + b"\xff\xd9"


def png_chunk(name, body):
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png_chunks(content):
    position = 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        yield content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        position += 12 + length


def edited_png(content, edit):
    """The file with edit(name, body) in place of each chunk's body, and right checksums; None drops the chunk."""
    edited = [(name, edit(name, body)) for name, body in png_chunks(content)]
    return content[:8] + b"".join(png_chunk(name, body) for name, body in edited if body is not None)


@proper("PNG")
def cut_png(content, share):
    """Cut the pixels, compress what is left to a finished stream, and give it a right checksum."""
    pixels = zlib.decompress(b"".join(body for name, body in png_chunks(content) if name == b"IDAT"))
    stream = [zlib.compress(pixels[: int(share * len(pixels))])]
    return edited_png(content, lambda name, body: body if name != b"IDAT" else stream.pop() if stream else None)


@proper("GIF")
def cut_gif(content, share):
    """Cut the compressed pixels (or give an end code after some of them), and end blocks and file."""
    start, flags = 13, content[10]
    start += 3 << ((flags & 7) + 1) if flags & 128 else 0
    while content[start : start + 1] == b"!":
        start = gif_end(content, start + 2)
    first = start + 10 + (3 << ((content[start + 9] & 7) + 1) if content[start + 9] & 128 else 0)
    end, data, position = gif_end(content, first + 1), b"", first + 1
    while position < end - 1:
        data += content[position + 1 : position + 1 + content[position]]
        position += 1 + content[position]
    data = data[: int(share * len(data))]
    blocks = b"".join(bytes([len(part)]) + part for part in (data[i : i + 255] for i in range(0, len(data), 255)))
    return content[: first + 1] + blocks + b"\0;"


def gif_end(content, position):
    while content[position]:
        position += 1 + content[position]
    return position + 1


def gif_of_fewer_rows(pixels, rows):
    """A GIF whose pixels end, with an end code, after some rows."""
    file = io.BytesIO()
    Image.fromarray(pixels[:rows]).save(file, "GIF", interlace=0)
    content = bytearray(file.getvalue())
    start = 13 + (3 << ((content[10] & 7) + 1) if content[10] & 128 else 0)
    while content[start] == 0x21:
        start = gif_end(content, start + 2)
    for place in (8, start + 7):
        content[place : place + 2] = struct.pack("<H", len(pixels))
    return bytes(content)


@proper("BMP")
def cut_bmp(content, share):
    """Cut the rows, and say so in the file's length."""
    start = struct.unpack_from("<I", content, 10)[0]
    cut = bytearray(content[: start + int(share * (len(content) - start))])
    cut[2:6] = struct.pack("<I", len(cut))
    return bytes(cut)


def rle_bmp(indices, runs=None):
    """An RLE8 file of palette indices, uint8 [height, width], with a palette of colours; or of these runs."""
    height, width = indices.shape
    if runs is None:
        runs = b""
        for row in indices[::-1]:
            ends = [*np.flatnonzero(np.diff(row)) + 1, width]
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                runs += b"".join(bytes([min(255, end - i), row[start]]) for i in range(start, end, 255))
            runs += b"\0\0"
        runs = runs[:-2] + b"\0\1"
    palette = b"".join(bytes([i, 255 - i, i // 2, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


@proper("TIFF")
def cut_tiff(content, share):
    """Cut each strip, and say so in its length."""
    with Image.open(io.BytesIO(content)) as picture:
        tags = picture.tag_v2
        offsets, counts = tags[273], tags[279]
    cut = bytearray(content)
    index = content.find(struct.pack("<HH", 279, tags.tagtype[279]))
    place = index + 8 if len(counts) == 1 else struct.unpack_from("<I", content, index + 8)[0]
    form = "<H" if tags.tagtype[279] == 3 else "<I"
    last = len(counts) - 1
    end = content[offsets[last] + counts[last] - 2 : offsets[last] + counts[last]]
    left = int(share * counts[last])
    struct.pack_into(form, cut, place + last * struct.calcsize(form), left)
    if end == b"\xff\xd9" and left > 2:  # a JPEG
        cut[offsets[last] + left - 2 : offsets[last] + left] = end
    return bytes(cut)


def tiff_of_fewer_rows(pixels, rows, **options):
    """A TIFF of some rows that says it has all of them."""
    file = io.BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[278] = len(pixels)
    Image.fromarray(pixels[:rows]).save(file, "TIFF", tiffinfo=tags, **options)
    content = bytearray(file.getvalue())
    for tag in (257, 278):
        for kind in (3, 4):
            place = content.find(struct.pack("<HHI", tag, kind, 1))
            if place >= 0:
                struct.pack_into("<HHII", content, place, tag, 4, 1, len(pixels))
    return bytes(content)


@proper("WEBP")
def cut_webp(content, share):
    """Cut the chunk of pixels, and say so in the lengths."""
    position = 12
    while content[position : position + 4] not in (b"VP8 ", b"VP8L"):
        length = struct.unpack_from("<I", content, position + 4)[0]
        position += 8 + length + length % 2
    length = struct.unpack_from("<I", content, position + 4)[0]
    body = content[position + 8 : position + 8 + int(share * length)]
    chunk = content[position : position + 4] + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    rest = content[12:position] + chunk
    return b"RIFF" + struct.pack("<I", 4 + len(rest)) + b"WEBP" + rest


@proper("PPM", "PPM as text")
def cut_ppm(content, share):
    """Cut the file, which has no end of its own."""
    start = re.match(rb"P\d\s+\d+\s+\d+\s+(\d+\s)?", content).end()
    return content[: start + int(share * (len(content) - start))]


def as_text(pixels):
    """A PGM or PPM file as text."""
    kind = 3 if pixels.ndim == 3 else 2
    rows = "\n".join(" ".join(map(str, row)) for row in pixels.reshape(len(pixels), -1).tolist())
    return f"P{kind}\n{pixels.shape[1]} {pixels.shape[0]}\n255\n{rows}\n".encode()
