"""Wheel arches: their position, and the recesses in the body for the wheels."""

import numpy as np

from unet_core.studio.arrays import Array
from unet_core.studio.shape import Shape

_SNAP = 0.024  # metres: a little more than half a cell of the body grid


def _arch_radius(shape: Shape) -> float:
    return 1.13 * shape.wheel_radius


def arch_distance(shape: Shape, x: Array, z: Array) -> Array:
    """Depth of (x, z) inside the nearer wheel arch, in metres, negative outside; shaped like x and z."""
    rim = _arch_radius(shape)
    distances = [rim - np.hypot(x - (axle - 0.5) * shape.length, z - shape.wheel_radius) for axle in shape.axles]
    return np.asarray(np.maximum(*distances), np.float32)


def snap_to_arches(shape: Shape, points: Array) -> Array:
    """Move the points (..., 3) next to a wheel arch onto its edge, so that the grid can be cut along it."""
    points = points.copy()
    x, y, z = np.moveaxis(points, -1, 0)
    distance = arch_distance(shape, x, z)
    near = (np.abs(distance) < _SNAP) & (np.abs(y) > 0.3 * shape.width)
    left = np.abs(x - (shape.axles[0] - 0.5) * shape.length) < np.abs(x - (shape.axles[1] - 0.5) * shape.length)
    axle = (np.where(left, *shape.axles) - 0.5) * shape.length
    radius = _arch_radius(shape)
    scale = radius / np.maximum(radius - distance, 0.1)
    x[near] = (axle + (x - axle) * scale)[near]
    z[near] = (shape.wheel_radius + (z - shape.wheel_radius) * scale)[near]
    return points


def recess_arches(shape: Shape, points: Array) -> Array:
    """Push the snapped body, points of shape (..., 3), in behind the wheels."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = (arch_distance(shape, x, z) > 0.001) & (np.abs(y) > 0.3 * shape.width)
    return np.asarray(np.stack([x, y - 0.27 * np.sign(y) * inside, z], -1), np.float32)
