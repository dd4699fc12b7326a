"""Kinds of TIFF by their tags, and which of them are read.

Pillow takes some files for others: it reads planes of 16 bits as planes of 8, passes over the predictor of PackBits,
and reads signed numbers as unsigned. So a kind is read only if it is listed here, and any other is refused by name.
tests/runtime/image_files/test_corpus.py compares each kind with another library's reading.
"""

import io
from dataclasses import dataclass
from math import isclose
from typing import Any

from PIL import TiffImagePlugin

from runtime.image_files.damage import DamageError, UnreadKindError

BIG_BIG_ENDIAN = b"MM\0+"
"""Beginning of a BigTIFF in big-endian byte order, which Pillow takes for a small one."""

UINT, INT, FLOAT = 1, 2, 3
TYPES = {UINT: "uint", INT: "int", FLOAT: "float", 5: "complex int", 6: "complex float"}
"""Names of the sample formats."""

GREY_WHITE_0, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {GREY_WHITE_0: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
"""Photometric interpretations that are read, with their numbers of channels."""

COLOUR_NAMES = {
    GREY_WHITE_0: "grey with white as 0",
    GREY: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    4: "mask",
    CMYK: "CMYK",
    YCBCR: "YCbCr",
    LAB: "CIELAB",
    9: "ICCLAB",
    32803: "colour filter array",
    34892: "linear raw",
}

DEPTHS = {
    GREY_WHITE_0: (1, 2, 4, 8, 16),
    GREY: (1, 2, 4, 8, 12, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    CMYK: (8, 16),
    YCBCR: (8,),
    LAB: (8,),
}
"""Bits of a channel that are read."""

RAW, LZW, JPEG, DEFLATE, PACKBITS, ADOBE_DEFLATE, LZMA, ZSTD = 1, 5, 7, 8, 32773, 32946, 34925, 50000
FAX = frozenset({2, 3, 4, 32771})
COMPRESSIONS = {
    RAW: "uncompressed",
    2: "CCITT",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    LZW: "LZW",
    6: "JPEG in the way of TIFF 6.0",
    JPEG: "JPEG",
    DEFLATE: "Deflate",
    ADOBE_DEFLATE: "Deflate",
    PACKBITS: "PackBits",
    32771: "CCITT in words",
    34712: "JPEG 2000",
    34887: "LERC",
    LZMA: "LZMA",
    ZSTD: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
"""Names of the compressions."""

PREDICTED = frozenset({LZW, DEFLATE, ADOBE_DEFLATE, LZMA, ZSTD})
"""Compressions with which libtiff obeys a predictor. With others it passes over the tag."""

READ = PREDICTED | {RAW, JPEG, PACKBITS, *FAX}
"""Compressions that are read. Of `FAX` some are, and the others are refused when they are decoded."""

USUAL_YCBCR = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}
"""Coefficients and range of YCbCr that Pillow takes for granted."""

UNSPECIFIED, PREMULTIPLIED = 0, 1
"""Meanings of a channel beyond the colours: none that is told; alpha that the colours are multiplied by."""


@dataclass(frozen=True, kw_only=True)
class TiffKind:
    """The facts of a TIFF that tell how its pixels are stored.

    `extras` has the meanings of the channels beyond the colours.
    """

    order: str
    photometric: int
    samples: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extras: tuple[int, ...]
    is_planar: bool
    compression: int
    predictor: int
    fill_order: int
    subsampling: tuple[int, ...]
    has_own_range: bool

    @classmethod
    def of(cls, tags: Any) -> "TiffKind":
        """Take the facts from the tags of a directory, with the defaults of TIFF 6.0."""
        samples = first(tags, 277, 1)
        bits = numbers(tags, 258, (1,))
        return cls(
            order="<" if tags.prefix == b"II" else ">",
            photometric=first(tags, 262, 0),
            samples=samples,
            bits=bits if len(set(bits)) > 1 else bits[:1],
            formats=tuple(sorted(set(numbers(tags, 339, (UINT,))))),
            extras=numbers(tags, 338, ()),
            is_planar=first(tags, 284, 1) == 2 and samples > 1,
            compression=first(tags, 259, RAW),
            predictor=first(tags, 317, 1),
            fill_order=first(tags, 266, 1),
            subsampling=numbers(tags, 530, (2, 2)),
            has_own_range=any(not is_near(tags.get(tag, usual), usual) for tag, usual in USUAL_YCBCR.items()),
        )

    def __str__(self) -> str:
        formats = "/".join(TYPES.get(one, "undefined ") for one in self.formats)
        text = f"{self.samples} x {formats}{'/'.join(map(str, self.bits))}{' in planes' * self.is_planar}, "
        text += COLOUR_NAMES.get(self.photometric, f"photometric interpretation {self.photometric}")
        more = self.samples - COLOURS.get(self.photometric, self.samples)
        if more > 0:
            text += f" with {more} more channel{'s' * (more > 1)}"
        text += f", {COMPRESSIONS.get(self.compression, f'compression {self.compression}')}"
        text += f" with predictor {self.predictor}" * (self.predictor != 1)
        return text + " in reversed bits" * (self.fill_order != 1)

    @property
    def depth(self) -> int:
        """Bits of every channel, or 0 if channels differ."""
        return self.bits[0] if len(self.bits) == 1 else 0

    @property
    def more(self) -> int:
        """Number of channels beyond the colours; negative if colours are missing."""
        return self.samples - COLOURS.get(self.photometric, 2**31)

    @property
    def is_raw_planes(self) -> bool:
        """True for planes of 8 or 16 bits that `decode_planes` reads."""
        return (
            self.is_planar
            and (self.compression, self.predictor, self.fill_order) == (RAW, 1, 1)
            and self.photometric in (GREY_WHITE_0, GREY, RGB, CMYK)
            and self.depth in (8, 16)
        )

    @property
    def is_float(self) -> bool:
        """True for floating-point numbers."""
        return self.formats == (FLOAT,)

    @property
    def has_bands(self) -> bool:
        """True for grey or RGB with any number of further channels, of which `tiff_bands` reads all."""
        types = (self.formats == (UINT,) and self.depth in (8, 16)) or (self.is_float and self.depth in (32, 64))
        packing = self.compression in PREDICTED | {RAW, PACKBITS} and self.fill_order == 1
        predictor = self.predictor == 1 or (self.predictor == 2 and self.compression in PREDICTED)
        return types and packing and predictor and self.photometric in (GREY, RGB) and self.more >= 0

    def check(self) -> None:
        """Raise an UnreadKindError unless Pillow or `decode_planes` gives the right pixels of this kind."""
        is_int32 = self.formats == (INT,) and self.depth == 32 and self.photometric == GREY and not self.more
        types = is_int32 or (self.formats == (UINT,) and self.depth in DEPTHS.get(self.photometric, ()))
        if not (types and self.channels_are_read() and self.packing_is_read()):
            raise self.refusal()

    def channels_are_read(self) -> bool:
        """Return True if the colours are found, in planes or not, beside channels that hold no colours.

        Grey with several more channels is a stack of bands, of which nobody but the user knows the colours.
        """
        is_grey = self.photometric in (GREY, GREY_WHITE_0)
        if self.more < 0 or (is_grey and self.more > 1) or (self.more and self.depth not in (8, 16)):
            return False
        if self.is_raw_planes:
            return True
        if is_grey and self.extras[:1] == (PREMULTIPLIED,):
            return False
        if self.photometric == YCBCR and self.compression != JPEG:
            return self.subsampling == (1, 1) and not (self.has_own_range or self.more or self.is_planar)
        if self.is_planar:
            return self.photometric not in (YCBCR, LAB) and (self.more < 2 or set(self.extras) == {UNSPECIFIED})
        return True

    def packing_is_read(self) -> bool:
        """Return True if libtiff undoes the compression, the predictor and the order of bits."""
        predictor = self.predictor == 1 or (self.predictor == 2 and self.compression in PREDICTED and self.depth >= 8)
        return self.compression in READ and predictor and (self.fill_order == 1 or not self.is_planar)

    def refusal(self) -> UnreadKindError:
        """Return the error that names this kind."""
        advice = "open it with tifffile and give the array"
        if self.has_bands and self.samples > 1:
            advice += f" of its colours, or train with --channels {self.samples}"
        return UnreadKindError(f"is a TIFF of {self}, which is not read; {advice}")


def read_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Read the tags of the first image, as Pillow reads them.

    Raises:
        DamageError: there is no width or height.
        UnreadKindError: it is a BigTIFF in big-endian byte order.
    """
    if content.startswith(BIG_BIG_ENDIAN):
        raise UnreadKindError(
            "is a BigTIFF in big-endian byte order, which is not read; open it with tifffile and give the array"
        )
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if content[2] == 43 else 8])
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    if first(tags, 256, 0) < 1 or first(tags, 257, 0) < 1:
        raise DamageError("its directory has no width or height")
    return tags


def numbers(tags: Any, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return the whole numbers of a tag."""
    found = tags.get(tag, default)
    found = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(one, int) for one in found):
        raise DamageError(f"its tag {tag} holds other values than whole numbers")
    return found


def is_near(found: Any, wanted: tuple[float, ...]) -> bool:
    """Return True if a tag holds these numbers, which may be fractions."""
    return isinstance(found, tuple) and len(found) == len(wanted) and all(map(isclose, map(float, found), wanted))


def first(tags: Any, tag: int, default: int) -> int:
    """Return the first whole number of a tag."""
    return (*numbers(tags, tag, ()), default)[0]
