"""One car in its studio, and one view of it: the pictures of the data set that `unet_core.turntable` writes.

`prepare_scene` builds a `Scene`, one car in its studio, for an image of `dataset_plan.SMALLEST` or
larger; `draw_view` draws the scene from one of `VIEWS` sides.

A car is a set of vertex grids (body, four wheels, two mirrors) packed into one atlas. The body is a loft: sections
along the length, each a cubic B-spline from the floor pan over sill, belt line and roof rail to the roof. Its paint
work (glass, lamps, shut lines, ...) is a texture over the same atlas, `texels` times finer. To draw one view:

    light per vertex  ->  colour per texel  ->  which quad a pixel sees  ->  where in the texture that is  ->  colour

Units are metres. Car frame: x from nose to tail, y to the side, z up, origin on the floor below the middle. World
frame: the camera stands at negative y and looks along y. Tones are display values in 0..1 unless called linear.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from unet_core.studio.arrays import Array, Bytes
from unet_core.studio.camera import Camera, expose, place_camera, rotation
from unet_core.studio.dataset_plan import VIEWS
from unet_core.studio.light import light_vertices, shade_texels
from unet_core.studio.loft import place_stations
from unet_core.studio.mesh import Mesh, build_mesh
from unet_core.studio.paint import paint_car, pick_livery
from unet_core.studio.raster import SUPERSAMPLING, coverage, look_up, merge, rasterise, texture_places, window_around
from unet_core.studio.reflection import lay_reflection
from unet_core.studio.room import draw_studio
from unet_core.studio.shadow import cast_shadow, lay_shadow, map_shadow
from unet_core.studio.shape import SHAPES, vary_shape


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One car in its studio, ready to be drawn from any side; made by `prepare_scene`."""

    mesh: Mesh
    texture: Array
    camera: Camera
    studio: Bytes
    shadow: Bytes


def prepare_scene(*, number: int, seed: int, size: tuple[int, int]) -> Scene:
    """Build car `number` of the data set `seed`, for images of `size` (height, width).

    The size is at least `dataset_plan.SMALLEST`. Body types and colours take turns, so that a few cars are already a
    mixed lot; everything else is drawn at random.
    """
    rng = np.random.default_rng([seed, number])
    turn = int(np.random.default_rng(seed).integers(1 << 16)) + number
    shape = vary_shape(SHAPES[turn % len(SHAPES)], rng)
    livery = pick_livery(turn, rng)
    stations = place_stations(shape)
    mesh = build_mesh(shape, stations, rng.uniform(0, 2 * np.pi, 4).tolist())
    texels = int(np.clip(round(size[1] / 240), 1, 8))
    camera = place_camera(shape, size, rng)
    tint = np.asarray([[1.0, 0.99, 0.965], [0.965, 0.985, 1.0]], np.float32) * rng.uniform(0.95, 1.02)
    return Scene(
        mesh=mesh,
        texture=paint_car(shape, livery, mesh, stations, texels),
        camera=camera,
        studio=draw_studio(camera, tint.astype(np.float32)),
        shadow=map_shadow(shape, stations),
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
    lay_reflection(picture, scene.camera, scene.mesh, points, skin)
    lay_shadow(picture, cast_shadow(scene.shadow, scene.camera, yaw))
    mask = np.zeros(scene.camera.size, np.uint8)
    _lay_car(picture, mask, scene, points, skin)
    return expose(picture, rng), mask


def _lay_car(picture: Bytes, mask: Bytes, scene: Scene, points: Array, skin: Bytes) -> None:
    """Draw the car over `picture` and into `mask`, both in place."""
    mesh = scene.mesh
    projected = scene.camera.project(points)
    window = window_around(scene.camera.size, projected, mesh.quads, SUPERSAMPLING)
    samples = window.samples(projected)
    values = np.concatenate([texture_places(mesh.points, skin), projected[:, 2:]], axis=1)
    body = rasterise(samples, mesh.quads[~mesh.parts], values, window.shape)
    parts = rasterise(samples, mesh.quads[mesh.parts], values, window.shape)
    layer = merge(body, parts, inverse_depth=2)
    rows, columns = window.bottom - window.top, window.right - window.left
    colour = cv2.resize(look_up(layer, skin), (columns, rows), interpolation=cv2.INTER_AREA)
    covered, mask[window.area] = coverage(layer, window)
    share = cv2.merge([255 - covered] * 3)
    picture[window.area] = cv2.add(colour, cv2.multiply(picture[window.area], share, scale=1 / 255))
