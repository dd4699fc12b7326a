"""Decoding: strictly, with limits, upright, to 8 bits. A file gives all of its pixels, or an `ImageError`."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import cv2
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

from runtime.errors import ImageError, ImageMemoryError, ImageWarning, one_line, warn_user
from runtime.image_files import bmp, gif, heif, jpeg, netpbm, png, tiff, webp
from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.deep_colours import CONTENT, content_of, note_deep_colours
from runtime.image_files.libtiff_messages import libtiff_errors
from runtime.image_files.limits import LIMITS, LimitError, Limits
from runtime.image_files.pages import warn_of_pages
from runtime.image_files.pillow_guard import strict
from runtime.image_files.sources import PIECE, kind_of_text, name_of, open_source, read_source
from runtime.support.concurrency import alone_with

DECODERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Formats that are read. Pillow's other decoders are not tested enough for files from strangers."""

BY_START: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes, Limits], Image.Image]], ...] = (
    (png.START, png.decode_png),
    (gif.STARTS, gif.decode_gif),
    (bmp.START, bmp.decode_bmp),
    (tiff.STARTS, tiff.decode_tiff),
    (webp.START, webp.decode_webp),
)
"""Decoder of each format, by the first bytes of its files. JPEG and PPM are beside them, since they give arrays."""

ORIENTATION, TURNED = 0x0112, frozenset({5, 6, 7, 8})
"""EXIF tag of the camera's orientation, and its values that exchange height and width."""

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

SIDEWAYS = frozenset(UPRIGHT[one] for one in TURNED)
"""Operations that exchange height and width."""

TURNS: dict[Image.Transpose, Callable[[Any], Any]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: partial(cv2.flip, flipCode=1),
    Image.Transpose.ROTATE_180: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    Image.Transpose.FLIP_TOP_BOTTOM: partial(cv2.flip, flipCode=0),
    Image.Transpose.TRANSPOSE: cv2.transpose,
    Image.Transpose.ROTATE_270: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    Image.Transpose.TRANSVERSE: lambda array: cv2.flip(cv2.transpose(array), -1),
    Image.Transpose.ROTATE_90: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""The same operations on arrays; NumPy's copy of a turned view takes three to five times as long."""

MAX_EXIF = 2**20
"""Maximum size of EXIF that is looked at, in bytes."""

DAMAGED = re.compile(r"truncated|broken|decod|data stream|^-\d+$", re.IGNORECASE)
"""Words by which Pillow tells a damaged file from one of a kind that it does not read. Pillow 11 gives numbers."""

UNSUPPORTED = re.compile(r"unsupported BMP", re.IGNORECASE)
"""Words by which Pillow names a kind of BMP that it does not read."""

QUOTED = re.compile(r"""[:'"]""")
"""The beginning of what a decoder's message quotes."""

WHITE_16 = 0, 65_535
"""(black, white) of 16 bits."""

LEVELS = "unet.levels"
"""Key in a picture's `info` for (black, white), the stored values of a picture with more than 8 bits."""

WARNED: set[str] = set()
"""Subjects that this process has warned of."""

HEADER = 2**16
"""Bytes that are read first when a header is all that is asked for."""


class Decoded(NamedTuple):
    """A picture: a PIL image, or uint8 [height, width, 3 or 1] where that saves a copy.

    Of a JPEG that was decoded at a part of its size, `whole_size` is its own (height, width) and `content` the file.
    """

    picture: Image.Image | NDArray[np.uint8]
    whole_size: tuple[int, int] | None = None
    content: bytes = b""


def open_image(source: Any, limits: Limits = LIMITS) -> Image.Image:
    """Decode a path, bytes, file object or PIL image completely (first frame) and turn it upright by its EXIF.

    Raises:
        ImageError: the image cannot be decoded, lacks pixels, or exceeds the limits.
    """
    picture = decode(source, limits).picture
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def decode(source: Any, limits: Limits = LIMITS, at_least: tuple[int, int] | float | None = None) -> Decoded:
    """Decode as `open_image`; `at_least` is as of `load_image`."""
    name = name_of(source)
    with image_errors(name, limits):
        if isinstance(source, Image.Image):
            with alone_with(source):  # Pillow decodes at the first use, and two threads would disturb each other
                return Decoded(decoded(source, limits))
        content = read_source(source, name, limits)
        if content.startswith(jpeg.START):
            return decode_jpeg(content, name, limits, at_least)
        return Decoded(decode_others(content, name, limits))


def decode_jpeg(content: bytes, name: str, limits: Limits, at_least: tuple[int, int] | float | None) -> Decoded:
    """Decode a JPEG and turn it upright."""
    picture, header = jpeg.decode_jpeg(content, limits, at_least)
    if header.fault:
        warn_user(f"{name}: {header.fault}", ImageWarning)
    size = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    whole, turn = header.size[::-1], UPRIGHT.get(orientation({"exif": header.exif}))
    if turn is not None:
        picture = picture.transpose(turn) if isinstance(picture, Image.Image) else turned(picture, turn)
    if size == header.size:
        return Decoded(picture)
    return Decoded(picture, whole[::-1] if turn in SIDEWAYS else whole, content)


def turned(array: NDArray[np.uint8], turn: Image.Transpose) -> NDArray[np.uint8]:
    """Turn an array [height, width, channels]."""
    try:
        result: NDArray[np.uint8] = TURNS[turn](array)
    except cv2.error as error:  # the one that is possible
        raise MemoryError from error
    return result.reshape(*result.shape[:2], -1)  # OpenCV drops a last axis of 1


def decode_others(content: bytes, name: str, limits: Limits) -> Image.Image | NDArray[np.uint8]:
    """Decode a file of another format than JPEG and turn it upright."""
    for starts, decoder in BY_START:
        if content.startswith(starts):
            with header_errors(content):
                picture = finished(decoder(content, limits))
            note_deep_colours(picture, content)
            warn_of_pages(content, name, limits)
            return picture
    if heif.module_of(content):
        return finished(heif.decode_heif(content, limits))
    if netpbm.START.match(content):
        return netpbm_picture(netpbm.decode_netpbm(content, limits), content, limits)
    if kind := kind_of_text(content[:PIECE]):
        raise ImageError(f"{name}: {kind.replace('expected a path', 'expected an image')}")
    with Image.open(io.BytesIO(content), formats=DECODERS):
        raise UnidentifiedImageError  # a rare kind of the formats above


def image_size(path: str | os.PathLike[str], limits: Limits = LIMITS, *, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of an image file as displayed; with `upright` false, as its header says.

    Raises:
        ImageError: the file cannot be read, or exceeds the limits.
    """
    name = name_of(path)
    with image_errors(name, limits), open_source(path, name, limits) as file:
        start = file.read(HEADER)
        if start.startswith(jpeg.START):
            header = jpeg.read_start(start, file, limits)
            (width, height), turn = header.size, orientation({"exif": header.exif})
        else:
            (width, height), turn = size_and_orientation(start + file.read(), limits)
    return (width, height) if upright and turn in TURNED else (height, width)


def size_and_orientation(content: bytes, limits: Limits) -> tuple[tuple[int, int], int]:
    """Return (width, height) and EXIF orientation of a file that is no JPEG, without decoding it."""
    if netpbm.START.match(content):
        return netpbm.read_header(content, limits)[1][:2], 1
    if content.startswith(gif.STARTS):
        return gif.first_frame(content, limits).whole_screen, 1
    if content.startswith(tiff.STARTS):
        return tiff.size_of(content, limits), 1
    if content.startswith(webp.START):
        webp.check_size(content, limits)
    elif content.startswith(png.START):
        content = png.reduce(content, limits)
    if heif.module_of(content):
        with heif.refusals(), heif.opened(content) as picture:
            limits.check_pixels(*picture.size)
            return picture.size, orientation(picture.info)
    with header_errors(content), Image.open(io.BytesIO(content), formats=DECODERS) as picture:
        return picture.size, orientation(picture.info)


@contextmanager
def header_errors(content: bytes) -> Iterator[None]:
    """Turn Pillow's refusal of a file that begins like a format of ours into damage; "BM" also begins words."""
    try:
        yield
    except UnidentifiedImageError as error:
        if any(content.startswith(starts) for starts, _ in BY_START if starts != bmp.START):
            raise DamageError("its header makes no sense") from error
        raise


@contextmanager
def image_errors(name: str, limits: Limits) -> Iterator[None]:
    """Run the block with Pillow strict, and turn everything that it raises into an `ImageError`."""
    try:
        with strict(limits):
            yield
    except (ImageError, ImageWarning):  # where warnings are errors
        raise
    except MemoryError as error:
        raise out_of_memory(name) from error
    except (LimitError, UnreadKindError) as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not an image of a known format ({', '.join(DECODERS)})") from error
    except DamageError as error:
        raise ImageError(f"{name}: is damaged or truncated ({error}); replace it") from error
    except Exception as error:  # decoders raise many types for damaged files: OSError, SyntaxError, struct.error, ...
        if "out of memory" in str(error):
            raise out_of_memory(name) from error
        if DAMAGED.search(str(error)):
            raise ImageError(f"{name}: is damaged or truncated ({reason(error)}); replace it") from error
        if UNSUPPORTED.search(str(error)):
            raise ImageError(f"{name}: is of a kind that is not read ({reason(error)}); save it as PNG") from error
        raise ImageError(f"{name}: cannot be read as an image ({reason(error)})") from error


def out_of_memory(name: str) -> ImageMemoryError:
    """Return the error of an image that the memory of this machine cannot hold."""
    return ImageMemoryError(f"{name}: decoding ran out of memory; make it smaller, or free memory")


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


def current_frame(source: Any, limits: Limits) -> Any:
    """Return the decoded frame of a PIL image that has several, since its owner may go on to the next; else `source`.

    A frame that cannot be decoded is left to `decode`, which raises an error that names it.
    """
    if not isinstance(source, Image.Image):
        return source
    with suppress(Exception), alone_with(source), strict(limits):
        if getattr(source, "is_animated", False):
            return decoded(source, limits)
    return source


def finished(picture: Image.Image, *, is_ours: bool = True) -> Image.Image:
    """Turn a decoded picture upright, and note its levels; one that is not ours stays as it is.

    What Pillow made of a picture (`convert`, `crop`, `resize`, `copy`) still has its EXIF, but is an image of its own,
    whose mask has to fit it as it is; so only pictures that `Image.open` gave are turned.
    """
    levels, turn = stored_levels(picture), UPRIGHT.get(orientation(picture.info))
    if turn is not None and not is_ours and not isinstance(picture, ImageFile.ImageFile):
        warn_of_orientation(name_of(picture))
        turn = None
    result = picture if turn is None else picture.transpose(turn)
    if result is picture and not is_ours:
        result = picture.copy()
    for key in EXIF:  # it is upright now
        result.info.pop(key, None)
    result.info.pop("transparency", None)  # no caller keeps alpha, and Pillow warns when a palette's is dropped
    if levels is not None:
        result.info[LEVELS] = levels
    return result


def netpbm_picture(
    values: NDArray[np.uint8] | NDArray[np.uint16], content: bytes, limits: Limits
) -> Image.Image | NDArray[np.uint8]:
    """A PBM, PGM or PPM as `decode` returns it."""
    if values.dtype == np.uint16:
        picture = Image.fromarray(values)
        picture.info[LEVELS] = 0, 65_535
        return picture
    if netpbm.read_header(content, limits)[1][2] > 255:
        picture = Image.fromarray(values)
        picture.info[CONTENT] = content
        return picture
    return values.reshape(*values.shape[:2], -1).astype(np.uint8, copy=False)


def warn_of_orientation(name: str) -> None:
    """Warn, once a process, of a copy of a picture that is not turned upright."""
    if "orientation" not in WARNED:
        WARNED.add("orientation")
        warn_user(
            f"{name}: is a copy of a picture that its EXIF says to turn; its pixels are taken as they are, so that the "
            "mask fits the copy; for an upright one, call PIL.ImageOps.exif_transpose(picture) first",
            ImageWarning,
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


def stored_levels(picture: Image.Image) -> tuple[int, int] | None:
    """(black, white) from the file's header; None if it does not say."""
    if picture.format == "PPM":
        return 0, 65_535  # Pillow scales to these values
    tags = getattr(picture, "tag_v2", None)
    if tags is None or not picture.mode.startswith("I;16"):
        return None
    white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    return (white, 0) if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else (0, white)


def check_levels(picture: Image.Image, name: str) -> None:
    """Raise an ImageError for floating-point pixels, or 32-bit values out of the range of 16 bits."""
    if picture.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels, expected 8 or 16 bits an integer channel; convert it")
    if picture.mode == "I" and LEVELS not in picture.info:  # 32-bit files hold anything
        low, high = (int(value) for value in np.asarray(picture.getextrema()).tolist())
        if low < 0 or not 255 < high <= 65_535:
            raise ImageError(f"{name}: has 32-bit values {low}..{high}, expected 16 bits; convert it")


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit pictures to 8 bits; Pillow's own conversion clips them to white."""
    if not picture.mode.startswith("I"):
        return picture
    black, white = picture.info.get(LEVELS) or WHITE_16
    grey = (np.asarray(picture).astype(np.uint32) * 255 // max(black, white)).astype(np.uint8)
    return Image.fromarray(grey if white else 255 - grey)


def reason(error: Exception) -> str:
    """Return an error's text up to what it quotes, on one line: other people's files are never quoted."""
    text = one_line(QUOTED.split(str(error.args[0] if error.args else ""), maxsplit=1)[0]).rstrip(" (")
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
    return text[:200] if text.isprintable() and text else type(error).__name__
