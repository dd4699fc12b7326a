"""PNG files of every colour type, depth and filter, written here from the values that they are to give."""

import itertools
import zlib

import numpy as np
from damaged import png_chunk
from image_corpus import HEIGHT, WIDTH, Kind, Sample, as_rgb, smooth

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
BANDS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""(x, y, step in x, step in y) of the passes of an interlaced file."""

COLOURS = np.random.default_rng(4).integers(0, 256, (256, 3), np.uint8)

OTHERS = {
    "": [],
    "gamma": [(b"gAMA", (45_455).to_bytes(4, "big"))],
    "profile": [(b"iCCP", b"profile\0\0" + zlib.compress(np.random.default_rng(1).bytes(2**21)))],
    "text": [(b"tEXt", b"Comment\0" + b"words " * 400_000), (b"zTXt", b"More\0\0" + zlib.compress(bytes(2**22)))],
    "animation": [(b"acTL", (2).to_bytes(4, "big") + bytes(4))],
}
"""Chunks before the pixels that change none of them."""


def samples():
    """Yield a sample of every kind."""
    for colour, depths in DEPTHS.items():
        for depth, interlaced, transparent, filtered in itertools.product(
            depths, (False, True), (False, True), (0, 1, 2, 3, 4, "mixed")
        ):
            if transparent and colour in (GREY_ALPHA, RGB_ALPHA):
                continue
            facts = {"interlaced": interlaced, "transparent": transparent, "filter": filtered, "with": ""}
            yield sample(Kind.of("PNG", colour=colour, depth=depth, **facts))
        for other in [name for name in OTHERS if name]:
            facts = {"interlaced": False, "transparent": False, "filter": "mixed", "with": other}
            yield sample(Kind.of("PNG", colour=colour, depth=8, **facts))


def sample(kind):
    """Write a kind of file."""
    colour, depth = kind["colour"], kind["depth"]
    top = 2**depth - 1
    values = np.round(smooth(BANDS[colour]) * top).astype(np.uint16)
    header = WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + bytes([depth, colour, 0, 0, kind["interlaced"]])
    chunks = [(b"IHDR", header), *OTHERS[kind["with"]]]
    if colour == PALETTE:
        chunks.append((b"PLTE", COLOURS[: top + 1].tobytes()))
    if kind["transparent"]:
        key = {PALETTE: bytes([0, 128]), GREY: values[3, 3].astype(">u2").tobytes()}
        chunks.append((b"tRNS", key.get(colour, values[3, 3].astype(">u2").tobytes())))
    passes = ADAM7 if kind["interlaced"] else ((0, 0, 1, 1),)
    parts = [values[y::dy, x::dx] for x, y, dx, dy in passes]
    stream = zlib.compress(b"".join(rows(part, depth, kind["filter"]) for part in parts if part.size))
    if kind["with"] == "animation":
        frame = bytes(4) + header[:8] + bytes(8) + b"\0\1\0\1\0\0"
        chunks.append((b"fcTL", frame))
        later = [(b"fcTL", b"\0\0\0\1" + frame[4:]), (b"fdAT", b"\0\0\0\2" + stream)]
    else:
        later = []
    middle = len(stream) // 2
    chunks += [(b"IDAT", stream[:middle]), (b"IDAT", stream[middle:]), *later, (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in chunks)
    if colour == PALETTE:
        return Sample(kind, content, COLOURS[values[:, :, 0]].astype(float))
    return Sample(
        kind, content, as_rgb(values[:, :, : BANDS[colour] - (colour in (GREY_ALPHA, RGB_ALPHA))] / top * 255)
    )


def rows(values, depth, filtered):
    """Pack values [height, width, bands] to rows, each after the number of its filter."""
    step = max(1, depth * values.shape[2] // 8)
    packed = []
    for row in values:
        if depth == 16:
            packed.append(row.astype(">u2").tobytes())
        else:
            bits = (row.ravel()[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            packed.append(np.packbits(bits.astype(np.uint8)).tobytes())
    above, out = bytes(len(packed[0])), []
    for index, row in enumerate(packed):
        kind = index % 5 if filtered == "mixed" else filtered
        out.append(bytes([kind]) + apply_filter(kind, row, above, step))
        above = row
    return b"".join(out)


def apply_filter(kind, row, above, step):
    """Filter a row by the PNG specification: none, sub, up, average or Paeth."""
    found = bytearray()
    for place, value in enumerate(row):
        left = row[place - step] if place >= step else 0
        corner = above[place - step] if place >= step else 0
        up = above[place]
        guess = left + up - corner
        paeth = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
        found.append((value - (0, left, up, (left + up) // 2, paeth)[kind]) % 256)
    return bytes(found)
