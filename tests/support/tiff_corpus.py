"""TIFF files of every kind that tifffile and Pillow write, beside tifffile's own reading of them."""

import io
import itertools

import numpy as np
import tifffile
from image_corpus import HEIGHT, Kind, Sample, as_rgb, smooth
from pictures import encoded
from PIL import Image

TYPES = {
    "uint1": ("uint8", 1),
    "uint2": ("uint8", 2),
    "uint4": ("uint8", 4),
    "uint8": ("uint8", 8),
    "uint10": ("uint16", 10),
    "uint12": ("uint16", 12),
    "uint16": ("uint16", 16),
    "uint32": ("uint32", 32),
    "int8": ("int8", 8),
    "int16": ("int16", 16),
    "int32": ("int32", 32),
    "float16": ("float16", 16),
    "float32": ("float32", 32),
    "float64": ("float64", 64),
}
"""Types of a sample: NumPy's, and the bits."""

COLOURS = {"minisblack": 1, "miniswhite": 1, "palette": 1, "rgb": 3, "separated": 4, "ycbcr": 3, "cielab": 3}
"""Number of bands of each photometric interpretation, without further ones."""

COMPRESSIONS = ("none", "zlib", "lzw", "packbits", "zstd", "lzma", "jpeg")

LAYOUTS = [(layout, order, False) for layout in ("strips", "one strip", "tiles") for order in "<>"]
LAYOUTS += [("strips", "<", True), ("tiles", "<", True), ("tiles", ">", True)]
"""Layouts of a file: its arrangement of the pixels, its byte order, and whether it is a BigTIFF."""

EXTRAS = ("unspecified", "assocalpha", "unassalpha")

USUAL = ("uint8", "uint16")
"""Types that come in every layout and compression; of the others, of which few are read, a part is enough."""


def kinds():
    """Yield every kind of TIFF that tags tell from one another."""
    for dtype, photometric, bands in itertools.product(TYPES, COLOURS, range(1, 7)):
        more = bands - COLOURS[photometric]
        if more < 0 or (photometric == "palette" and (dtype not in USUAL or more)):
            continue
        for planar, extra, (layout, order, is_big), (compression, predictor) in itertools.product(
            (False, True) if bands > 1 else (False,),
            EXTRAS if more else ("",),
            LAYOUTS if dtype in USUAL else (LAYOUTS[0], LAYOUTS[5]),
            [*packings(dtype), *[("jpeg", 1)] * (dtype == "uint8" and photometric in ("minisblack", "rgb", "ycbcr"))],
        ):
            yield Kind.of(
                "TIFF",
                dtype=dtype,
                photometric=photometric,
                bands=bands,
                extra=extra,
                planar=planar,
                layout=layout,
                order=order,
                big=is_big,
                compression=compression,
                predictor=predictor,
            )


def packings(dtype):
    """Return the compressions of a type, each with the predictors that it has."""
    if TYPES[dtype][1] not in (8, 16, 32, 64):  # tifffile packs bits without compression only
        return [("none", 1)]
    predictors = (1, 3) if dtype.startswith("float") else (1, 2)
    names = COMPRESSIONS[1:-1] if dtype in USUAL else ("zlib", "lzw")
    return [("none", 1), *itertools.product(names, predictors)]


def is_common(kind):
    """Return True for a kind that has to be read."""
    colours = (kind["photometric"], kind["bands"], kind["extra"])
    return (
        kind["dtype"] in USUAL
        and not (kind["big"] and kind["order"] == ">")
        and colours in {("minisblack", 1, ""), ("rgb", 3, ""), ("rgb", 4, "unassalpha"), ("rgb", 4, "unspecified")}
        and (kind["compression"], kind["predictor"]) != ("packbits", 2)
        and (kind["compression"] != "jpeg" or kind["bands"] < 4)
    )


def sample(kind):
    """Write a kind of file and read it by tifffile; None if tifffile does not write it."""
    values = stored(kind)
    bands, more = kind["bands"], kind["bands"] - COLOURS[kind["photometric"]]
    options = {"photometric": kind["photometric"], "planarconfig": "separate" if kind["planar"] else "contig"}
    options |= {"strips": {"rowsperstrip": 8}, "one strip": {"rowsperstrip": HEIGHT}, "tiles": {"tile": (16, 16)}}[
        kind["layout"]
    ]
    if bands == 1:
        del options["planarconfig"]
    if kind["compression"] != "none":
        options["compression"] = kind["compression"]
    if kind["compression"] == "jpeg":
        options["compressionargs"] = {"level": 90}
    if kind["predictor"] > 1:
        options["predictor"] = kind["predictor"]
    if more:
        options["extrasamples"] = [kind["extra"], *["unspecified"] * (more - 1)]
    if TYPES[kind["dtype"]][1] not in (8, 16, 32, 64):
        options["bitspersample"] = TYPES[kind["dtype"]][1]
    if kind["photometric"] == "palette":
        options["colormap"] = colours(values.dtype)
    if kind["photometric"] == "ycbcr" and kind["compression"] != "jpeg":
        options["subsampling"] = (1, 1)
    if kind["planar"]:
        values = np.moveaxis(values, -1, 0)
    file = io.BytesIO()
    try:
        with tifffile.TiffWriter(file, byteorder=kind["order"], bigtiff=kind["big"]) as writer:
            writer.write(values, metadata=None, maxworkers=1, **options)
        read = tifffile.imread(io.BytesIO(file.getvalue()), maxworkers=1)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError):  # tifffile cannot write it
        return None
    if kind["planar"]:
        read = np.moveaxis(read, 0, -1)
    return Sample(kind, file.getvalue(), expected(kind, read), tolerance(kind))


def pillow_samples():
    """Yield the kinds that Pillow writes, beside the picture that was written or, of a JPEG, tifffile's reading."""
    levels = np.round(smooth(4) * 255).astype(np.uint8)
    colour, deep = Image.fromarray(levels[:, :, :3]), levels[:, :, 0].astype(np.uint16) * 257
    pictures = {mode: colour.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "CMYK", "YCbCr")}
    pictures |= {
        "RGBA": Image.fromarray(levels),
        "I;16": Image.fromarray(deep),
        "PA": colour.quantize(50).convert("PA"),
    }
    of_one_bit = ("tiff_ccitt", "group3", "group4", "tiff_raw_16")
    usual = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd")
    for mode, picture in pictures.items():
        expected = as_rgb(levels[:, :, 0]) if mode == "I;16" else np.asarray(picture.convert("RGB"), np.float64)
        for compression in (*usual, *of_one_bit) if mode == "1" else usual:
            content = encoded(picture, "TIFF", compression=compression)
            yield Sample(Kind.of("TIFF", by="Pillow", mode=mode, compression=compression), content, expected)
    for mode in ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"):
        content = encoded(pictures[mode], "TIFF", compression="jpeg")
        read = tifffile.imread(io.BytesIO(content), maxworkers=1)
        expected = from_cmyk(read.astype(np.float64)) if mode == "CMYK" else as_rgb(read)
        yield Sample(Kind.of("TIFF", by="Pillow", mode=mode, compression="jpeg"), content, expected)


def stored(kind):
    """Make the values that a file stores, [height, width] or [height, width, bands]."""
    dtype, bits = TYPES[kind["dtype"]]
    values = smooth(kind["bands"])
    if kind["extra"] == "assocalpha":  # colours are multiplied by an alpha that is not small
        first = COLOURS[kind["photometric"]]
        alpha = 0.6 + 0.4 * values[:, :, first]
        values[:, :, :first] *= alpha[:, :, None]
        values[:, :, first] = alpha
    values = values[:, :, 0] if kind["bands"] == 1 else values
    if dtype.startswith("float"):
        return values.astype(dtype)
    if kind["photometric"] == "cielab":  # colours that RGB has
        values[:, :, 0] = 0.4 + 0.4 * values[:, :, 0]
        values[:, :, 1:3] = (0.1 * values[:, :, 1:3] - 0.05) % 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.startswith("int") else (0, 2**bits - 1)
    return np.round(low + values * (high - low)).astype(dtype)


def colours(dtype):
    """A palette of random colours, uint16 [3, 256 or 65536]."""
    return np.random.default_rng(3).integers(0, 2**16, (3, 2 ** (8 * dtype.itemsize)), np.uint16)


def expected(kind, read):
    """Turn tifffile's reading into colours, or None if its values have no range of black to white of their own."""
    bits = TYPES[kind["dtype"]][1]
    if not kind["dtype"].startswith("uint"):
        return None
    values = np.asarray(read, np.float64)
    photometric, first = kind["photometric"], COLOURS[kind["photometric"]]
    if photometric == "palette":
        return np.moveaxis(colours(read.dtype)[:, read], 0, -1) / 257
    levels = values / (2**bits - 1) * 255
    if kind["extra"] == "assocalpha":
        levels[:, :, :first] *= 255 / levels[:, :, first : first + 1]
    levels = levels[:, :, :first] if levels.ndim == 3 else levels
    if photometric == "miniswhite":
        return as_rgb(255 - levels)
    if photometric == "separated":
        return from_cmyk(levels)
    if photometric == "ycbcr" and kind["compression"] != "jpeg":  # tifffile gives RGB of a JPEG
        return from_ycbcr(levels)
    if photometric == "cielab":
        return from_lab(read)
    return as_rgb(levels)


def from_cmyk(levels):
    """RGB of inks without colour management."""
    return (255 - levels[:, :, :3]) * (255 - levels[:, :, 3:4]) / 255


def from_ycbcr(levels):
    """RGB of YCbCr by ITU-R BT.601, the default of TIFF 6.0."""
    luma, blue, red = levels[:, :, 0], levels[:, :, 1] - 128, levels[:, :, 2] - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
    return np.clip(rgb, 0, 255)


def from_lab(read):
    """RGB of CIELAB with the white point D50, as TIFF 6.0 and Photoshop have it: a and b are signed."""
    scale = 2 ** (8 * read.dtype.itemsize) - 1
    lightness = read[:, :, 0] / scale * 100
    a, b = (np.float64(read[:, :, band].view(read.dtype.str.replace("u", "i"))) for band in (1, 2))
    if scale > 255:
        a, b = a / 256, b / 256
    middle = (lightness + 16) / 116
    cubes = np.stack([middle + a / 500, middle, middle - b / 200], -1)
    linear = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29))
    xyz = linear * np.array([0.96422, 1, 0.82521])
    to_rgb = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )  # Bradford-adapted from D50 to sRGB's D65 (Lindbloom)
    rgb = np.clip(xyz @ to_rgb.T, 0, 1)
    return 255 * np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def tolerance(kind):
    """Rounding of conversions in 8 bits is allowed for where there is one."""
    if kind["photometric"] in ("ycbcr", "cielab") or kind["compression"] == "jpeg" or kind["extra"] == "assocalpha":
        return 3.01
    return 2.51 if kind["photometric"] == "separated" else 1.01
