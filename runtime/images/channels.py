"""Files with all of their channels, for networks that take any number of them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import Levels
from runtime.errors import ImageError
from runtime.image_files import numpy_files, starts
from runtime.image_files.decoding import decode, image_errors
from runtime.image_files.limits import Limits
from runtime.image_files.pages import warn_of_pages
from runtime.image_files.sources import is_picture, name_of, read_source
from runtime.images.arrays import from_raw_array, unmasked
from runtime.images.levels import from_eight_bits


def load_channels(source: Any, count: int | None, limits: Limits, levels: Levels | None) -> NDArray[np.uint8]:
    """Load every channel of an image as `load_image` does with channels "raw", uint8 [height, width, count].

    Raises:
        ImageError: as `load_image`; or the image has another number of channels.
    """
    if isinstance(source, np.ndarray):
        return from_raw_array(unmasked(source), count, levels)
    name = name_of(source)
    if not is_picture(source):
        with image_errors(name):
            content = read_source(source, name, limits)
            stored = stored_channels(content, name, limits)
        if stored is not None:
            if stored.ndim == 3 and not is_transposed(stored, count):
                require_count(stored.shape[2], count, name)
            return from_raw_array(stored, count, levels, name)
        source = io.BytesIO(content)
        source.name = name  # by which messages call it
    picture = decode(source, limits).picture
    if is_picture(picture):
        from runtime.images.pictures import all_channels

        image = all_channels(picture, name, levels)
    else:
        image = from_eight_bits(picture, levels, name)
    require_count(image.shape[2], count, name)
    return np.array(image, order="C")


def stored_channels(content: bytes, name: str, limits: Limits) -> NDArray[Any] | None:
    """Return the values of a file of NumPy's, or of a TIFF, [height, width, channels]; None for other pictures.

    They are of any type. Raises what `image_errors` makes an `ImageError` of.
    """
    if numpy_files.is_numpy_file(content):
        return numpy_files.read_array(content, limits)
    if content.startswith(starts.TIFF):
        from runtime.image_files import tiff_bands
        from runtime.image_files.pillow_guard import strict

        with strict(limits):
            if not tiff_bands.kind_of(content).has_bands:
                return None
            values = tiff_bands.decode_bands(content, limits)
        warn_of_pages(content, name, limits)
        return values
    return None


def is_transposed(values: NDArray[Any], count: int | None) -> bool:
    """Return True for an array whose channels seem to come first."""
    return bool(values.shape[2] != count and values.shape[0] == count)


def require_count(found: int, count: int | None, name: str) -> None:
    """Raise an ImageError unless an image has as many channels as are expected."""
    if count not in (None, found):
        raise ImageError(
            f"{name}: has {found} channel{'s' * (found != 1)}, expected {count}; use images of {count} "
            f"channel{'s' * (count != 1)}, or a model that is trained with --channels {found}"
        )
