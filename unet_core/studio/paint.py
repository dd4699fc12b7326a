"""The colours of a car, and its texture: paint, glass, lamps, shut lines and wheels, laid over the mesh's atlas."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from unet_core.studio.arches import arch_distance
from unet_core.studio.arrays import Array, smooth
from unet_core.studio.loft import RING, Stations
from unet_core.studio.mesh import RIM_BENDS, RIM_GRID, Mesh
from unet_core.studio.shape import Shape

Material = tuple[float, float, float, float]
"""Linear red, green, blue; gloss 0 (rubber) .. 0.5 (paint) .. 1 (chrome)."""

GLASS: Material = (0.012, 0.015, 0.018, 0.52)
BLACK: Material = (0.012, 0.012, 0.013, 0.25)
RUBBER: Material = (0.016, 0.016, 0.017, 0.18)
SHADE: Material = (0.004, 0.004, 0.004, 0.0)
CHROME: Material = (0.30, 0.30, 0.31, 0.95)
LAMP: Material = (0.55, 0.57, 0.60, 0.85)
TAIL_LAMP: Material = (0.42, 0.012, 0.012, 0.5)
AMBER: Material = (0.75, 0.26, 0.03, 0.6)
PLATE: Material = (0.75, 0.75, 0.72, 0.2)

_PAINTS = (
    (0.72, 0.72, 0.70),  # white
    (0.012, 0.012, 0.014),  # black
    (0.44, 0.45, 0.46),  # silver
    (0.36, 0.012, 0.014),  # red
    (0.60, 0.60, 0.585),  # light grey
    (0.014, 0.05, 0.26),  # blue
    (0.09, 0.095, 0.10),  # graphite
    (0.56, 0.53, 0.46),  # champagne
    (0.015, 0.10, 0.055),  # green
    (0.62, 0.35, 0.02),  # yellow
    (0.26, 0.28, 0.31),  # steel
)
"""Paints of the cars, linear red, green, blue, in the order in which the cars of a data set take them."""


@dataclass(frozen=True, kw_only=True)
class Livery:
    """Colours of one car, linear; `lower` paints the body below its waist on two-tone cars."""

    paint: Material
    lower: Material | None
    rim: Material
    spokes: int


def pick_livery(turn: int, rng: np.random.Generator) -> Livery:
    """Choose the colours of a car: `turn` decides on hue and two tones, the rest is drawn at random."""
    colour = np.asarray(_PAINTS[turn % len(_PAINTS)])
    # A little lighter or darker, and a little off its hue.
    red, green, blue = (colour * rng.uniform(0.85, 1.15) * rng.uniform(0.975, 1.025, 3)).tolist()
    two_tone = turn % 7 == 3
    rim = rng.uniform(0.1, 0.4) if rng.random() < 0.8 else 0.02
    return Livery(
        paint=(red, green, blue, 0.5),
        lower=(0.05, 0.05, 0.055, 0.4) if two_tone else None,
        rim=(rim, rim, rim * 1.02, 0.7),
        spokes=int(rng.choice([5, 5, 6, 7, 10])),
    )


def paint_car(shape: Shape, livery: Livery, mesh: Mesh, stations: Stations, texels: int) -> Array:
    """The whole atlas' texture: float32 (rows * texels, columns * texels, 4), a `Material` per texel."""
    texture = np.zeros((mesh.points.shape[0] * texels, mesh.points.shape[1] * texels, 4), np.float32)
    skin = _lay_out_skin(mesh, stations, texels)
    body = _paint_body(shape, livery, skin, soft=0.055 / texels)
    for number, place in enumerate(mesh.places):
        rows, columns = (slice(part.start * texels, part.stop * texels) for part in place)
        area = texture[rows, columns]
        if number == 0:
            half = area.shape[1] // 2
            area[:, : half + 1] = body[:, : half + 1]
            area[:, -half:] = body[:, :half][:, ::-1]
        elif number <= len(shape.axles) * 2:
            area[:] = _paint_wheel(livery, area.shape[:2], soft=0.2 / texels)
        else:
            area[:] = livery.paint
    return texture


class _Painter:
    """Lays materials over a texture; areas are given as distances inside their edge, in metres, and end softly."""

    def __init__(self, shape: tuple[int, ...], material: Material, soft: float) -> None:
        self.texture = np.empty((*shape[:2], 4), np.float32)
        self.texture[:] = material
        self.soft = soft

    def fill(self, inside: npt.ArrayLike, material: Material, opacity: float = 1.0) -> None:
        """Lay a material over the area whose distances are positive."""
        distance = np.broadcast_to(np.asarray(inside, np.float32), self.texture.shape[:2])
        touched = distance > -0.5 * self.soft
        rows, columns = (np.flatnonzero(touched.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        share = opacity * np.clip(distance[area] / self.soft + 0.5, 0, 1)[..., None]
        self.texture[area] += (np.asarray(material, np.float32) - self.texture[area]) * share

    def line(self, distance: npt.ArrayLike, inside: npt.ArrayLike) -> None:
        """Draw a shut line, 9 mm wide, along distance 0 and within the area `inside`."""
        self.fill(np.minimum(0.0045 - np.abs(distance), inside), SHADE, 0.85)


def _box(*bounds: tuple[Array, float, float]) -> Array:
    """Distance inside the box of all points with `low < value < high` for every (value, low, high)."""
    distances = [np.minimum(value - low, high - value) for value, low, high in bounds]
    return np.asarray(np.minimum.reduce(np.broadcast_arrays(*distances)), np.float32)


@dataclass(frozen=True, kw_only=True)
class _Skin:
    """Position of each texel of the body: (rows, columns) coordinates and unit normals; its section's are (rows, 1)."""

    x: Array
    y: Array
    z: Array
    facing: Array  # x of the normal: -1 nose, 1 tail
    flank: Array  # |y| of the normal: 1 on the doors
    share: Array
    belt: Array
    roof: Array
    rail: Array
    sunk: Array


def _lay_out_skin(mesh: Mesh, stations: Stations, texels: int) -> _Skin:
    half = RING // 2 + 1  # the car is symmetric: one side is enough
    size = (half * texels, len(mesh.body) * texels)
    position, facing = (
        np.asarray(cv2.resize(grid[:, :half], size, interpolation=cv2.INTER_LINEAR), np.float32)
        for grid in (mesh.body, mesh.normals[mesh.places[0]])
    )

    def column(values: Array) -> Array:
        return np.asarray(cv2.resize(values.reshape(-1, 1), (1, size[1])), np.float32).reshape(-1, 1)

    return _Skin(
        x=position[..., 0],
        y=np.abs(position[..., 1]),
        z=position[..., 2],
        facing=facing[..., 0],
        flank=np.abs(facing[..., 1]),
        share=column(stations.share),
        belt=column(stations.belt),
        roof=column(stations.roof),
        rail=column(stations.rail),
        sunk=column(stations.sunk),
    )


def _paint_body(shape: Shape, livery: Livery, skin: _Skin, soft: float) -> Array:
    painter = _Painter(skin.x.shape, livery.paint, soft)
    waist = 0.36 * shape.height
    if livery.lower:
        painter.fill(waist - skin.z, livery.lower)
    painter.fill(shape.clearance + 0.075 - skin.z, BLACK)
    _paint_lines(shape, skin, painter)
    _paint_windows(shape, skin, painter)
    _paint_nose(shape, skin, painter)
    _paint_tail(shape, skin, painter)
    if shape.bed:
        floor = np.minimum(skin.sunk - 0.1, 0.86 * 0.5 * shape.width - skin.y)
        painter.fill(floor + np.where(skin.z > skin.belt + 0.005, -1, 0), BLACK)
    arch = arch_distance(shape, skin.x, skin.z) + np.where(skin.y < 0.3 * shape.width, -1, 0)
    if shape.cladding:
        painter.fill(arch + 0.055, BLACK)
    painter.fill(arch + 0.012, SHADE)
    painter.fill(shape.clearance + 0.012 - skin.z, SHADE)
    return painter.texture


def _paint_lines(shape: Shape, skin: _Skin, painter: _Painter) -> None:
    """Shut lines of doors, bonnet and bumpers, door handles and side strip."""
    sill = shape.clearance + 0.13
    x_of = [(share - 0.5) * shape.length for share in shape.doors]
    doors = _box((skin.x, x_of[0], x_of[-1]), (skin.z, sill, 9.0), (skin.flank, 0.5, 9.0))
    doors = np.minimum(doors, skin.belt - 0.02 - skin.z)
    outside_arch = -arch_distance(shape, skin.x, skin.z) - 0.05
    for x in x_of:
        painter.line(skin.x - x - 0.05 * np.minimum(skin.z - 0.8, 0), np.minimum(doors + 0.05, outside_arch))
    painter.line(skin.z - sill, np.minimum(doors, outside_arch))
    for x in x_of[1:]:
        handle = _box((skin.x, x - 0.24, x - 0.07), (skin.z - skin.belt, -0.125, -0.085), (skin.flank, 0.5, 9.0))
        painter.fill(handle + 0.006, SHADE, 0.7)
        painter.fill(handle - 0.008, CHROME)
    bonnet = _box((skin.share, 0.035, shape.windscreen[0]), (skin.z - skin.belt, -0.01, 9.0))
    painter.line(skin.y - 0.40 * shape.width, bonnet)
    ends = np.minimum(outside_arch, np.maximum(shape.axles[0] - skin.share, skin.share - shape.axles[1]))
    painter.line(skin.z - 0.335 * shape.height, ends)


def _paint_windows(shape: Shape, skin: _Skin, painter: _Painter) -> None:
    """Windscreen, rear window and side windows; the paint that is left between them forms the pillars."""
    start, end = ((share - 0.5) * shape.length for share in shape.side_window)
    rise = skin.z - skin.belt
    bottom = 0.035 + 0.05 * smooth(0.75, 1.0, (skin.x - start) / (end - start))
    side = _box((skin.x, start, end), (rise - bottom, 0.0, 9.0), (skin.roof - 0.105 - skin.z, 0.0, 9.0))
    side = np.minimum(side, 1.2 * (skin.y - skin.rail) + 0.03)
    side = np.minimum(side, 0.8 * (end - skin.x) - 0.45 * rise * (shape.tail_lean + 0.25))
    side = np.minimum(side, 0.9 * (skin.flank - 0.45))
    painter.fill(side + 0.018, BLACK)
    painter.fill(side, GLASS)
    for share in shape.pillars:
        x = (share - 0.5) * shape.length + 0.12 * (rise - 0.2)
        painter.fill(np.minimum(side + 0.01, 0.032 - np.abs(skin.x - x)), BLACK)
    for shares, sill in ((shape.windscreen, 0.03), (shape.rear_window, 0.05)):
        if shares:
            along = _box((skin.share, *shares)) * shape.length
            screen = np.minimum(np.minimum(along, 0.93 * skin.rail - 0.012 - skin.y), rise - sill)
            painter.fill(screen + 0.02, BLACK)
            painter.fill(screen, GLASS)
    if not shape.rear_window:
        hatch = _box((rise, 0.05, 9.0), (skin.roof - skin.z, 0.11, 9.0), (skin.y, -9.0, 0.36 * shape.width))
        hatch = np.minimum(np.minimum(hatch, 0.375 * shape.width - 0.16 * rise - skin.y), skin.facing - 0.45)
        painter.fill(hatch + 0.02, BLACK)
        painter.fill(hatch, GLASS)


def _paint_nose(shape: Shape, skin: _Skin, painter: _Painter) -> None:
    """Grille, air intake, head lights, number plate and badge."""
    height, half = shape.height, 0.5 * shape.width
    front = -0.5 * shape.length
    ahead = np.where((skin.facing < -0.3) & (skin.share < 0.1), 0.0, -1.0).astype(np.float32)
    edge = shape.belt[0][1] * height - 0.05
    intake = _box((skin.y, -9.0, 0.62 * half), (skin.z, shape.clearance + 0.03, 0.25 * height)) + ahead
    painter.fill(intake, BLACK)
    grille = _box((skin.y, -9.0, 0.5 * half), (skin.z, 0.355 * height, edge - 0.035)) + ahead
    painter.fill(grille + 0.014, CHROME)
    painter.fill(grille, BLACK)
    painter.fill(np.minimum(grille, 0.01 * np.sin(140 * skin.z)), CHROME, 0.5)
    slant = 0.1 * (skin.y / half - 0.6)
    lamp = _box(
        (skin.y, 0.55 * half, 9.0), (skin.z - slant, edge - 0.17, edge - 0.012), (skin.x, front - 1, front + 0.37)
    )
    painter.fill(lamp + 0.012, SHADE, 0.8)
    painter.fill(lamp, LAMP)
    painter.fill(np.minimum(lamp, skin.x - front - 0.31), AMBER)
    for place, radius in ((0.64, 0.055), (0.77, 0.045)):
        ring = np.hypot(skin.y - place * half, skin.z - edge + 0.085 - 0.1 * (place - 0.6))
        painter.fill(np.minimum(radius - ring, lamp), SHADE, 0.55)
        painter.fill(np.minimum(radius - 0.014 - ring, lamp), (0.9, 0.9, 0.88, 0.9))
    badge = np.hypot(skin.y, skin.z - 0.5 * (0.355 * height + edge - 0.035))
    painter.fill(0.055 - badge + ahead, CHROME)
    _paint_plate(skin, painter, 0.295 * height, ahead)


def _paint_tail(shape: Shape, skin: _Skin, painter: _Painter) -> None:
    """Tail lights, number plate, boot line and bumper strip."""
    height, half = shape.height, 0.5 * shape.width
    back = np.where((skin.facing > 0.3) & (skin.share > 0.9), 0.0, -1.0).astype(np.float32)
    edge = shape.belt[-1][1] * height - 0.045
    tall, narrow = (0.30, 0.78) if shape.tall_lamps else (0.17, 0.6)
    wrap = np.minimum(skin.x - (0.5 * shape.length - 0.3), skin.share - 0.9)
    lamp = np.minimum(_box((skin.y, narrow * half, 9.0), (skin.z, edge - tall, edge - 0.02)), wrap)
    painter.fill(lamp + 0.01, SHADE, 0.8)
    painter.fill(lamp, TAIL_LAMP)
    painter.fill(np.minimum(lamp, 0.022 - np.abs(skin.z - edge + 0.5 * tall)), LAMP, 0.7)
    lid = _box((skin.y, -9.0, narrow * half - 0.02), (skin.z, 0.3 * height, edge - 0.05)) + back
    painter.line(lid, lid + 0.02)
    painter.fill(_box((skin.y, -9.0, 0.8 * half), (skin.z, shape.clearance + 0.02, 0.21 * height)) + back, BLACK)
    _paint_plate(skin, painter, 0.40 * height, back)


def _paint_plate(skin: _Skin, painter: _Painter, z: float, facing: Array) -> None:
    plate = _box((skin.y, -9.0, 0.255), (skin.z, z - 0.055, z + 0.055)) + facing
    painter.fill(plate + 0.008, SHADE, 0.7)
    painter.fill(plate, PLATE)
    letters = np.minimum(0.02 - np.abs(np.mod(skin.y, 0.066) - 0.033), plate - 0.022)
    painter.fill(letters, SHADE, 0.8)


def _paint_wheel(livery: Livery, size: tuple[int, ...], soft: float) -> Array:
    """A wheel's texture in polar coordinates: rows run around the axle, columns from hub over tread to the back."""
    cell = size[1] / RIM_GRID
    turn = (np.arange(size[0], dtype=np.float32)[:, None] - 0.5 * (cell - 1)) * (2 * np.pi / (size[0] - cell))
    ring = (np.arange(size[1], dtype=np.float32)[None] + 0.5) / cell - 0.5
    radius = np.interp(ring, *RIM_BENDS).astype(np.float32)
    painter = _Painter(size, RUBBER, soft)
    painter.fill(0.655 - radius, livery.rim)
    phase = np.abs(np.mod(turn * livery.spokes / (2 * np.pi), 1) - 0.5) * 2 * np.pi / livery.spokes
    width = 0.5 * np.pi / livery.spokes
    gap = np.minimum((width - phase) * np.maximum(radius, 0.05) - 0.01, np.minimum(radius - 0.17, 0.56 - radius))
    painter.fill(gap, SHADE)
    painter.fill(0.028 - np.abs(radius - 0.11), SHADE, 0.6)
    painter.fill(0.012 - np.abs(radius - 0.665), SHADE, 0.8)
    painter.fill(0.012 - np.abs(radius - 0.84), SHADE, 0.5)
    painter.fill(ring - 11.5, SHADE, 0.7)
    return painter.texture
