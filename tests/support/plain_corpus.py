"""BMP, GIF, PBM, PGM and PPM files of every kind, written here from the values that they are to give."""

import itertools
import struct

import numpy as np
from damaged import rle_bmp
from image_corpus import HEIGHT, WIDTH, Kind, Sample, as_rgb, smooth
from pictures import encoded, palette_picture

COLOURS = np.random.default_rng(4).integers(0, 256, (256, 3), np.uint8)

FIELDS = {
    "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
    "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "8888": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "888": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "reversed": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "high": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
}
"""Bits of a pixel, and the masks of red, green, blue and alpha."""


def samples():
    """Yield a sample of every kind."""
    yield from bmp_samples()
    yield from gif_samples()
    yield from netpbm_samples()


def bmp_samples():
    """BMP with a palette, whole bytes, fields of bits and run lengths."""
    for header, top_down in itertools.product(("core", "info", "V4", "V5"), (False, True)):
        if header == "core" and top_down:
            continue
        for bits in (1, 2, 4, 8):
            indices = np.round(smooth(1)[:, :, 0] * (2**bits - 1)).astype(np.uint8)
            kind = Kind.of("BMP", bits=bits, header=header, top_down=top_down)
            yield Sample(kind, bmp(kind, packed(indices, bits), COLOURS[: 2**bits]), COLOURS[indices].astype(float))
        levels = np.round(smooth(4) * 255).astype(np.uint8)
        kind = Kind.of("BMP", bits=24, header=header, top_down=top_down)
        yield Sample(kind, bmp(kind, list(levels[:, :, 2::-1].reshape(HEIGHT, -1))), as_rgb(levels))
        if header == "core":
            continue
        for bits, fields in ((16, "555"), (32, "888")):
            yield bmp_of_fields(fields, bits=bits, header=header, top_down=top_down)
        for fields, (bits, _) in FIELDS.items():
            yield bmp_of_fields(fields, bits=bits, header=header, top_down=top_down, masks=fields)
    indices = np.round(smooth(1)[:, :, 0] * 5).astype(np.uint8)
    palette = np.array([(index // 2, 255 - index, index) for index in range(256)], float)
    yield Sample(Kind.of("BMP", bits=8, runs=True), rle_bmp(indices), palette[indices])


def bmp_of_fields(fields, **facts):
    """A BMP whose pixels are numbers with a field of bits for each band."""
    bits, masks = FIELDS[fields]
    lows = [(mask & -mask).bit_length() - 1 if mask else 0 for mask in masks]
    tops = np.array([mask >> low for mask, low in zip(masks, lows, strict=True)])
    values = np.round(smooth(4) * tops).astype(np.uint32)
    pixels = sum(values[:, :, band] << np.uint32(lows[band]) for band in range(4)).astype(f"<u{bits // 8}")
    kind = Kind.of("BMP", **facts)
    content = bmp(kind, [row.tobytes() for row in pixels], masks=masks if "masks" in facts else None)
    return Sample(kind, content, values[:, :, :3] / tops[:3] * 255)


def packed(indices, bits):
    """Pack rows of palette indices, the first one highest."""
    each = (indices[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return list(np.packbits(each.reshape(HEIGHT, -1).astype(np.uint8), axis=1))


def bmp(kind, rows, palette=(), masks=None):
    """A BMP of these rows, from the top."""
    rows = [bytes(row) + bytes(-len(bytes(row)) % 4) for row in rows]
    facts = dict(kind.facts)
    pixels, bits = b"".join(rows if facts["top_down"] else rows[::-1]), facts["bits"]
    if facts["header"] == "core":
        colours = b"".join(bytes(colour[::-1]) for colour in palette)
        header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        colours = b"".join(bytes(colour[::-1]) + b"\0" for colour in palette)
        size, height = {"info": 40, "V4": 108, "V5": 124}[facts["header"]], -HEIGHT if facts["top_down"] else HEIGHT
        form = 0 if masks is None else 3
        header = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, form, len(pixels), 0, 0, len(palette), 0)
        more = b"" if masks is None else struct.pack("<4I", *masks)
        header += more[:12] if size == 40 else more.ljust(size - 40, b"\0")
    start = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + colours + pixels


def gif_samples():
    """GIF with rows in both orders, palettes of both kinds, transparency, and a frame in a part of the screen."""
    for bits, interlaced, is_local, transparent, placed in itertools.product(
        (1, 2, 4, 8), (0, 1), (False, True), (False, True), (False, True)
    ):
        indices = np.round(smooth(1)[:, :, 0] * (2**bits - 1)).astype(np.uint8)
        options = {"transparency": 0} if transparent else {}
        content = encoded(
            palette_picture(indices, COLOURS[: 2**bits].tolist()),
            "GIF",
            interlace=interlaced,
            optimize=False,
            **options,
        )
        expected = COLOURS[indices].astype(float)
        if is_local:
            content = with_local_palette(content)
        if placed:
            content = on_larger_screen(content, (5, 3))
            screen = np.full((HEIGHT + 8, WIDTH + 8, 3), np.nan)  # the other pixels are as the viewer likes
            screen[3 : 3 + HEIGHT, 5 : 5 + WIDTH] = expected
            expected = screen
        facts = {"bits": bits, "interlaced": interlaced, "local": is_local, "transparent": transparent}
        yield Sample(Kind.of("GIF", **facts, placed=placed), content, expected, 0)


def frame_start(content):
    """Find the frame of a GIF with a global palette."""
    position = 13 + (3 << ((content[10] & 7) + 1))
    while content[position] == 0x21:
        position += 2
        while content[position]:
            position += 1 + content[position]
        position += 1
    return position


def with_local_palette(content):
    """Move the palette to the frame, and leave one of other colours for all frames."""
    size, start = 3 << ((content[10] & 7) + 1), frame_start(content)
    flags = content[start + 9] | 0x80 | content[10] & 7
    frame = content[start : start + 9] + bytes([flags]) + content[13 : 13 + size] + content[start + 10 :]
    return content[:13] + bytes(size) + content[13 + size : start] + frame


def on_larger_screen(content, corner):
    """Place the frame on a screen that is 8 pixels larger."""
    changed, start = bytearray(content), frame_start(content)
    struct.pack_into("<HH", changed, 6, WIDTH + 8, HEIGHT + 8)
    struct.pack_into("<HH", changed, start + 1, *corner)
    return bytes(changed)


def netpbm_samples():
    """PBM, PGM and PPM, plain and raw, with every kind of highest value, and comments."""
    for number, most, commented in itertools.product(
        range(1, 7), (1, 7, 100, 255, 256, 1023, 4095, 65535), (False, True)
    ):
        if number in (1, 4) and most > 1:
            continue
        values = np.round(smooth(3 if number in (3, 6) else 1) * most).astype(np.uint16)
        header = [f"P{number}", *["# made by hand"] * commented, f"{WIDTH} {HEIGHT}"]
        header += [] if number in (1, 4) else [str(most)]
        text = ("\n".join(header) + "\n").encode()
        if number <= 3:
            pixels = "\n".join(" ".join(map(str, row.ravel().tolist())) for row in values).encode() + b"\n"
        elif number == 4:
            pixels = np.packbits(values[:, :, 0].astype(np.uint8), axis=1).tobytes()
        else:
            pixels = values.astype(">u2" if most > 255 else "u1").tobytes()
        levels = values / most * 255
        kind = Kind.of("PPM", number=number, most=most, commented=commented)
        yield Sample(kind, text + pixels, as_rgb(255 - levels if number in (1, 4) else levels))
