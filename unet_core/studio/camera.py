"""The camera: its place, its lens, its exposure and noise; and the turntable's rotation in front of it."""

from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.studio.arrays import Array, Bytes
from unet_core.studio.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera at (0, -distance, height) that looks along y, tilted down to a point above the world's origin.

    `size` is (height, width) in pixels, `focal` the focal length in pixels.
    """

    size: tuple[int, int]
    distance: float
    height: float
    target: float
    focal: float

    @property
    def tilt(self) -> tuple[float, float]:
        """Cosine and sine of the angle by which the camera looks down."""
        slope = np.hypot(self.distance, self.height - self.target)
        return self.distance / float(slope), (self.height - self.target) / float(slope)

    @property
    def position(self) -> Array:
        """World coordinates of the camera, float32 (3,)."""
        return np.asarray([0, -self.distance, self.height], np.float32)

    @property
    def axes(self) -> Array:
        """Rotation from world to camera, (3, 3): rows are right, down, forward."""
        cosine, sine = self.tilt
        return np.asarray([[1, 0, 0], [0, -sine, -cosine], [0, cosine, -sine]], np.float32)

    def project(self, points: Array) -> Array:
        """Project world points (n, 3) to (n, 3): x and y in pixels (0 is the image's corner), 1 / depth."""
        right, down, depth = ((points - self.position) @ self.axes.T).T
        scale = self.focal / depth
        height, width = self.size
        return np.asarray(np.stack([0.5 * width + right * scale, 0.5 * height + down * scale, 1 / depth], -1))

    def floor_homography(self) -> npt.NDArray[np.float64]:
        """The 3x3 matrix from floor coordinates (x, y, 1) in metres to pixels."""
        height, width = self.size
        lens = np.asarray([[self.focal, 0, 0.5 * width], [0, self.focal, 0.5 * height], [0, 0, 1]])
        axes = self.axes.astype(np.float64)
        return lens @ np.stack([axes[:, 0], axes[:, 1], -axes @ self.position.astype(np.float64)], axis=1)


def rotation(yaw: float) -> Array:
    """Rotation from car frame to world frame, (3, 3); `yaw` is in radians, at 0 the nose points at the camera."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.asarray([[-sine, cosine, 0], [cosine, sine, 0], [0, 0, 1]], np.float32)


def place_camera(shape: Shape, size: tuple[int, int], rng: np.random.Generator) -> Camera:
    """Place the camera so far away that the car fits into the image from all sides."""
    height, width = size
    return Camera(
        size=size,
        distance=6.0 * (shape.length / 4.6) ** 0.6 * (shape.height / 1.5) ** 0.15 + rng.uniform(-0.1, 0.1),
        height=1.5 + rng.uniform(-0.1, 0.1),
        target=0.46 * shape.height,
        focal=min(width, 1.498 * height),
    )


def vignette(columns: Array, rows: Array) -> Array:
    """Light that the lens lets through, from 1 in the middle to less in the corners: float32 (height, width).

    columns: (width,), rows: (height, 1), both counted from the middle of the image.
    """
    return np.asarray(1 - 0.16 * ((columns / columns[-1]) ** 2 + (rows / rows[-1]) ** 2) ** 1.5 / 2.8)


def expose(picture: Bytes, rng: np.random.Generator) -> Bytes:
    """Make the picture a little lighter or darker, and add the sensor's noise."""
    exposure = float(rng.uniform(0.95, 1.05))
    grain = np.frombuffer(rng.bytes(picture.size), np.uint8).reshape(picture.shape)
    bell = NormalDist(128, 1.4)
    to_noise = np.asarray([round(bell.inv_cdf((byte + 0.5) / 256)) for byte in range(256)], np.uint8)
    return np.asarray(cv2.addWeighted(picture, exposure, cv2.LUT(grain, to_noise), 1.0, -128.0), np.uint8)
