"""Rasterisation: the quad that each sample sees, the values that run over it, and the mask that results."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.studio.arrays import Array, Bytes, row_blocks

SUPERSAMPLING = 2
"""Number of samples along each side of a pixel of the car."""

_SUBPIXEL_BITS = 4  # fixed-point bits of the coordinates that cv2.fillConvexPoly takes


@dataclass(frozen=True, kw_only=True)
class Window:
    """Part of the image, in pixels, drawn at `scale` samples per pixel."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns of samples."""
        return round((self.bottom - self.top) * self.scale), round((self.right - self.left) * self.scale)

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def samples(self, projected: Array) -> Array:
        """Convert image coordinates to samples of this window; as in OpenCV, 0 is the first sample's centre."""
        moved = projected.copy()
        moved[:, 0] = (projected[:, 0] - self.left) * self.scale - 0.5
        moved[:, 1] = (projected[:, 1] - self.top) * self.scale - 0.5
        return moved


def window_around(size: tuple[int, int], projected: Array, used: npt.NDArray[np.int32], scale: float) -> Window:
    """The part of an image of `size` that shows the points (n, 3) whose indices are `used`, and a little more."""
    height, width = size
    kept = np.zeros(len(projected), np.bool_)
    kept[used] = True
    corners = projected[kept, :2]
    left, top = np.clip(np.floor(corners.min(axis=0)) - 2, 0, [width - 2, height - 2]).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 2, [left + 2, top + 2], [width, height]).astype(int)
    return Window(left=int(left), top=int(top), right=int(right), bottom=int(bottom), scale=scale)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The quad that each sample sees (0: none), and the planes of values over a quad: value = fit @ (x, y, 1).

    ids: int32 (height, width). fits: float32 (values, 3, quads + 1).
    """

    ids: npt.NDArray[np.int32]
    fits: Array

    def value(self, index: int) -> Array:
        """One value for every sample: float32 (height, width)."""
        slope_x, slope_y, offset = self.fits[index]
        columns = np.arange(self.ids.shape[1], dtype=np.float32)
        result = np.empty(self.ids.shape, np.float32)
        for block in row_blocks(len(result)):
            ids, out = self.ids[block], result[block]
            rows = np.arange(block.start, block.start + len(ids), dtype=np.float32)[:, None]
            np.take(slope_x, ids, out=out, mode="clip")
            out *= columns
            out += np.take(slope_y, ids, mode="clip") * rows
            out += np.take(offset, ids, mode="clip")
        return result


def rasterise(samples: Array, quads: npt.NDArray[np.int32], values: Array, shape: tuple[int, int]) -> Layer:
    """Draw the quads that face the camera, far ones first.

    samples: (points, 3) of x, y in samples and 1 / depth. values: (points, n), interpolated over every quad.
    """
    corners = samples[quads]
    one, two = corners[:, 2, :2] - corners[:, 0, :2], corners[:, 3, :2] - corners[:, 1, :2]
    seen = np.flatnonzero(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] > 0)
    seen = seen[np.argsort(corners[seen, :, 2].sum(axis=1), kind="stable")]
    ids = np.zeros(shape, np.int32)
    fixed = np.rint(corners[seen, :, :2] * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    for number, polygon in enumerate(fixed, 1):
        cv2.fillConvexPoly(ids, polygon, number, cv2.LINE_8, _SUBPIXEL_BITS)
    return Layer(ids=ids, fits=_fit(corners[seen, :, :2], values[quads[seen]]))


def merge(back: Layer, front: Layer, inverse_depth: int) -> Layer:
    """Merge two layers by a depth test of each sample; value number `inverse_depth` is 1 / depth, 0 without a quad."""
    places = np.flatnonzero(front.ids)
    rows, columns = (part.astype(np.float32) for part in np.divmod(places, front.ids.shape[1]))

    def near(layer: Layer) -> Array:
        ids = layer.ids.take(places)
        slope_x, slope_y, offset = (fit.take(ids) for fit in layer.fits[inverse_depth])
        return np.asarray(slope_x * columns + slope_y * rows + offset, np.float32)

    wins = places[near(front) > near(back)]
    ids = back.ids.copy()
    ids.flat[wins] = front.ids.flat[wins] + back.fits.shape[2]
    return Layer(ids=ids, fits=np.concatenate([back.fits, front.fits], axis=2))


def texture_places(points: Array, skin: Bytes) -> Array:
    """Position of every vertex of the atlas in its texture: (vertices, 2) as x, y of OpenCV's pixel centres."""
    rows, columns = points.shape[:2]
    texels = skin.shape[0] // rows
    place = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return np.asarray((place + 0.5) * texels - 0.5, np.float32)


def look_up(layer: Layer, skin: Bytes) -> Bytes:
    """The colour of every sample: uint8 (height, width, 3); black without a quad.

    Such samples take the texture's first texel, which lies in the atlas' margin and is black.
    """
    x, y = layer.value(0), layer.value(1)
    return np.asarray(cv2.remap(skin, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def coverage(layer: Layer, window: Window) -> tuple[Bytes, Bytes]:
    """Measure how much of each pixel of a window the quads cover.

    Returns:
        The share of each pixel, uint8 (height, width), 255 is all of it; and the mask: 255 where at least half of the
        pixel is covered, else 0.
    """
    rows, columns = window.bottom - window.top, window.right - window.left
    covered = cv2.resize((layer.ids > 0).astype(np.uint8) * 255, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(covered, np.uint8), np.where(covered >= 127, 255, 0).astype(np.uint8)


def _fit(corners: Array, values: Array) -> Array:
    """Least-squares planes through each quad's corner values: (quads, 4, 2), (quads, 4, n) -> (n, 3, quads + 1).

    The small ridge keeps the slopes of quads that are seen edge-on, or smaller than a pixel, from running away.
    """
    middle, mean = corners.mean(axis=1), values.mean(axis=1)
    x, y = np.moveaxis(corners - middle[:, None], -1, 0)
    sxx, syy, sxy = (x * x).sum(1) + 0.1, (y * y).sum(1) + 0.1, (x * y).sum(1)
    deviation = values - mean[:, None]
    sxv, syv = (x[..., None] * deviation).sum(1), (y[..., None] * deviation).sum(1)
    determinant = (sxx * syy - sxy * sxy)[:, None]
    slope_x = (syy[:, None] * sxv - sxy[:, None] * syv) / determinant
    slope_y = (sxx[:, None] * syv - sxy[:, None] * sxv) / determinant
    offset = mean - slope_x * middle[:, :1] - slope_y * middle[:, 1:]
    fits = np.stack([slope_x, slope_y, offset]).transpose(2, 0, 1)
    return np.ascontiguousarray(np.pad(fits, ((0, 0), (0, 0), (1, 0))), np.float32)
