"""Files that Pillow decodes or helps to decode: all formats but JPEG, told by their first bytes; PIL images themselves.

Loading Pillow takes longer than a small network, and a program that reads JPEG files alone does without.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (  # the plug-ins register themselves; Pillow's own lazy registration is not safe in threads
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from runtime.errors import ImageError
from runtime.image_files import bmp, gif, heif, netpbm, numpy_files, png, starts, tiff, webp
from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.deep_colours import CONTENT, content_of, note_deep_colours
from runtime.image_files.libtiff_messages import libtiff_errors
from runtime.image_files.limits import LimitError, Limits
from runtime.image_files.pages import warn_of_pages
from runtime.image_files.pillow_guard import strict
from runtime.image_files.sources import PIECE, is_picture, kind_of_text, name_of, reason
from runtime.image_files.warned import warn_once
from runtime.support.concurrency import alone_with

DECODERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Formats that are read. Pillow's other decoders are not tested enough for files from strangers."""

BY_START: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes, Limits], Image.Image]], ...] = (
    (starts.PNG, png.decode_png),
    (starts.GIF, gif.decode_gif),
    (starts.BMP, bmp.decode_bmp),
    (starts.TIFF, tiff.decode_tiff),
    (starts.WEBP, webp.decode_webp),
)
"""Decoder of each format, by the first bytes of its files. JPEG and PPM are beside them, since they give arrays."""

ORIENTATION = 0x0112
"""EXIF tag of the camera's orientation."""

EXIF = ("exif", "Raw profile type exif")
"""Keys of EXIF in a picture's `info`; the latter is of older PNG files."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that turns an image of each orientation upright."""

LEVELS = "unet.levels"
"""Key in a picture's `info` for (black, white), the stored values of a picture with more than 8 bits."""

PALETTE_ALPHA = "unet.palette_alpha"
"""Key in a palette picture's `info` for the alpha of its indices: bytes, or the one index that is transparent."""

MOST = "unet.most"
"""Key in a picture's `info` for the highest value of a PGM by its header; its values were scaled from that to 65535."""

TURN = "unet.turn"
"""Key in a picture's `info` for the orientation from which it was turned upright."""

MAX_EXIF = 2**20
"""Maximum size of EXIF that is looked at, in bytes."""


@contextmanager
def strictly(limits: Limits) -> Iterator[None]:
    """Run the block with Pillow strict; its word for a file that none of its decoders knows becomes ours.

    Raises:
        UnreadKindError: Pillow does not know the format.
    """
    try:
        with strict(limits):
            yield
    except UnidentifiedImageError as error:
        raise UnreadKindError(f"is not an image of a known format ({', '.join(DECODERS)})") from error


def decode(source: bytes | Image.Image, name: str, limits: Limits) -> Image.Image | NDArray[np.uint8]:
    """Decode a file that is no JPEG, or a caller's own picture, to an upright PIL image, or to an array.

    The array is uint8 [height, width, 3 or 1], where that saves a copy.
    """
    with strictly(limits):
        if is_picture(source):
            with alone_with(source):  # Pillow decodes at the first use, and two threads would disturb each other
                return decoded(source, limits)
        for begin, decoder in BY_START:
            if source.startswith(begin):
                with header_errors(source):
                    picture = finished(decoder(source, limits))
                note_deep_colours(picture, source)
                warn_of_pages(source, name, limits)
                return picture
        if heif.module_of(source):
            return finished(heif.decode_heif(source, limits))
        if starts.NETPBM.match(source):
            return netpbm_picture(netpbm.decode_netpbm(source, limits), source, limits)
        if source.startswith(starts.NPY):
            raise UnreadKindError(
                "is an array of NumPy, expected a picture; give the array of its colours, or train with --channels N"
            )
        if kind := kind_of_text(source[:PIECE]):
            raise ImageError(f"{name}: {kind.replace('expected a path', 'expected an image')}")
        if medical := starts.medical_format(source):
            raise UnreadKindError(f"is {medical}")
        with Image.open(io.BytesIO(source), formats=DECODERS):
            raise UnidentifiedImageError  # a rare kind of the formats above


def size_and_orientation(content: bytes, limits: Limits) -> tuple[tuple[int, int], int]:
    """Return (width, height) and EXIF orientation of a file that is no JPEG, without decoding it."""
    if starts.NETPBM.match(content):
        return netpbm.read_header(content, limits)[1][:2], 1
    if numpy_files.is_numpy_file(content):
        return numpy_files.size_of(content, limits), 1
    if content.startswith(starts.GIF):
        return gif.first_frame(content, limits).whole_screen, 1
    if content.startswith(starts.TIFF):
        return tiff.size_of(content, limits), 1
    if content.startswith(starts.WEBP):
        webp.check_size(content, limits)
    elif content.startswith(starts.PNG):
        content = png.reduce(content, limits)
    if heif.module_of(content):
        with heif.refusals(), heif.opened(content) as picture:
            limits.check_pixels(*picture.size)
            return picture.size, orientation(picture.info)
    with strictly(limits), header_errors(content), Image.open(io.BytesIO(content), formats=DECODERS) as picture:
        return picture.size, orientation(picture.info)


@contextmanager
def header_errors(content: bytes) -> Iterator[None]:
    """Turn Pillow's refusal of a file that begins like a format of ours into damage; "BM" also begins words."""
    try:
        yield
    except UnidentifiedImageError as error:
        if any(content.startswith(begin) for begin, _ in BY_START if begin != starts.BMP):
            raise DamageError("its header makes no sense") from error
        raise


def decoded(picture: Image.Image, limits: Limits) -> Image.Image:
    """Decode a caller's own picture, which stays as it is."""
    if not (picture.width and picture.height):
        raise UnreadKindError(f"has no pixels ({picture.width}x{picture.height}), expected at least 1x1")
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tiff.check_picture(picture)
    if getattr(picture, "tile", None):  # its owner has not decoded it yet
        limits.check_pixels(*picture.size)
    content = content_of(picture)
    try:
        with libtiff_errors() as said, tiff.without_xmp(picture):
            picture.load()
        if said:
            raise DamageError("libtiff reports an error in its pixels")
    except (MemoryError, LimitError):
        raise
    except Exception as error:
        raise DamageError(reason(error)) from error
    result = finished(picture, is_ours=False)
    if content is not None:
        result.info[CONTENT] = content
    return result


def current_frame(source: Image.Image, limits: Limits) -> Image.Image:
    """As `runtime.image_files.decoding.current_frame`, of a PIL image."""
    with suppress(Exception), alone_with(source), strict(limits):
        if getattr(source, "is_animated", False):
            return decoded(source, limits)
    return source


def finished(picture: Image.Image, *, is_ours: bool = True) -> Image.Image:
    """Turn a decoded picture upright, and note its levels; one that is not ours stays as it is.

    What Pillow made of a picture (`convert`, `crop`, `resize`, `copy`) still has its EXIF, but is an image of its own,
    whose mask has to fit it as it is; so only pictures that `Image.open` gave are turned.
    """
    levels, turn = stored_levels(picture), orientation(picture.info)
    if turn in UPRIGHT and not is_ours and not isinstance(picture, ImageFile.ImageFile):
        warn_of_orientation(name_of(picture))
        turn = 1
    result = turned(picture, turn)
    if result is picture and not is_ours:
        result = picture.copy()
    for key in EXIF:  # it is upright now
        result.info.pop(key, None)
    transparency = result.info.pop("transparency", None)  # Pillow warns when a palette's is dropped
    if transparency is not None and picture.mode == "P":
        result.info[PALETTE_ALPHA] = transparency
    if levels is not None:
        result.info[LEVELS] = levels
    if turn != 1:
        result.info[TURN] = turn
    return result


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture of this EXIF orientation upright."""
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def netpbm_picture(
    values: NDArray[np.uint8] | NDArray[np.uint16], content: bytes, limits: Limits
) -> Image.Image | NDArray[np.uint8]:
    """A PBM, PGM or PPM as `decode` returns it."""
    if values.dtype == np.uint16:
        picture = Image.fromarray(values)
        picture.info[LEVELS] = 0, 65_535
        picture.info[MOST] = netpbm.read_header(content, limits)[1][2]
        return picture
    if netpbm.read_header(content, limits)[1][2] > 255:
        picture = Image.fromarray(values)
        picture.info[CONTENT] = content
        return picture
    return values.reshape(*values.shape[:2], -1).astype(np.uint8, copy=False)


def warn_of_orientation(name: str) -> None:
    """Warn, once a process, of a copy of a picture that is not turned upright."""
    warn_once(
        "orientation",
        f"{name}: is a copy of a picture that its EXIF says to turn; its pixels are taken as they are, so that the "
        "mask fits the copy; for an upright one, call PIL.ImageOps.exif_transpose(picture) first",
    )


def orientation(info: Mapping[Any, Any]) -> int:
    """EXIF orientation in a picture's `info`; 1 (upright) if there is none or the EXIF is damaged, as in every viewer.

    Pillow would look into XMP, too. Browsers and OpenCV do not, so a file whose XMP alone speaks of it is not turned.
    A TIFF's is not in `info`: Pillow turns its pixels when it decodes them.
    """
    if len(info.get("exif", b"")) > MAX_EXIF:
        return 1
    bare = Image.Image()
    bare.info = {key: info[key] for key in EXIF if key in info}
    try:
        return int(bare.getexif().get(ORIENTATION, 1))
    except Exception:  # of many types
        return 1


def jpeg_orientation(exif: bytes, limits: Limits) -> int:
    """EXIF orientation of a JPEG file."""
    with strict(limits):
        return orientation({"exif": exif})


def stored_levels(picture: Image.Image) -> tuple[int, int] | None:
    """(black, white) from the file's header; None if it does not say."""
    if picture.format == "PPM":
        return 0, 65_535  # Pillow scales to these values
    tags = getattr(picture, "tag_v2", None)
    if tags is None or not picture.mode.startswith("I;16"):
        return None
    white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    return (white, 0) if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else (0, white)
