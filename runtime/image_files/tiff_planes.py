"""Uncompressed TIFF with a plane for each channel, as GDAL and rasterio write it. Pillow takes 16 bits for 8."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.tiff_kinds import CMYK, COLOURS, GREY_WHITE_0, PREMULTIPLIED, TiffKind

ORIENTATION = 274

BYTES_PER_PIXEL = 16
"""Bytes that a pixel takes beside the file: the levels, Pillow's image, and what dividing by alpha takes."""


def decode_planes(content: bytes, kind: TiffKind, tags: Any, offsets: Any, piece: tuple[int, int]) -> Image.Image:
    """Decode planes of uint8 or uint16 to 8 bits a channel; 16 bits are divided by 257, channels beyond are dropped.

    Args:
        content: the file.
        kind: a kind with `is_raw_planes`.
        tags: the directory, for the size of the picture and its orientation.
        offsets: where the strips or tiles start in the file, plane after plane.
        piece: (width, height) of a strip or tile.

    Raises:
        DamageError: a strip or tile is cut off.
    """
    (width, height), (across, down) = (int(tags[256]), int(tags[257])), piece
    count, has_alpha = COLOURS[kind.photometric], kind.extras[:1] == (PREMULTIPLIED,)
    corners = [(top, left) for top in range(0, height, down) for left in range(0, width, across)]
    pixels = np.empty((height, width, count), np.uint8)
    for index, (top, left) in enumerate(corners):
        inside = np.s_[: min(down, height - top), : min(across, width - left)]
        starts = [int(offsets[plane * len(corners) + index]) for plane in range(count + has_alpha)]
        bands = [plane_part(content, kind, start, (min(down, height - top), across))[inside] for start in starts]
        for band in range(count):
            levels = to_levels(bands[band], bands[count] if has_alpha else None)
            pixels[top : top + down, left : left + across, band] = levels
    if kind.photometric == GREY_WHITE_0:
        np.subtract(255, pixels, out=pixels)
    if kind.photometric == CMYK:
        picture = Image.frombuffer("CMYK", (width, height), pixels, "raw", "CMYK", 0, 1)
    else:
        picture = Image.fromarray(pixels[:, :, 0] if count == 1 else pixels)
    exif = Image.Exif()
    exif[ORIENTATION] = tags.get(ORIENTATION, 1)
    picture.info["exif"] = exif.tobytes()
    return picture


def stored_colours(content: bytes, kind: TiffKind, tags: Any, offsets: Any, piece: tuple[int, int]) -> NDArray[Any]:
    """Return the stored values of the colours, [height, width, colours]; arguments and errors as of `decode_planes`."""
    (width, height), (across, down) = (int(tags[256]), int(tags[257])), piece
    corners = [(top, left) for top in range(0, height, down) for left in range(0, width, across)]
    values = np.empty((height, width, COLOURS[kind.photometric]), f"u{kind.depth // 8}")
    for band in range(values.shape[2]):
        for index, (top, left) in enumerate(corners, band * len(corners)):
            part = plane_part(content, kind, int(offsets[index]), (min(down, height - top), across))
            values[top : top + down, left : left + across, band] = part[:, : width - left]
    return values


def plane_part(content: bytes, kind: TiffKind, start: int, shape: tuple[int, int]) -> NDArray[Any]:
    """Return a strip or tile of one plane, [rows, columns], without a copy."""
    dtype, count = np.dtype(f"{kind.order}u{kind.depth // 8}"), shape[0] * shape[1]
    if start + count * dtype.itemsize > len(content):
        raise DamageError("its strips or tiles are cut off")
    return np.frombuffer(content, dtype, count, start).reshape(shape)


def to_levels(values: NDArray[Any], alpha: NDArray[Any] | None) -> NDArray[np.uint8]:
    """Convert to uint8, and divide by the alpha that colours were multiplied by, as Pillow does."""
    levels = (values if values.itemsize == 1 else values // 257).astype(np.uint8)
    if alpha is None:
        return levels
    divided = np.minimum(values.astype(np.uint32) * 255 // np.maximum(alpha, 1), 255).astype(np.uint8)
    return np.where(alpha == 0, levels, divided)
