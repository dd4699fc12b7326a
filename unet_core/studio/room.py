"""The empty studio: turntable, floor and wall."""

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.studio.arrays import Array, Bytes, smooth
from unet_core.studio.camera import Camera, vignette

_TURNTABLE, _WALL = 2.85, 5.2  # radius of the disc, distance of the wall behind the axis


def draw_studio(camera: Camera, tint: Array) -> Bytes:
    """The empty studio, 8-bit RGB of the camera's size; `tint` colours the floor and the wall, float32 (2, 3)."""
    coarse = 2 if min(camera.size) >= 512 else 1  # nothing in the studio is as fine as two pixels of a large image
    height, width = (-(-length // coarse) for length in camera.size)
    focal = camera.focal / coarse
    columns = (np.arange(width, dtype=np.float32) + 0.5 - 0.5 * width) / focal
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - 0.5 * height) / focal
    cosine, sine = camera.tilt
    along, rise = cosine - rows * sine, -rows * cosine - sine
    reach = camera.height / np.maximum(-rise, 1e-4)  # ray length to the floor
    floor = _floor_tone(np.hypot(columns * reach, along * reach - camera.distance))
    wall_reach = (_WALL + camera.distance) / along
    above, aside = camera.height + rise * wall_reach, columns * wall_reach
    cove = smooth(-0.12, 0.22, above)
    tone = floor + (_wall_tone(aside, above) - floor) * cove
    tone *= vignette(columns, rows)
    colour = tone[..., None] * (tint[0] + (tint[1] - tint[0]) * cove[..., None])
    image = np.asarray(np.clip(255 * colour + 0.5, 0, 255), np.uint8)
    return np.asarray(cv2.resize(image, camera.size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def _floor_tone(radius: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Tone of the floor and the disc on it, `radius` metres away from the axis; shaped like it, pixel by pixel."""
    step = np.maximum(np.abs(np.gradient(radius, axis=0)) + np.abs(np.gradient(radius, axis=1)), 0.004)
    floor = 0.82 - 0.032 * np.minimum(radius, 6) + 0.05 * np.exp(-(radius**2) / 5)
    floor += 0.035 * np.clip((_TURNTABLE - radius) / step + 0.5, 0, 1)
    for ring, half, tone in ((_TURNTABLE, 0.016, -0.34), (_TURNTABLE + 0.035, 0.018, 0.1), (2.3, 0.004, -0.1)):
        floor += tone * np.clip((half - np.abs(radius - ring)) / step + 0.5, 0, 1) * np.minimum(1, 2 * half / step)
    return floor


def _wall_tone(aside: npt.NDArray[np.float64], above: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Tone of the wall, at metres beside the middle and above the floor; it gets darker near the floor."""
    wall = 0.88 - 0.05 * np.abs(above - 1.2) - 0.005 * aside**2 + 0.05 * np.exp(-((above - 1.4) ** 2) / 1.5)
    return np.asarray(wall - 0.13 * np.exp(-np.maximum(above, 0) / 0.10))
