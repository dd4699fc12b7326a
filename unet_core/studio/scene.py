"""One car in its studio, and one view of it: the pictures of the data set that `unet_core.turntable` writes.

`prepare_scene` builds a `Scene`, one car in its studio, for an image of `SMALLEST` pixels or more on each side;
`draw_view` draws the scene from one of `VIEWS` sides.

A car is a set of vertex grids (body, four wheels, two mirrors) packed into one atlas. The body is a loft: sections
along the length, each a cubic B-spline from the floor pan over sill, belt line and roof rail to the roof. Its paint
work (glass, lamps, shut lines, ...) is a texture over the same atlas, `texels` times finer. To draw one view:

    light per vertex  ->  colour per texel  ->  which quad a pixel sees  ->  where in the texture that is  ->  colour

Units are metres. Car frame: x from nose to tail, y to the side, z up, origin on the floor below the middle. World
frame: the camera stands at negative y and looks along y. Tones are display values in 0..1 unless called linear.
"""

from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from unet_core.studio.arrays import Array, Bytes
from unet_core.studio.camera import Camera, rotation
from unet_core.studio.dataset_plan import VIEWS
from unet_core.studio.light import light_vertices, shade_texels
from unet_core.studio.loft import place_stations
from unet_core.studio.mesh import Mesh, build_mesh
from unet_core.studio.paint import paint_car
from unet_core.studio.raster import Layer, merge, rasterise, window_around
from unet_core.studio.room import draw_studio
from unet_core.studio.shadow import cast_shadow, map_shadow
from unet_core.studio.shape import SHAPES, Shape, pick_livery, vary_shape

_SUPERSAMPLING = 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One car in its studio, ready to be drawn from any side; made by `prepare_scene`."""

    mesh: Mesh
    texture: Array
    camera: Camera
    studio: Bytes
    shadow: Bytes


def prepare_scene(*, number: int, seed: int, size: tuple[int, int]) -> Scene:
    """Build car `number` of the data set `seed`, for images of `size` = (height, width), at least `SMALLEST`.

    Body types and colours take turns, so that a few cars are already a mixed lot; everything else is drawn at random.
    """
    rng = np.random.default_rng([seed, number])
    turn = int(np.random.default_rng(seed).integers(1 << 16)) + number
    shape = vary_shape(SHAPES[turn % len(SHAPES)], rng)
    livery = pick_livery(turn, rng)
    stations = place_stations(shape)
    mesh = build_mesh(shape, stations, rng.uniform(0, 2 * np.pi, 4).tolist())
    texels = int(np.clip(round(size[1] / 240), 1, 8))
    camera = _place_camera(shape, size, rng)
    tint = np.asarray([[1.0, 0.99, 0.965], [0.965, 0.985, 1.0]], np.float32) * rng.uniform(0.95, 1.02)
    return Scene(
        mesh=mesh,
        texture=paint_car(shape, livery, mesh, stations, texels),
        camera=camera,
        studio=draw_studio(camera, tint.astype(np.float32)),
        shadow=map_shadow(shape, stations),
    )


def _place_camera(shape: Shape, size: tuple[int, int], rng: np.random.Generator) -> Camera:
    """Place the camera so far away that the car fits into the image from all sides."""
    height, width = size
    return Camera(
        size=size,
        distance=6.0 * (shape.length / 4.6) ** 0.6 * (shape.height / 1.5) ** 0.15 + rng.uniform(-0.1, 0.1),
        height=1.5 + rng.uniform(-0.1, 0.1),
        target=0.46 * shape.height,
        focal=min(width, 1.498 * height),
    )


def draw_view(scene: Scene, *, view: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Draw view `view` of 0 .. 15; the turntable stands at 22.5 degrees times `view`, the nose towards us at 0.

    Returns:
        The picture, uint8 (height, width, 3) RGB with sensor noise, and its mask, uint8 (height, width): 255 where the
        car covers at least half of the pixel, else 0; the car without its shadow and reflection.
    """
    yaw = 2 * np.pi * view / VIEWS
    points = (scene.mesh.points.reshape(-1, 3) @ rotation(yaw).T).astype(np.float32)
    normals = (scene.mesh.normals.reshape(-1, 3) @ rotation(yaw).T).astype(np.float32)
    light = light_vertices(points, normals, scene.camera).reshape(*scene.mesh.points.shape[:2], 3)
    skin = shade_texels(scene.texture, light)
    picture = scene.studio.copy()
    _lay_reflection(picture, scene, points, skin)
    _lay_shadow(picture, cast_shadow(scene.shadow, scene.camera, yaw))
    mask = np.zeros(scene.camera.size, np.uint8)
    _lay_car(picture, mask, scene, points, skin)
    return _expose(picture, rng), mask


def _expose(picture: Bytes, rng: np.random.Generator) -> Bytes:
    """Make the picture a little lighter or darker, and add the sensor's noise."""
    exposure = float(rng.uniform(0.95, 1.05))
    grain = np.frombuffer(rng.bytes(picture.size), np.uint8).reshape(picture.shape)
    bell = NormalDist(128, 1.4)
    to_noise = np.asarray([round(bell.inv_cdf((byte + 0.5) / 256)) for byte in range(256)], np.uint8)
    return np.asarray(cv2.addWeighted(picture, exposure, cv2.LUT(grain, to_noise), 1.0, -128.0), np.uint8)


def _texture_places(scene: Scene) -> Array:
    """Position of every vertex in the texture: (vertices, 2) as x, y of OpenCV's pixel centres."""
    rows, columns = scene.mesh.points.shape[:2]
    texels = scene.texture.shape[0] // rows
    place = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return np.asarray((place + 0.5) * texels - 0.5, np.float32)


def _look_up(layer: Layer, skin: Bytes) -> Bytes:
    """The colour of every sample: uint8 (height, width, 3); black without a quad.

    Such samples take the texture's first texel, which lies in the atlas' margin and is black.
    """
    x, y = layer.value(0), layer.value(1)
    return np.asarray(cv2.remap(skin, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _lay_car(picture: Bytes, mask: Bytes, scene: Scene, points: Array, skin: Bytes) -> None:
    """Draw the car over `picture` and into `mask`, both in place."""
    mesh = scene.mesh
    projected = scene.camera.project(points)
    window = window_around(scene.camera.size, projected, mesh.quads, _SUPERSAMPLING)
    samples = window.samples(projected)
    values = np.concatenate([_texture_places(scene), projected[:, 2:]], axis=1)
    body = rasterise(samples, mesh.quads[~mesh.parts], values, window.shape)
    parts = rasterise(samples, mesh.quads[mesh.parts], values, window.shape)
    layer = merge(body, parts, inverse_depth=2)
    rows, columns = window.bottom - window.top, window.right - window.left
    colour = cv2.resize(_look_up(layer, skin), (columns, rows), interpolation=cv2.INTER_AREA)
    covered = cv2.resize((layer.ids > 0).astype(np.uint8) * 255, (columns, rows), interpolation=cv2.INTER_AREA)
    share = cv2.merge([255 - covered] * 3)
    picture[window.area] = cv2.add(colour, cv2.multiply(picture[window.area], share, scale=1 / 255))
    mask[window.area] = np.where(covered >= 127, 255, 0)


def _lay_reflection(picture: Bytes, scene: Scene, points: Array, skin: Bytes) -> None:
    """Mirror the car in the glossy floor, in place."""
    camera = scene.camera
    projected = camera.project(points * np.asarray([1, 1, -1], np.float32))
    low = points[:, 2] < 1.15  # higher parts have faded away
    quads = scene.mesh.quads[low[scene.mesh.quads[:, 0]]]
    window = window_around(camera.size, projected, quads, 0.5)
    values = np.concatenate([_texture_places(scene), points[:, 2:]], axis=1)
    layer = rasterise(window.samples(projected), quads[:, ::-1], values, window.shape)
    strength = 0.30 * np.exp(-np.maximum(layer.value(2), 0) / 0.42) * (layer.ids > 0)
    sharp = np.dstack([_look_up(layer, skin) * strength[..., None], 255 * (1 - strength)]).astype(np.float32)
    blurred = np.rint(cv2.GaussianBlur(sharp, (0, 0), max(camera.focal / 900, 0.3))).astype(np.uint8)
    size = window.right - window.left, window.bottom - window.top
    glow = np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    area = window.area
    through = cv2.merge([glow[..., 3]] * 3)
    picture[area] = cv2.add(cv2.multiply(picture[area], through, scale=1 / 255), np.ascontiguousarray(glow[..., :3]))


def _lay_shadow(picture: Bytes, shadow: Bytes) -> None:
    """Darken the picture by the shadow that the camera sees, in place, in those rows that have any."""
    rows = np.flatnonzero(shadow.min(axis=1) < 255)
    if len(rows):
        lit = slice(int(rows[0]), int(rows[-1]) + 1)
        picture[lit] = cv2.multiply(picture[lit], cv2.merge([shadow[lit]] * 3), scale=1 / 255)
