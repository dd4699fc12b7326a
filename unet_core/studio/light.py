"""The light that falls on the car, and the colours that result."""

import cv2
import numpy as np

from unet_core.studio.arrays import Array, Bytes, row_blocks, smooth, unit
from unet_core.studio.camera import Camera


def light_vertices(points: Array, normals: Array, camera: Camera) -> Array:
    """Light on points with unit normals, both (n, 3): diffuse, mirrored, mirrored at grazing angles; linear, (n, 3)."""
    view = unit(camera.position - points)
    cosine = np.sum(normals * view, axis=-1, keepdims=True)
    mirrored = _environment(unit(2 * cosine * normals - view))
    fresnel = 0.045 + 0.955 * (1 - np.clip(np.abs(cosine[..., 0]), 0, 1)) ** 5
    key = np.maximum(normals @ unit(np.asarray([-0.45, -0.6, 0.85], np.float32)), 0)
    up = normals[..., 2]
    diffuse = 0.34 + 0.26 * up + 0.5 * key + 0.1 * smooth(0.0, -0.9, up)
    diffuse = diffuse * (0.55 + 0.45 * smooth(0.05, 0.55, points[..., 2]))  # the floor hides light from low parts
    return np.asarray(np.stack([diffuse, mirrored, mirrored * fresnel], -1), np.float32)


def _environment(direction: Array) -> Array:
    """The studio as the paint mirrors it, linear: floor, walls with a strip light, soft boxes on the ceiling."""
    x, y, up = np.moveaxis(direction, -1, 0)
    wall = 0.22 + 0.4 * smooth(0.0, 0.7, up) + 0.12 * smooth(-0.2, 0.9, y)
    wall = wall + 1.3 * np.exp(-(((up - 0.36) / 0.12) ** 2)) * smooth(0.95, 0.7, np.abs(x))
    height = np.maximum(up, 0.05)
    for place in (-1.0, 0.35):
        box = smooth(1.8, 1.0, np.abs(x / height)) * smooth(0.44, 0.16, np.abs(y / height - place))
        wall = wall + 1.9 * box * smooth(0.2, 0.35, up)
    floor = 0.5 - 0.42 * smooth(0.05, 0.7, -up)
    return np.asarray(floor + (wall - floor) * smooth(-0.05, 0.05, up), np.float32)


def shade_texels(texture: Array, light: Array) -> Bytes:
    """Colour of every texel: 8-bit RGB, gamma 2; the vertices' light (rows, columns, 3) is spread over the texels."""
    fine = cv2.resize(light, (texture.shape[1], texture.shape[0]), interpolation=cv2.INTER_CUBIC)
    skin = np.empty((*texture.shape[:2], 3), np.uint8)
    for block in row_blocks(len(texture)):
        diffuse, mirrored, grazing = np.moveaxis(fine[block], -1, 0)
        gloss = texture[block, :, 3]
        shine = gloss * (grazing + 0.9 * gloss * gloss * mirrored)
        linear = texture[block, :, :3] * diffuse[..., None] + shine[..., None]
        cv2.convertScaleAbs(cv2.sqrt(np.maximum(linear, 0)), skin[block], alpha=255)
    return skin
