"""Images in, masks back: the one place where pictures are decoded, resized to the model and resized back.

Training's validation, evaluation and the runtime all call these functions, so they cannot disagree. Decoding is
Pillow's (it raises where a file is cut off), resampling is OpenCV's: area when shrinking, bilinear when growing.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (  # the plug-ins register themselves; Pillow's own lazy registration is not safe in threads
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from runtime.card import InputSpec
from runtime.errors import ImageError, one_line
from runtime.images.arrays import from_array
from runtime.images.pillow_guard import Limits as Limits
from runtime.images.pillow_guard import TooManyPixelsError, strict

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Pillow's decoders that are used (JPEG's takes MPO too); the others are too little tested for strangers' files."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""What is taken for an image when a folder is listed."""

ORIENTATION, TURNED = 0x0112, frozenset({5, 6, 7, 8})
"""The EXIF tag of the camera's orientation, and its values that exchange height and width."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each orientation upright."""

LEVELS = "unet.levels"
"""Where a decoded picture of more than 8 bits keeps (black, white), the values that stand for them in its file."""

LIMITS = Limits()
PIECE = 2**20
"""Bytes of a stream that are read at once."""

MAX_CHANNELS = 4
"""Channels that OpenCV resizes at once, whatever the interpolation."""

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]


def load_image(
    source: ImageSource, channels: str = "RGB", *, at_least: tuple[int, int] | None = None, limits: Limits = LIMITS
) -> NDArray[np.uint8]:
    """Decode or convert to uint8 [height, width, 3 or 1], upright as displayed (EXIF orientation applied).

    Alpha and transparent colours are dropped, not blended: what they hide is seen. Of an animation or of several pages
    the first is read. 16 bits become 8 by dividing by 257, within one level where Pillow itself does it (colour).

    Args:
        source: path; encoded bytes; binary file object, which is read from its start if it can be rewound, and left
            open; PIL image; or an array [height, width], [height, width, 1], [height, width, 3] (RGB) or
            [height, width, 4] (RGBA) of uint8, uint16 (0..65535) or floating-point numbers (0..1).
        channels: "RGB" or "L" (grey).
        at_least: (height, width) that are enough: a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, several
            times faster, as long as neither side gets smaller than the larger of the two.
        limits: of what is not decoded yet; arrays and PIL images in memory may be of any size.

    Raises:
        ImageError: missing, truncated, of a format that is not read, above the limits, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        return from_array(np.asarray(source), channels)
    picture, name = open_image(source, at_least, limits), name_of(source)
    try:
        picture = _eight_bits(picture, name)
        if picture.mode == "LAB":  # which Pillow turns to RGB alone
            picture = picture.convert("RGB")
        array = np.array(picture if picture.mode == channels else picture.convert(channels))
    except ValueError as error:
        raise ImageError(f"{name}: has pixels that are not read ({error}); convert it to RGB") from error
    return array[:, :, None] if array.ndim == 2 else array


def load_labels(source: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode a mask file to the values it stores, uint8 [height, width].

    A palette file (GIF, PNG) with nothing but greys in its palette gives the greys, whatever their indices: writers
    order a palette as they like. Any other palette file gives its indices.

    Raises:
        ImageError: as `load_image`, or the mask has colours instead of labels.
    """
    picture = open_image(source)
    if picture.mode == "P":
        return _labels_of_palette(picture)
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    array = np.asarray(picture)
    if picture.mode in ("RGB", "RGBA") and (array[:, :, :3] == array[:, :, :1]).all():
        array = array[:, :, 0]
    if array.ndim != 2 or array.dtype != np.uint8:
        raise ImageError(
            f"{name_of(source)}: is a {picture.mode} picture, expected a mask of one 8-bit channel (or a palette)"
        )
    return np.array(array)


def _labels_of_palette(picture: Image.Image) -> NDArray[np.uint8]:
    indices = np.array(picture)
    colours = np.zeros((256, 3), np.uint8)
    palette = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(palette)] = palette
    is_grey = bool((colours == colours[:, :1]).all())
    return colours[:, 0][indices] if is_grey else indices


def open_image(source: Any, at_least: tuple[int, int] | None = None, limits: Limits = LIMITS) -> Image.Image:
    """Decode a path, bytes, file object or PIL image completely (first frame), with EXIF orientation applied.

    `at_least`, `limits`: see `load_image`.

    Raises:
        ImageError: it cannot be decoded, or is above the limits.
    """
    name = name_of(source)
    with _strict(name, limits):
        if isinstance(source, Image.Image):
            return _decoded(source, name, limits)
        with _file_of(source, name, limits) as file, Image.open(file, formats=FORMATS) as picture:
            if at_least is not None:
                picture.draft(None, (max(at_least),) * 2)  # both the larger: the picture may yet be turned
            return _decoded(picture, name)


def image_size(path: str | os.PathLike[str], limits: Limits = LIMITS, *, upright: bool = True) -> tuple[int, int]:
    """(height, width) of an image file as displayed; if it need not be `upright`, from its header alone.

    Raises:
        ImageError: it cannot be read, or is above the limits.
    """
    name = name_of(path)
    with _strict(name, limits), _file_of(path, name, limits) as file, Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        # Pillow turns the sides of a TIFF itself; a PNG it decodes, whose EXIF may come last.
        turned = upright and picture.format != "TIFF" and _orientation(picture) in TURNED
    return (width, height) if turned else (height, width)


@contextmanager
def _strict(name: str, limits: Limits) -> Iterator[None]:
    """Run the block with Pillow kept strict, and whatever it raises turned into an `ImageError`."""
    try:
        with strict(limits):
            yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected an image") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not an image of a known format ({', '.join(FORMATS)})") from error
    except TooManyPixelsError as error:
        raise ImageError(
            f"{name}: has {error} pixels, expected at most {limits.pixels} in all; "
            "make it smaller, or allow more with Limits(pixels=...)"
        ) from error
    except Exception as error:  # decoders raise many types on damaged files: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"{name}: cannot be read as an image ({_brief(error)})") from error


@contextmanager
def _file_of(source: Any, name: str, limits: Limits) -> Iterator[IO[bytes]]:
    """What Pillow can read: a file on the disk as it is, anything else from memory."""
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(memoryview(source).nbytes, name, limits)
        yield io.BytesIO(bytes(source))
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                _check_bytes(status.st_size, name, limits)
                yield file
            else:
                yield io.BytesIO(_read(file, name, limits))
    elif hasattr(source, "read"):
        yield io.BytesIO(_read(source, name, limits))
    else:
        raise ImageError(
            f"{type(source).__name__}: cannot be read as an image; expected a path, bytes, a binary file object, "
            "a PIL image or an array"
        )


def _read(file: Any, name: str, limits: Limits) -> bytes:
    """All of a stream, from its start if there is a way back."""
    with suppress(AttributeError, OSError):  # pipes and sockets have no way back
        file.seek(0)
    content = bytearray()
    while piece := file.read(PIECE):
        if isinstance(piece, str):
            raise ImageError(f"{name}: is a text file, expected a binary one; open it with mode 'rb'")
        content += piece
        if len(content) > limits.file_bytes:
            break
    _check_bytes(len(content), name, limits)
    return bytes(content)


def _check_bytes(count: int, name: str, limits: Limits) -> None:
    if not count:
        raise ImageError(f"{name}: is empty (0 bytes), expected an image")
    if count > limits.file_bytes:
        raise ImageError(
            f"{name}: has more bytes than the {limits.file_bytes} that are read; "
            "make it smaller, or allow more with Limits(file_bytes=...)"
        )


def _decoded(picture: Image.Image, name: str, limits: Limits | None = None) -> Image.Image:
    """Decode and turn upright; with `limits` the picture is the caller's own, which is not changed."""
    if limits is not None and getattr(picture, "tile", None) and picture.width * picture.height > limits.pixels:
        raise TooManyPixelsError(f"{picture.width} x {picture.height}")  # its owner has not decoded it yet
    levels = _levels(picture)
    try:
        picture.load()
        turn = UPRIGHT.get(_orientation(picture))
        upright = picture if turn is None else picture.transpose(turn)
    except (MemoryError, TooManyPixelsError):
        raise
    except Exception as error:
        raise ImageError(f"{name}: is damaged or cut off ({_brief(error)}); replace it") from error
    if upright is picture and limits is not None:
        upright = picture.copy()
    upright.info.pop("transparency", None)  # no caller keeps alpha, and Pillow warns when a palette's is dropped
    if levels is not None:
        upright.info[LEVELS] = levels
    return upright


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where there is none, or its EXIF is damaged, as every viewer does."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # of many types
        return 1


def _levels(picture: Image.Image) -> tuple[int, int] | None:
    """(black, white) as the file's header says; None where it does not."""
    if picture.format == "PPM":
        return 0, 65_535  # Pillow scales them itself
    tags = getattr(picture, "tag_v2", None)
    if tags is None or not picture.mode.startswith("I;16"):
        return None
    white = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    return (white, 0) if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else (0, white)


def name_of(source: object) -> str:
    """What to call an image in a message: its path where it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return str(getattr(source, "name", None) or "image")


def _brief(error: Exception) -> str:
    return one_line(str(error))[:200] or type(error).__name__


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit images to 8 bits; Pillow's own conversion clamps them to white."""
    if picture.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels, expected 8 or 16 bits an integer channel; convert it")
    if not picture.mode.startswith("I"):
        return picture
    values, levels = np.asarray(picture), picture.info.get(LEVELS)
    is_guess = picture.mode == "I" and levels is None  # 32-bit files hold anything
    if is_guess and (values.min() < 0 or not 255 < values.max() <= 65_535):
        raise ImageError(f"{name}: has 32-bit values {values.min()}..{values.max()}, expected 16 bits; convert it")
    black, white = levels or (0, 65_535)
    grey = (values.astype(np.uint32) * 255 // max(black, white)).astype(np.uint8)
    return Image.fromarray(grey if white else 255 - grey)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An image as the graph takes it, and how to come back.

    `image` is uint8 [height, width, channels]; its part (`top`, `left`, `height`, `width`) shows the whole original,
    which had `original` (height, width).
    """

    image: NDArray[np.uint8]
    top: int
    left: int
    height: int
    width: int
    original: tuple[int, int]


def fit(image: NDArray[np.uint8], spec: InputSpec) -> Fitted:
    """Bring uint8 [height, width, channels] to the size that the model was trained at, as the card says."""
    original = (image.shape[0], image.shape[1])
    if spec.fit == "native":
        return place(image, original, spec)
    if spec.fit == "stretch":
        return place(resize(image, spec.size), original, spec)
    # Bars of the mean colour are zeros to the network, like its own padding.
    canvas = np.empty((*spec.size, image.shape[2]), np.uint8)
    canvas[:] = np.clip(np.round(np.multiply(spec.mean, 255)), 0, 255).astype(np.uint8)
    fitted = place(canvas, original, spec)
    inside = np.s_[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width]
    canvas[inside] = resize(image, (fitted.height, fitted.width))
    return fitted


def place(canvas: NDArray[np.uint8], original: tuple[int, int], spec: InputSpec) -> Fitted:
    """Where on a fitted picture an image of the `original` (height, width) lies."""
    height, width = canvas.shape[:2]
    if spec.fit != "letterbox":
        return Fitted(image=canvas, top=0, left=0, height=height, width=width, original=original)
    scale = min(height / original[0], width / original[1])
    inner = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return Fitted(image=canvas, top=top, left=left, height=inner[0], width=inner[1], original=original)


def restore(probability: NDArray[np.float32], fitted: Fitted) -> NDArray[np.float32]:
    """Bring float32 [classes, fitted height, fitted width] back to the original: [classes, height, width].

    Probabilities are resized and thresholded afterwards; a resized mask would have steps and holes. What has the
    original's size is given back as it is, without a copy.
    """
    if probability.shape[1:] == fitted.original == (fitted.height, fitted.width):
        return probability
    part = probability[
        :, fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width
    ]  # [classes, h, w]
    planes = resize(np.ascontiguousarray(part.transpose(1, 2, 0)), fitted.original)  # [height, width, classes]
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


def resize(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resample [height, width, channels] to (height, width): area along sides that shrink, bilinear along others."""
    height, width = array.shape[:2]
    smaller = (min(height, size[0]), min(width, size[1]))
    if smaller != (height, width):
        array = _resample(array, smaller, cv2.INTER_AREA)
    if smaller != size:
        array = _resample(array, size, cv2.INTER_LINEAR)
    return array


def _resample(array: NDArray[Any], size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    parts = [array[:, :, start : start + MAX_CHANNELS] for start in range(0, array.shape[2], MAX_CHANNELS)]
    results = [cv2.resize(part, (size[1], size[0]), interpolation=interpolation) for part in parts]
    if len(results) > 1:
        return np.dstack(results)
    return results[0].reshape(*size, array.shape[2])  # OpenCV drops a last axis of 1


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files directly in a folder, by suffix, sorted; hidden files are left out.

    A link to nothing is among them, so that reading it says so: behind links a whole disk may be missing.

    Raises:
        ImageError: there is no such folder, or it cannot be read.
    """
    try:
        paths = list(Path(folder).iterdir())
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed ({(error.strerror or str(error)).lower()})") from error
    return sorted(path for path in paths if _is_image(path))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())
