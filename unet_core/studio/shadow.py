"""The shadow that the car casts on the floor."""

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.studio.arrays import Array, Bytes
from unet_core.studio.camera import Camera, rotation
from unet_core.studio.loft import Stations
from unet_core.studio.shape import Shape

_REACH, _CELLS = 4.0, 400  # the shadow map spans +-reach metres of the floor
_CELL = 2 * _REACH / _CELLS


def map_shadow(shape: Shape, stations: Stations) -> Bytes:
    """Light that reaches the floor round the car, uint8 (cells, cells), 255 is all of it; nose towards column 0."""
    body, tyres = np.zeros((2, _CELLS, _CELLS), np.float32)
    width = 0.96 * stations.half_width
    outline = np.concatenate([_cells(0.985 * stations.x, width), _cells(0.985 * stations.x, -width)[::-1]])
    cv2.fillPoly(body, [outline], 1.0)
    for axle in shape.axles:
        for side in (-1, 1):
            x, y = (axle - 0.5) * shape.length, side * (0.5 * shape.width - 0.14)
            low, high = _cells(x - 0.16, y - 0.11), _cells(x + 0.16, y + 0.11)
            cv2.rectangle(tyres, low.tolist(), high.tolist(), 1.0, -1)
    light = (1 - 0.45 * _blur(body, 0.34)) * (1 - 0.72 * _blur(body, 0.10)) * (1 - 0.75 * _blur(tyres, 0.05))
    return np.asarray(255 * light + 0.5, np.uint8)


def _cells(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Convert metres to column and row of the map, shape (..., 2)."""
    metres = np.stack(np.broadcast_arrays(np.asarray(x), np.asarray(y)), -1)
    return np.rint((metres + _REACH) / _CELL).astype(np.int32)


def _blur(mask: Array, metres: float) -> Array:
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), metres / _CELL), np.float32)


def cast_shadow(shadow: Bytes, camera: Camera, yaw: float) -> Bytes:
    """Draw the shadow map as the camera sees it: uint8 (height, width), 255 for a fully lit floor."""
    to_metres = np.asarray([[_CELL, 0, -_REACH], [0, _CELL, -_REACH], [0, 0, 1]])
    turn = np.eye(3)
    turn[:2, :2] = rotation(yaw)[:2, :2]
    # OpenCV counts from the first pixel's centre, the camera from the image's corner.
    centre = np.asarray([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    matrix = centre @ camera.floor_homography() @ turn @ to_metres
    height, width = camera.size
    return np.asarray(
        cv2.warpPerspective(shadow, matrix, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=255),
        np.uint8,
    )


def lay_shadow(picture: Bytes, shadow: Bytes) -> None:
    """Darken the picture by the shadow that the camera sees, in place, in those rows that have any."""
    rows = np.flatnonzero(shadow.min(axis=1) < 255)
    if len(rows):
        lit = slice(int(rows[0]), int(rows[-1]) + 1)
        picture[lit] = cv2.multiply(picture[lit], cv2.merge([shadow[lit]] * 3), scale=1 / 255)
