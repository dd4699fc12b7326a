"""The reflection of the car in the glossy floor."""

import cv2
import numpy as np

from unet_core.studio.arrays import Array, Bytes
from unet_core.studio.camera import Camera
from unet_core.studio.mesh import Mesh
from unet_core.studio.raster import look_up, rasterise, texture_places, window_around


def lay_reflection(picture: Bytes, camera: Camera, mesh: Mesh, points: Array, skin: Bytes) -> None:
    """Mirror the car in the floor, in place; `points` are its vertices in the world (n, 3), `skin` its texture."""
    projected = camera.project(points * np.asarray([1, 1, -1], np.float32))
    low = points[:, 2] < 1.15  # higher parts have faded away
    quads = mesh.quads[low[mesh.quads[:, 0]]]
    window = window_around(camera.size, projected, quads, 0.5)
    values = np.concatenate([texture_places(mesh.points, skin), points[:, 2:]], axis=1)
    layer = rasterise(window.samples(projected), quads[:, ::-1], values, window.shape)
    strength = 0.30 * np.exp(-np.maximum(layer.value(2), 0) / 0.42) * (layer.ids > 0)
    sharp = np.dstack([look_up(layer, skin) * strength[..., None], 255 * (1 - strength)]).astype(np.float32)
    blurred = np.rint(cv2.GaussianBlur(sharp, (0, 0), max(camera.focal / 900, 0.3))).astype(np.uint8)
    size = window.right - window.left, window.bottom - window.top
    glow = np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    area = window.area
    through = cv2.merge([glow[..., 3]] * 3)
    picture[area] = cv2.add(cv2.multiply(picture[area], through, scale=1 / 255), np.ascontiguousarray(glow[..., :3]))
