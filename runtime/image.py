"""Images in, masks back: the one place where pictures are decoded, resized to the model and resized back.

Training's validation, evaluation and the runtime all call these functions, so they cannot disagree. Pillow decodes,
since it raises an error for a truncated file. OpenCV resizes: by area to shrink, bilinearly to enlarge.
"""

import io
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, Union

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.card import InputSpec, Levels
from runtime.errors import ImageError
from runtime.image_files.decoding import Enough, decode, image_errors, out_of_memory
from runtime.image_files.decoding import current_frame as current_frame
from runtime.image_files.decoding import has_deep_values as has_deep_values
from runtime.image_files.decoding import image_size as image_size
from runtime.image_files.folders import SUFFIXES as SUFFIXES
from runtime.image_files.folders import list_images as list_images
from runtime.image_files.limits import LIMITS as LIMITS
from runtime.image_files.limits import Limits as Limits
from runtime.image_files.sources import is_picture, name_of, read_source, reason
from runtime.images.arrays import from_array, unmasked
from runtime.images.levels import from_eight_bits

if TYPE_CHECKING:
    from PIL import Image

SPARE = 2
"""A JPEG file is decoded at no less than so many times the size that the network sees. From less, resizing blurs more:
at 1.4 times, three to ten times as many pixels of masks changed.
"""

MAX_CHANNELS = 4
"""Maximum number of channels that OpenCV resizes at once with every interpolation."""

ImageSource = Union[str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes], "Image.Image", NDArray[Any]]

ChannelOrder = Literal["RGB", "BGR"]
"""Order of the channels of an array [height, width, 3 or 4]; alpha is the last one in both."""

Decode = Literal["full", "scaled"]
"""Decoding of JPEG files: all of their pixels, or 1/2, 1/4 or 1/8 of their size where the network sees much less."""


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """A JPEG file that was decoded at a part of its size: `content` and what decodes all of it.

    `shape` is (height, width) of the whole image, upright.
    """

    content: bytes
    shape: tuple[int, int]
    channels: str
    limits: Limits
    levels: Levels | None = None
    name: str = "image"

    def decode(self) -> NDArray[np.uint8]:
        """Return the whole image, as `load_image` does; errors name the file that it was read from."""
        file = io.BytesIO(self.content)
        file.name = self.name  # by which messages call it
        return load_image(file, self.channels, limits=self.limits, levels=self.levels)


def load_image(
    source: ImageSource,
    channels: str = "RGB",
    *,
    count: int | None = None,
    at_least: Enough | None = None,
    limits: Limits = LIMITS,
    order: ChannelOrder = "RGB",
    levels: Levels | None = None,
) -> NDArray[np.uint8]:
    """Decode or convert to uint8 [height, width, 3 or 1], upright as displayed (EXIF orientation applied).

    Alpha and transparent colours are dropped, not blended, so the hidden colours show. An animation or a file with
    several pages gives its first image. 16 bits become 8 by a division by 257; for colour, where Pillow does it, the
    result is within one level of this.

    Args:
        source: path; encoded bytes; binary file object, which is read from its start if it can seek, and stays open;
            PIL image; or an array [height, width], [height, width, 1], [height, width, 3] (RGB, see `order`) or
            [height, width, 4] (RGBA) of uint8, uint16 (0..65535) or floating-point numbers (0..1).
        channels: "RGB", "L" (grey), or "raw", which keeps all channels: those of arrays [height, width, count], of .npy
            and .npz files with such an array, of TIFF files, and of other pictures, whose alpha is the last one.
        count: with "raw", the number of channels that is expected; None takes any.
        at_least: (height, width) that is enough. A JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, which is
            several times faster, if neither side gets shorter than the longer of these two. A function returns what is
            enough of an image of (height, width), each side by itself.
        limits: maximum sizes of encoded images. Arrays and PIL images in memory have no limit.
        order: "BGR" for arrays of OpenCV, such as those of `cv2.imread`; other sources say themselves what they hold.
        levels: (black, white) of `InputSpec.levels`, the stored integers that become 0 and 255; None: 0 and the largest
            of their type. Pictures of 8 bits and floating-point numbers count as scaled already if white is above 255.

    Raises:
        ImageError: the image is missing, truncated, of an unsupported format, or exceeds the limits; or the array has
            another type or shape; or `order` is "BGR" and the image is no array.
    """
    return load_enough(source, channels, count=count, at_least=at_least, limits=limits, order=order, levels=levels)[0]


def load_enough(
    source: ImageSource,
    channels: str,
    *,
    count: int | None,
    at_least: Enough | None,
    limits: Limits,
    order: ChannelOrder,
    levels: Levels | None,
) -> tuple[NDArray[np.uint8], EncodedImage | None]:
    """Load as `load_image`, and return also what decodes all of an image that was decoded at a part of its size."""
    if channels == "raw":
        from runtime.images.channels import load_channels

        return load_channels(source, count, limits, levels), None
    if isinstance(source, np.ndarray):
        array = unmasked(source)
        if order == "BGR" and array.ndim == 3 and array.shape[2] in (3, 4):
            array = array[:, :, 2::-1]  # without alpha
        return from_array(array, channels, levels), None
    if order == "BGR":
        raise ImageError(
            f'{name_of(source)}: is no array, and channels="BGR" is for arrays; leave it out, the image says itself '
            "which channel is which"
        )
    (picture, whole_size, content), name = decode(source, limits, at_least), name_of(source)
    try:
        if is_picture(picture):
            from runtime.images.pictures import to_array

            picture = to_array(picture, channels, name, levels)
        else:
            if picture.shape[2] != len(channels):
                picture = from_array(picture, channels)
            picture = from_eight_bits(picture, levels, name)
    except ValueError as error:
        raise ImageError(f"{name}: has pixels that are not read ({reason(error)}); convert it to RGB") from error
    except MemoryError as error:
        raise out_of_memory(name) from error
    if whole_size is None:
        return picture, None
    return picture, EncodedImage(
        content=content, shape=whole_size, channels=channels, limits=limits, levels=levels, name=name
    )


def stored_values(source: ImageSource, limits: Limits = LIMITS, channels: str = "RGB") -> tuple[NDArray[Any], int]:
    """Return the integers that an image file stores, in any shape, and the largest that its header allows.

    `channels` as of `load_image`.

    Raises:
        ImageError: as `load_image`; or the file holds no integers of 8 or 16 bits.
    """
    name = name_of(source)
    if channels == "raw" and not is_picture(source):
        from runtime.images.channels import stored_channels

        with image_errors(name):
            content = read_source(source, name, limits)
            values = stored_channels(content, name, limits)
        if values is not None:
            if values.dtype.kind != "u" or values.itemsize > 2:
                raise ImageError(f"{name}: found {values.dtype} values, expected uint8 or uint16")
            return values, 2 ** (8 * values.itemsize) - 1
        source = content
    picture = decode(source, limits).picture
    if not is_picture(picture):
        return picture, 255
    from runtime.images.pictures import stored_values as of_picture

    return of_picture(picture, name)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An image that is fitted to the graph, and the way back.

    `image` is uint8 [height, width, channels]. Its part (`top`, `left`, `height`, `width`) shows the whole original
    image, whose size was `original`, (height, width).
    """

    image: NDArray[np.uint8]
    top: int
    left: int
    height: int
    width: int
    original: tuple[int, int]


def enough(spec: InputSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) at which a JPEG of `size`, (height, width), is decoded for images fitted to `spec`."""
    if spec.fit == "native":
        return int(SPARE * spec.scale * size[0]), int(SPARE * spec.scale * size[1])
    if spec.fit == "stretch":
        return SPARE * spec.size[0], SPARE * spec.size[1]
    scale = SPARE * min(spec.size[0] / size[0], spec.size[1] / size[1])
    return int(scale * size[0]), int(scale * size[1])


def fit(image: NDArray[np.uint8], spec: InputSpec, original: tuple[int, int] | None = None) -> Fitted:
    """Bring uint8 [height, width, channels] to the model's training size, in the way that the card names.

    `original` is (height, width) of an image that was decoded at a part of its size.
    """
    original = original or (image.shape[0], image.shape[1])
    if spec.fit == "native":
        size = max(1, int(spec.scale * original[0])), max(1, int(spec.scale * original[1]))
        return place(resize(image, size), original, spec)
    if spec.fit == "stretch":
        return place(resize(image, spec.size), original, spec)
    # The network sees bars of the mean colour as zeros, like its own padding.
    canvas = np.empty((*spec.size, image.shape[2]), np.uint8)
    canvas[:] = np.clip(np.round(np.multiply(spec.mean, 255)), 0, 255).astype(np.uint8)
    fitted = place(canvas, original, spec)
    inside = np.s_[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width]
    canvas[inside] = resize(image, (fitted.height, fitted.width))
    return fitted


def place(canvas: NDArray[np.uint8], original: tuple[int, int], spec: InputSpec) -> Fitted:
    """Find the part of a fitted picture that shows an image of size `original`, (height, width)."""
    height, width = canvas.shape[:2]
    if spec.fit != "letterbox":
        return Fitted(image=canvas, top=0, left=0, height=height, width=width, original=original)
    scale = min(height / original[0], width / original[1])
    inner = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return Fitted(image=canvas, top=top, left=left, height=inner[0], width=inner[1], original=original)


def restore(probability: NDArray[np.float32], fitted: Fitted) -> NDArray[np.float32]:
    """Bring float32 [classes, fitted height, fitted width] back to the original size, [classes, height, width].

    Probabilities are resized first and thresholded later; a resized mask would have steps and holes. Probabilities that
    already have the original size are returned without a copy.
    """
    if probability.shape[1:] == fitted.original == (fitted.height, fitted.width):
        return probability
    rows, columns = np.s_[fitted.top : fitted.top + fitted.height], np.s_[fitted.left : fitted.left + fitted.width]
    planes = np.empty((len(probability), *fitted.original), np.float32)
    for plane, found in zip(
        planes, probability[:, rows, columns], strict=True
    ):  # all at once takes 5 to 8 times as long
        resize_plane(found, plane)
    return planes


def resize_plane(found: NDArray[np.float32], plane: NDArray[np.float32]) -> None:
    """Resize float32 [height, width] into all of `plane`, [height, width], as `resize` does."""
    size, source = plane.shape, found.shape
    smaller = (min(source[0], size[0]), min(source[1], size[1]))
    if smaller not in (source, size):
        found = np.asarray(cv2.resize(found, smaller[::-1], interpolation=cv2.INTER_AREA), np.float32)
    if found.shape == size:
        plane[:] = found
    else:
        cv2.resize(found, size[::-1], plane, interpolation=cv2.INTER_AREA if smaller == size else cv2.INTER_LINEAR)


def resize(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize [height, width, channels] to `size`, (height, width): by area along sides that shrink, else bilinearly."""
    height, width = array.shape[:2]
    smaller = (min(height, size[0]), min(width, size[1]))
    for target, interpolation in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if array.shape[:2] == target:
            continue
        parts = [array[:, :, start : start + MAX_CHANNELS] for start in range(0, array.shape[2], MAX_CHANNELS)]
        resized = [cv2.resize(part, target[::-1], interpolation=interpolation) for part in parts]
        # OpenCV drops a last axis of 1.
        array = np.dstack(resized) if len(resized) > 1 else resized[0].reshape(*target, array.shape[2])
    return array
