"""Draws procedural cars on a studio turntable: the pictures of the data set that `unet_core.turntable` writes.

A car is a set of vertex grids (body, four wheels, two mirrors) packed into one atlas. The body is a loft: sections
along the length, each a cubic B-spline from the floor pan over sill, belt line and roof rail to the roof. Its paint
work (glass, lamps, shut lines, ...) is a texture over the same atlas, `texels` times finer. To draw one view:

    light per vertex  ->  colour per texel  ->  which quad a pixel sees  ->  where in the texture that is  ->  colour

Units are metres. Car frame: x from nose to tail, y to the side, z up, origin on the floor below the middle. World
frame: the camera stands at negative y and looks along y. Tones are display values in 0..1 unless called linear.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Material = tuple[float, float, float, float]  # linear red, green, blue; gloss 0 (rubber) .. 0.5 (paint) .. 1 (chrome)
Place = tuple[slice, slice]
Curve = tuple[tuple[float, float], ...]  # (share of the length from the nose, share of the height), left to right

VIEWS = 16
SMALLEST = (32, 48)
"""Smallest image that can be drawn: height, width."""

_STATIONS, _RING = 176, 113  # body grid: cross-sections along the car, points around each of them
_SPOKES_GRID, _RIM_GRID = 49, 14  # wheel grid: points around, points from hub to tread
_MIRROR_GRID = 13
_SLIVER = 1e-5  # square metres: smaller quads show no more than the rounding of their normals
_SNAP = 0.024  # metres: a little more than half a cell of the body grid
_SUPERSAMPLING = 2
_SUBPIXEL_BITS = 4  # fixed-point bits of the coordinates that cv2.fillConvexPoly takes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Proportions of one body type; lengths in metres, curves as shares of length and height."""

    length: float
    width: float
    height: float
    clearance: float
    wheel_radius: float
    axles: tuple[float, float]
    belt: Curve
    roof: Curve
    windscreen: tuple[float, float]
    rear_window: tuple[float, float] | None
    side_window: tuple[float, float]
    pillars: tuple[float, ...]
    doors: tuple[float, ...]
    tail_lean: float
    corner: tuple[float, float] = (4.2, 5.5)
    bed: tuple[float, float] | None = None
    cladding: bool = False
    tall_lamps: bool = False


@dataclass(frozen=True, kw_only=True)
class Livery:
    """Colours of one car, linear; `lower` paints the body below its waist on two-tone cars."""

    paint: Material
    lower: Material | None
    rim: Material
    spokes: int


SEDAN = Shape(
    length=4.65, width=1.82, height=1.45, clearance=0.20, wheel_radius=0.325, axles=(0.195, 0.795),
    belt=((0.0, 0.47), (0.05, 0.52), (0.27, 0.62), (0.8, 0.66), (0.95, 0.67), (1.0, 0.63)),
    roof=((0.26, 0.6), (0.43, 0.96), (0.54, 1.0), (0.68, 0.97), (0.87, 0.66)),
    windscreen=(0.285, 0.43), rear_window=(0.70, 0.84), side_window=(0.3, 0.80), pillars=(0.53,),
    doors=(0.325, 0.535, 0.725), tail_lean=0.1,
)  # fmt: skip
HATCHBACK = Shape(
    length=4.1, width=1.77, height=1.47, clearance=0.19, wheel_radius=0.315, axles=(0.195, 0.815),
    belt=((0.0, 0.47), (0.05, 0.54), (0.25, 0.63), (0.8, 0.69), (1.0, 0.68)),
    roof=((0.24, 0.6), (0.42, 0.95), (0.55, 1.0), (0.8, 0.97), (1.0, 0.9)),
    windscreen=(0.265, 0.42), rear_window=None, side_window=(0.28, 0.89), pillars=(0.53, 0.765),
    doors=(0.315, 0.535, 0.745), tail_lean=0.55,
)  # fmt: skip
SUV = Shape(
    length=4.55, width=1.88, height=1.72, clearance=0.25, wheel_radius=0.37, axles=(0.19, 0.80),
    belt=((0.0, 0.50), (0.04, 0.56), (0.26, 0.63), (0.8, 0.67), (1.0, 0.66)),
    roof=((0.25, 0.6), (0.40, 0.95), (0.5, 1.0), (0.85, 0.98), (1.0, 0.94)),
    windscreen=(0.27, 0.40), rear_window=None, side_window=(0.29, 0.93), pillars=(0.51, 0.74),
    doors=(0.31, 0.515, 0.72), tail_lean=0.28, corner=(5.0, 7.0),
    cladding=True, tall_lamps=True,
)  # fmt: skip
VAN = Shape(
    length=4.75, width=1.9, height=1.88, clearance=0.22, wheel_radius=0.335, axles=(0.19, 0.81),
    belt=((0.0, 0.44), (0.05, 0.5), (0.2, 0.57), (0.8, 0.58), (1.0, 0.58)),
    roof=((0.13, 0.54), (0.32, 0.94), (0.42, 1.0), (0.9, 1.0), (1.0, 0.98)),
    windscreen=(0.15, 0.325), rear_window=None, side_window=(0.19, 0.95), pillars=(0.44, 0.68),
    doors=(0.245, 0.445, 0.70), tail_lean=0.1, corner=(4.6, 9.0),
    tall_lamps=True,
)  # fmt: skip
PICKUP = Shape(
    length=5.1, width=1.9, height=1.78, clearance=0.29, wheel_radius=0.38, axles=(0.18, 0.765),
    belt=((0.0, 0.51), (0.03, 0.58), (0.25, 0.63), (0.8, 0.64), (1.0, 0.64)),
    roof=((0.25, 0.6), (0.37, 0.95), (0.45, 1.0), (0.585, 0.98), (0.635, 0.65)),
    windscreen=(0.265, 0.37), rear_window=(0.598, 0.628), side_window=(0.28, 0.60), pillars=(0.45,),
    doors=(0.285, 0.455, 0.595), tail_lean=0.0, corner=(5.0, 12.0), bed=(0.655, 0.968),
    cladding=True, tall_lamps=True,
)  # fmt: skip
SHAPES = (SEDAN, SUV, HATCHBACK, PICKUP, VAN)

GLASS: Material = (0.012, 0.015, 0.018, 0.52)
BLACK: Material = (0.012, 0.012, 0.013, 0.25)
RUBBER: Material = (0.016, 0.016, 0.017, 0.18)
SHADE: Material = (0.004, 0.004, 0.004, 0.0)
CHROME: Material = (0.30, 0.30, 0.31, 0.95)
LAMP: Material = (0.55, 0.57, 0.60, 0.85)
TAIL_LAMP: Material = (0.42, 0.012, 0.012, 0.5)
AMBER: Material = (0.75, 0.26, 0.03, 0.6)
PLATE: Material = (0.75, 0.75, 0.72, 0.2)


def _smooth(low: float, high: float, value: npt.ArrayLike) -> Array:
    """Hermite step: 0 below `low`, 1 above `high` (or the reverse if low > high)."""
    share = np.clip((np.asarray(value, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _unit(vectors: Array) -> Array:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), np.float32)


# ------------------------------------------------------------------------------------------------- the loft of the body


@dataclass(frozen=True, kw_only=True)
class Stations:
    """The body's cross-sections; every field is float32 of shape (stations,), heights and widths in metres."""

    share: Array
    x: Array
    half_width: Array
    belt: Array
    roof: Array
    sunk: Array

    @property
    def rail(self) -> Array:
        """Half width at the roof rail: the sides lean in (tumblehome) as far as the greenhouse is high."""
        return np.asarray(self.half_width * (0.875 - 0.27 * (self.roof - self.belt)), np.float32)


def _profile(curve: Curve, shares: npt.NDArray[np.float64], softness: float) -> Array:
    """A polyline with rounded corners: `curve` at `shares`, averaged over about +-`softness`."""
    nodes = np.asarray(curve)
    offsets = np.linspace(-1.6, 1.6, 15)
    weights = np.exp(-(offsets**2))
    samples = np.interp(shares[:, None] + softness * offsets, nodes[:, 0], nodes[:, 1])
    return np.asarray(samples @ (weights / weights.sum()), np.float32)


def _sample_stations(shape: Shape, shares: npt.NDArray[np.float64]) -> Stations:
    corner = np.where(shares < 0.5, *shape.corner)
    half_width = 0.5 * shape.width * np.maximum(1 - np.abs(2 * shares - 1) ** corner, 0) ** (1 / corner)
    belt = shape.height * _profile(shape.belt, shares, 0.012)
    roof = shape.height * _profile(shape.roof, shares, 0.014)
    # Outside the greenhouse the "roof" is the bonnet or boot lid, crowned a little above its edges.
    ends = np.minimum(shares, 1 - shares)
    # Rounds the front edge of the bonnet and the back edge of the boot lid.
    belt = belt - 0.035 * np.exp(-ends / 0.012) - 0.04 * (1 - 2 * half_width / shape.width)
    crown = belt + 0.01 + 0.035 * _smooth(0.0, 0.08, ends)
    roof = np.where((shares < shape.roof[0][0]) | (shares > shape.roof[-1][0]), crown, np.maximum(roof, crown))
    sunk = np.zeros(len(shares), np.float32)
    if shape.bed:
        front, back = shape.bed
        sunk += 0.5 * _smooth(front - 0.006, front + 0.006, shares) * _smooth(back + 0.004, back - 0.004, shares)
    return Stations(
        share=np.asarray(shares, np.float32),
        x=np.asarray((shares - 0.5) * shape.length, np.float32),
        half_width=np.asarray(half_width, np.float32),
        belt=np.asarray(belt, np.float32),
        roof=np.asarray(roof, np.float32),
        sunk=sunk,
    )


def _place_stations(shape: Shape) -> Stations:
    """Cross-sections at equal steps along the surface, so that nose and tail get as fine a grid as the doors."""
    side = np.linspace(-1, 1, 6001)
    shares = 0.5 + 0.5 * np.sign(side) * (1 - (1 - np.abs(side)) ** 6)  # the width grows steeply at both ends
    fine = _sample_stations(shape, shares)
    steps = [np.diff(part, prepend=part[:1]) for part in (fine.x, fine.half_width, fine.roof, 0.6 * fine.sunk)]
    walked = np.cumsum(np.sqrt(sum(step**2 for step in steps)))
    even = np.interp(np.linspace(0, walked[-1], _STATIONS), walked, shares)
    return _sample_stations(shape, even)


def _section_controls(stations: Stations, clearance: float) -> Array:
    """B-spline control points (y, z) of half a cross-section, floor to roof: shape (points, stations, 2)."""
    width, belt, roof, rail = stations.half_width, stations.belt, stations.roof, stations.rail
    base = np.full_like(width, clearance)
    flank, house, deck = belt - base, roof - belt, roof - stations.sunk
    top = belt + np.maximum(0.8 * house, house - 0.07)
    # Where there is no greenhouse the points of the window pillar lie flat on the bonnet, still in rising order.
    foot, bulge = np.minimum(0.02, 0.5 * house), 0.05 * np.minimum(house / 0.3, 1)
    pillar = [
        (
            (0.905 + bulge * share * (1 - share)) * width + share * (rail - 0.905 * width),
            belt + foot + share * (top - belt - foot),
        )
        for share in (0.0, 0.3, 0.65, 0.92, 1.0)
    ]
    points = [
        (0 * width, base), (0 * width, base), (0 * width, base), (0.6 * width, base), (0.86 * width, base),
        (0.945 * width, base + 0.02), (0.965 * width, base + 0.1), (0.99 * width, base + 0.3 * flank),
        (1.0 * width, base + 0.55 * flank), (0.997 * width, base + 0.74 * flank), (0.985 * width, base + 0.88 * flank),
        (0.968 * width, belt - 0.02), (0.955 * width, belt), (0.93 * width, belt + 0.6 * foot), *pillar, pillar[-1],
        (0.93 * rail, deck - 0.25 * (roof - top)), (0.6 * rail, deck - 0.05 * (roof - top)), *[(0 * width, deck)] * 3,
    ]  # fmt: skip
    return np.asarray([np.stack(point, -1) for point in points], np.float32)


def _spline_basis(controls: int, positions: Array) -> Array:
    """Uniform cubic B-spline weights, shape (positions, controls); `positions` run from 0 to controls - 3."""
    first = np.clip(positions.astype(np.int64), 0, controls - 4)
    t = positions - first
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    basis = np.zeros((len(positions), controls), np.float32)
    for index, weight in enumerate(weights):
        basis[np.arange(len(positions)), first + index] = weight / 6
    return basis


def _loft(shape: Shape, stations: Stations) -> Array:
    """The body's surface: points of shape (stations, ring, 3), the ring running once around each section."""
    controls = _section_controls(stations, shape.clearance)
    fine = np.linspace(0, len(controls) - 3, 2000, dtype=np.float32)
    middle = _spline_basis(len(controls), fine) @ controls[:, _STATIONS // 2]
    walked = np.cumsum(np.linalg.norm(np.diff(middle, axis=0, prepend=middle[:1]), axis=1) + 1e-6)
    walked -= 0.7 * np.minimum(walked, 0.8)  # the floor pan is hardly ever seen: few points there
    half = np.interp(np.linspace(walked[0], walked[-1], _RING // 2 + 1), walked, fine)
    section = np.einsum("pc,csd->spd", _spline_basis(len(controls), np.asarray(half, np.float32)), controls)
    x = np.broadcast_to(stations.x[:, None], section.shape[:2])
    right = np.dstack([x, section])
    left = right[:, -2::-1] * np.asarray([1, -1, 1], np.float32)
    return _snap_to_arches(shape, _lean(shape, stations, np.concatenate([right, left], axis=1)))


def _lean(shape: Shape, stations: Stations, points: Array) -> Array:
    """Bend nose and tail in side view, and the glass in plan view; returns points of the same shape."""
    share = stations.share[:, None]
    x, y, z = np.moveaxis(points, -1, 0)
    low = z - 0.31 * shape.height
    nose = np.maximum(1 - share / 0.2, 0) ** 2
    tail = np.maximum((share - 0.72) / 0.28, 0) ** 2
    x = x + nose * np.where(low > 0, 1.6, 2.6) * low**2
    x = x - tail * np.where(low > 0, 0.35, 1.8) * np.minimum(low, 0.35) ** 2
    x = x - tail * shape.tail_lean * np.maximum(z - stations.belt[:, None], 0)
    house = _smooth(0.05, 0.25, (stations.roof - stations.belt)[:, None])
    bow = 0.13 * (1 - (2 * y / shape.width) ** 2) * _smooth(-0.05, 0.1, z - stations.belt[:, None])
    cowl = _smooth(0.0, 0.25, share) * _smooth(0.62, 0.4, share) * (0.4 + 0.6 * house)
    back = _smooth(0.62, 0.75, share) * house * (0.3 if shape.bed else 0.8) * (shape.rear_window is not None)
    return np.asarray(np.stack([x - bow * cowl + bow * back, y, z], -1), np.float32)


def _arch_radius(shape: Shape) -> float:
    return 1.13 * shape.wheel_radius


def _arch_distance(shape: Shape, x: Array, z: Array) -> Array:
    """How far (x, z) lies inside the nearer wheel arch, in metres; negative outside."""
    rim = _arch_radius(shape)
    distances = [
        rim - np.hypot(x - (axle - 0.5) * shape.length, z - shape.wheel_radius) for axle in shape.axles
    ]  # fmt: skip
    return np.asarray(np.maximum(*distances), np.float32)


def _snap_to_arches(shape: Shape, points: Array) -> Array:
    """Move the vertices next to a wheel arch onto its edge, so that the grid can be cut along it."""
    points = points.copy()
    x, y, z = np.moveaxis(points, -1, 0)
    distance = _arch_distance(shape, x, z)
    near = (np.abs(distance) < _SNAP) & (np.abs(y) > 0.3 * shape.width)
    left = np.abs(x - (shape.axles[0] - 0.5) * shape.length) < np.abs(x - (shape.axles[1] - 0.5) * shape.length)
    axle = (np.where(left, *shape.axles) - 0.5) * shape.length
    radius = _arch_radius(shape)
    scale = radius / np.maximum(radius - distance, 0.1)
    x[near] = (axle + (x - axle) * scale)[near]
    z[near] = (shape.wheel_radius + (z - shape.wheel_radius) * scale)[near]
    return points


def _recess_arches(shape: Shape, points: Array) -> Array:
    """Push the snapped body in behind the wheels."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = (_arch_distance(shape, x, z) > 0.001) & (np.abs(y) > 0.3 * shape.width)
    return np.asarray(np.stack([x, y - 0.27 * np.sign(y) * inside, z], -1), np.float32)


# ---------------------------------------------------------------------------------------------- the other vertex grids


def _wheel(shape: Shape, centre: tuple[float, float, float], angle: float) -> Array:
    """A wheel turned on its axle by `angle`: shape (around, hub to tread to back, 3)."""
    radii = np.interp(np.arange(_RIM_GRID), [0, 5, 6, 9, 10, 11, 12, 13], [0.0, 0.62, 0.67, 0.9, 0.97, 1, 0.99, 0.3])
    depths = np.interp(
        np.arange(_RIM_GRID),
        [0, 2, 5, 6, 8, 9, 10, 11, 12, 13],
        [-0.02, -0.018, -0.035, 0.0, 0.012, 0.008, -0.01, -0.03, -0.2, -0.2],
    )
    turn = np.linspace(0, 2 * np.pi, _SPOKES_GRID)[:, None] + angle
    side = np.sign(centre[1])
    radii = radii * shape.wheel_radius
    return np.asarray(
        np.stack(
            [
                centre[0] + side * radii * np.cos(turn),
                centre[1] + side * np.broadcast_to(depths, (_SPOKES_GRID, _RIM_GRID)),
                centre[2] + radii * np.sin(turn),
            ],
            -1,
        ),
        np.float32,
    )


def _mirror(centre: tuple[float, float, float]) -> Array:
    """A door mirror: a superellipsoid with its arm pulled out towards the door, shape (around, along, 3)."""
    side = np.sign(centre[1])
    turn = np.linspace(0, 2 * np.pi, _MIRROR_GRID)[:, None]
    rise = np.linspace(-np.pi / 2, np.pi / 2, _MIRROR_GRID)

    def power(values: Array) -> Array:
        return np.asarray(np.sign(values) * np.abs(values) ** 0.6, np.float32)

    ring = power(np.cos(rise))
    x = 0.06 * ring * power(np.cos(turn)) + 0.02 * np.sin(rise)
    z = 0.075 * ring * power(np.sin(turn))
    y = 0.11 * np.broadcast_to(power(np.sin(rise)), x.shape)
    arm = _smooth(-0.04, -0.1, y)
    z = z * (1 - 0.75 * arm) - 0.05 * arm
    y = y - 0.08 * arm
    return np.asarray(np.stack([centre[0] + x, centre[1] + side * y, centre[2] + z], -1), np.float32)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """All grids of a car in one atlas of shape (rows, columns, 3); `quads` index its flattened cells.

    `parts` tells wheels and mirrors (True) from the body (False), one bool per quad. Corners run clockwise as seen on
    the screen from outside. `places` are where the grids lie: the body, four wheels, two mirrors.
    """

    points: Array
    normals: Array
    quads: npt.NDArray[np.int32]
    parts: npt.NDArray[np.bool_]
    places: tuple[Place, ...]


def _grid_normals(grid: Array, closed: int) -> tuple[Array, npt.NDArray[np.bool_], bool]:
    """What a surface grid, closed along axis `closed`, faces.

    Returns:
        Outward unit normals, shaped like `grid`, weighted by the area of the quads around each vertex; which quads
        have an area at all, bool (rows - 1, columns - 1); whether quads must keep their order to be seen from outside.
    """
    faces = np.cross(grid[1:, 1:] - grid[:-1, :-1], grid[:-1, 1:] - grid[1:, :-1])
    around = np.pad(faces, [(1, 1) if axis == closed else (0, 0) for axis in range(3)], mode="wrap")
    around = np.pad(around, [(1, 1) if axis == 1 - closed else (0, 0) for axis in range(3)])
    normals = _unit(around[1:, 1:] + around[1:, :-1] + around[:-1, 1:] + around[:-1, :-1])
    outward = float(np.sum(normals * (grid - grid.mean(axis=(0, 1))))) > 0
    return (normals if outward else -normals), np.linalg.norm(faces, axis=-1) > _SLIVER, outward


def _build_mesh(shape: Shape, stations: Stations, angles: Sequence[float]) -> Mesh:
    body = _loft(shape, stations)
    grids = [body]
    for axle in shape.axles:
        track = float(np.interp(axle, stations.share, stations.half_width)) - 0.012
        for side in (-1, 1):
            centre = ((axle - 0.5) * shape.length, side * track, shape.wheel_radius)
            grids.append(_wheel(shape, centre, angles[len(grids) - 1]))
    share = shape.side_window[0] + 0.045
    belt = float(np.interp(share, stations.share, stations.belt))
    for side in (-1, 1):
        centre = ((share - 0.5) * shape.length, side * (0.5 * shape.width + 0.085), belt + 0.085)
        grids.append(_mirror(centre))
    mesh = _pack(grids)
    mesh.points[mesh.places[0]] = _recess_arches(shape, body)  # after the normals, which stay those of the paint
    return _split_at_arches(shape, body, mesh)


def _split_at_arches(shape: Shape, body: Array, mesh: Mesh) -> Mesh:
    """Cut quads that reach from the fender into a recess in two triangles, along the arch's edge."""
    side = np.zeros(mesh.points.shape[:2], np.int32)
    distance = _arch_distance(shape, body[..., 0], body[..., 2])
    side[mesh.places[0]] = np.where(np.abs(distance) > 0.001, np.sign(distance), 0)
    corners = side.reshape(-1)[mesh.quads]
    across = (corners.min(axis=1) < 0) & (corners.max(axis=1) > 0)
    # Roll each quad so that its second and fourth corner are the ones on the edge; a triangle repeats a corner.
    roll = np.where(np.abs(corners[across][:, ::2]).sum(axis=1) < 2, 1, 0)[:, None]
    quads = np.take_along_axis(mesh.quads[across], (np.arange(4) + roll) % 4, axis=1)
    halves = np.concatenate([quads[:, [0, 1, 3, 3]], quads[:, [1, 2, 3, 3]]])
    # Recesses are shown from behind too: a bent quad that is seen almost edge-on may pass for one that faces away.
    behind = np.concatenate([mesh.quads[~across & (corners.max(axis=1) > 0)], halves])[:, ::-1]
    return replace(
        mesh,
        quads=np.concatenate([mesh.quads[~across], halves, behind]),
        parts=np.concatenate([mesh.parts[~across], np.zeros(len(halves) + len(behind), np.bool_)]),
    )


def _pack(grids: Sequence[Array]) -> Mesh:
    """Body on top, the other grids side by side below it; margins repeat each grid's edge for the interpolation."""
    margin = 2
    rows = len(grids[0]) + max(len(grid) for grid in grids[1:]) + 4 * margin
    points = np.zeros((rows, grids[0].shape[1] + 2 * margin, 3), np.float32)
    normals = np.zeros_like(points)
    index = np.arange(points[..., 0].size, dtype=np.int32).reshape(points.shape[:2])
    quads: list[npt.NDArray[np.int32]] = []
    places: list[Place] = []
    row, column = margin, margin
    for number, grid in enumerate(grids):
        place = slice(row, row + grid.shape[0]), slice(column, column + grid.shape[1])
        wide = slice(place[0].start - margin, place[0].stop + margin), slice(column - margin, place[1].stop + margin)
        facing, solid, outward = _grid_normals(grid, closed=0 if number else 1)
        edges = ((margin, margin), (margin, margin), (0, 0))
        points[wide], normals[wide] = np.pad(grid, edges, mode="edge"), np.pad(facing, edges, mode="edge")
        cells = index[place]
        around = [cells[:-1, :-1], cells[1:, :-1], cells[1:, 1:], cells[:-1, 1:]]
        quads.append(np.stack(around if outward else around[::-1], -1)[solid])
        places.append(place)
        row, column = len(grids[0]) + 3 * margin, (place[1].stop + 2 * margin if number else margin)
    return Mesh(
        points=points,
        normals=normals,
        quads=np.concatenate(quads),
        parts=np.arange(sum(map(len, quads))) >= len(quads[0]),
        places=tuple(places),
    )


# --------------------------------------------------------------------------------------------------------- the texture


class _Painter:
    """Lays materials over a texture; areas are given as distances inside their edge, in metres, and end softly."""

    def __init__(self, shape: tuple[int, ...], material: Material, soft: float) -> None:
        self.texture = np.empty((*shape[:2], 4), np.float32)
        self.texture[:] = material
        self.soft = soft

    def fill(self, inside: npt.ArrayLike, material: Material, opacity: float = 1.0) -> None:
        distance = np.broadcast_to(np.asarray(inside, np.float32), self.texture.shape[:2])
        touched = distance > -0.5 * self.soft
        rows, columns = (np.flatnonzero(touched.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        share = opacity * np.clip(distance[area] / self.soft + 0.5, 0, 1)[..., None]
        self.texture[area] += (np.asarray(material, np.float32) - self.texture[area]) * share

    def line(self, distance: npt.ArrayLike, inside: npt.ArrayLike, width: float = 0.009) -> None:
        """A shut line where `distance` is 0, kept to the area `inside`."""
        self.fill(np.minimum(0.5 * width - np.abs(distance), inside), SHADE, 0.85)


def _box(*bounds: tuple[Array, float, float]) -> Array:
    """How far inside `low < value < high`, for every (value, low, high)."""
    distances = [np.minimum(value - low, high - value) for value, low, high in bounds]
    return np.asarray(np.minimum.reduce(np.broadcast_arrays(*distances)), np.float32)


@dataclass(frozen=True, kw_only=True)
class _Skin:
    """Where each texel of the body lies: (rows, columns) coordinates, unit normals, and its section's (rows, 1)."""

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


def _lay_out_skin(points: Array, stations: Stations, texels: int) -> _Skin:
    half = _RING // 2 + 1  # the car is symmetric: one side is enough
    size = (half * texels, points.shape[0] * texels)
    normals, _, _ = _grid_normals(points, closed=1)
    position, facing = (
        np.asarray(cv2.resize(grid[:, :half], size, interpolation=cv2.INTER_LINEAR), np.float32)
        for grid in (points, normals)
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
        painter.fill(np.minimum(skin.sunk - 0.1, 0.86 * 0.5 * shape.width - skin.y)
                     + np.where(skin.z > skin.belt + 0.005, -1, 0), BLACK)  # fmt: skip
    arch = _arch_distance(shape, skin.x, skin.z) + np.where(skin.y < 0.3 * shape.width, -1, 0)
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
    outside_arch = -_arch_distance(shape, skin.x, skin.z) - 0.05
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
    """Windscreen, rear window and side windows; what is left of the paint between them are the pillars."""
    start, end = ((share - 0.5) * shape.length for share in shape.side_window)
    rise = skin.z - skin.belt
    bottom = 0.035 + 0.05 * _smooth(0.75, 1.0, (skin.x - start) / (end - start))
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
    cell = size[1] / _RIM_GRID
    turn = (np.arange(size[0], dtype=np.float32)[:, None] - 0.5 * (cell - 1)) * (2 * np.pi / (size[0] - cell))
    ring = (np.arange(size[1], dtype=np.float32)[None] + 0.5) / cell - 0.5
    radius = np.interp(ring, [0, 5, 6, 9, 10, 11], [0.0, 0.62, 0.67, 0.9, 0.97, 1]).astype(np.float32)
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


def _paint_car(shape: Shape, livery: Livery, mesh: Mesh, stations: Stations, texels: int) -> Array:
    """The whole atlas' texture: float32 (rows * texels, columns * texels, 4), a `Material` per texel."""
    texture = np.zeros((mesh.points.shape[0] * texels, mesh.points.shape[1] * texels, 4), np.float32)
    skin = _lay_out_skin(_loft(shape, stations), stations, texels)
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


# ------------------------------------------------------------------------------------------------ camera and rasteriser


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
        return np.asarray([0, -self.distance, self.height], np.float32)

    @property
    def axes(self) -> Array:
        """World to camera: rows are right, down, forward."""
        cosine, sine = self.tilt
        return np.asarray([[1, 0, 0], [0, -sine, -cosine], [0, cosine, -sine]], np.float32)

    def project(self, points: Array) -> Array:
        """World points (n, 3) to (n, 3): x and y in pixels (0 is the image's corner), 1 / depth."""
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


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Part of the image, in pixels, drawn at `scale` samples per pixel."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return round((self.bottom - self.top) * self.scale), round((self.right - self.left) * self.scale)

    @property
    def area(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def samples(self, projected: Array) -> Array:
        """Image coordinates to this window's sample grid, in OpenCV's convention: 0 is the first sample's centre."""
        moved = projected.copy()
        moved[:, 0] = (projected[:, 0] - self.left) * self.scale - 0.5
        moved[:, 1] = (projected[:, 1] - self.top) * self.scale - 0.5
        return moved


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Which quad each sample sees (0: none), and how values run over a quad: value = fit @ (x, y, 1).

    ids: int32 (height, width). fits: float32 (values, 3, quads + 1).
    """

    ids: npt.NDArray[np.int32]
    fits: Array

    def value(self, index: int) -> Array:
        """One value for every sample: float32 (height, width)."""
        slope_x, slope_y, offset = self.fits[index]
        columns = np.arange(self.ids.shape[1], dtype=np.float32)
        result = np.empty(self.ids.shape, np.float32)
        for block in _row_blocks(len(result)):
            ids, out = self.ids[block], result[block]
            rows = np.arange(block.start, block.start + len(ids), dtype=np.float32)[:, None]
            np.take(slope_x, ids, out=out, mode="clip")
            out *= columns
            out += np.take(slope_y, ids, mode="clip") * rows
            out += np.take(offset, ids, mode="clip")
        return result


def _row_blocks(rows: int) -> Iterator[slice]:
    """Row ranges small enough for their arrays to stay in the processor's cache, which halves the time."""
    return (slice(start, start + 32) for start in range(0, rows, 32))


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


def _rasterise(samples: Array, quads: npt.NDArray[np.int32], values: Array, shape: tuple[int, int]) -> _Layer:
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
    return _Layer(ids=ids, fits=_fit(corners[seen, :, :2], values[quads[seen]]))


def _merge(back: _Layer, front: _Layer, inverse_depth: int) -> _Layer:
    """Depth test of two layers, sample by sample; value number `inverse_depth` is 1 / depth, 0 where no quad is."""
    places = np.flatnonzero(front.ids)
    rows, columns = (part.astype(np.float32) for part in np.divmod(places, front.ids.shape[1]))

    def near(layer: _Layer) -> Array:
        ids = layer.ids.take(places)
        slope_x, slope_y, offset = (fit.take(ids) for fit in layer.fits[inverse_depth])
        return np.asarray(slope_x * columns + slope_y * rows + offset, np.float32)

    wins = places[near(front) > near(back)]
    ids = back.ids.copy()
    ids.flat[wins] = front.ids.flat[wins] + back.fits.shape[2]
    return _Layer(ids=ids, fits=np.concatenate([back.fits, front.fits], axis=2))


# ------------------------------------------------------------------------------------------------------------ the light


def _environment(direction: Array) -> Array:
    """The studio as the paint mirrors it, linear: floor, walls with a strip light, soft boxes on the ceiling."""
    x, y, up = np.moveaxis(direction, -1, 0)
    wall = 0.22 + 0.4 * _smooth(0.0, 0.7, up) + 0.12 * _smooth(-0.2, 0.9, y)
    wall = wall + 1.3 * np.exp(-(((up - 0.36) / 0.12) ** 2)) * _smooth(0.95, 0.7, np.abs(x))
    height = np.maximum(up, 0.05)
    for place in (-1.0, 0.35):
        box = _smooth(1.8, 1.0, np.abs(x / height)) * _smooth(0.44, 0.16, np.abs(y / height - place))
        wall = wall + 1.9 * box * _smooth(0.2, 0.35, up)
    floor = 0.5 - 0.42 * _smooth(0.05, 0.7, -up)
    return np.asarray(floor + (wall - floor) * _smooth(-0.05, 0.05, up), np.float32)


def _light(points: Array, normals: Array, camera: Camera) -> Array:
    """Light on every vertex: diffuse, mirrored, mirrored at grazing angles; float32 (rows, columns, 3), linear."""
    view = _unit(camera.position - points)
    cosine = np.sum(normals * view, axis=-1, keepdims=True)
    mirrored = _environment(_unit(2 * cosine * normals - view))
    fresnel = 0.045 + 0.955 * (1 - np.clip(np.abs(cosine[..., 0]), 0, 1)) ** 5
    key = np.maximum(normals @ _unit(np.asarray([-0.45, -0.6, 0.85], np.float32)), 0)
    up = normals[..., 2]
    diffuse = 0.34 + 0.26 * up + 0.5 * key + 0.1 * _smooth(0.0, -0.9, up)
    diffuse = diffuse * (0.55 + 0.45 * _smooth(0.05, 0.55, points[..., 2]))  # the floor hides light from low parts
    return np.asarray(np.stack([diffuse, mirrored, mirrored * fresnel], -1), np.float32)


def _shade(texture: Array, light: Array) -> Bytes:
    """Colour of every texel as 8-bit RGB; gamma 2."""
    fine = cv2.resize(light, (texture.shape[1], texture.shape[0]), interpolation=cv2.INTER_CUBIC)
    skin = np.empty((*texture.shape[:2], 3), np.uint8)
    for block in _row_blocks(len(texture)):
        diffuse, mirrored, grazing = np.moveaxis(fine[block], -1, 0)
        gloss = texture[block, :, 3]
        shine = gloss * (grazing + 0.9 * gloss * gloss * mirrored)
        linear = texture[block, :, :3] * diffuse[..., None] + shine[..., None]
        cv2.convertScaleAbs(cv2.sqrt(np.maximum(linear, 0)), skin[block], alpha=255)
    return skin


# ----------------------------------------------------------------------------------------------------------- the studio

_SHADOW_REACH, _SHADOW_CELLS = 4.0, 400  # the floor's shadow map spans +-reach metres
_TURNTABLE, _WALL = 2.85, 5.2  # radius of the disc, distance of the wall behind the axis


def _draw_studio(camera: Camera, tint: Array) -> Bytes:
    """The empty studio: 8-bit RGB of the camera's size."""
    coarse = 2 if min(camera.size) >= 512 else 1  # nothing in the studio is as fine as two pixels of a large image
    height, width = (-(-length // coarse) for length in camera.size)
    focal = camera.focal / coarse
    columns = (np.arange(width, dtype=np.float32) + 0.5 - 0.5 * width) / focal
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - 0.5 * height) / focal
    cosine, sine = camera.tilt
    along, rise = cosine - rows * sine, -rows * cosine - sine
    reach = camera.height / np.maximum(-rise, 1e-4)  # ray length to the floor
    x, y = columns * reach, along * reach - camera.distance
    radius = np.hypot(x, y)
    step = np.maximum(np.abs(np.gradient(radius, axis=0)) + np.abs(np.gradient(radius, axis=1)), 0.004)
    floor = 0.82 - 0.032 * np.minimum(radius, 6) + 0.05 * np.exp(-(radius**2) / 5)
    disc = np.clip((_TURNTABLE - radius) / step + 0.5, 0, 1)
    floor += 0.035 * disc
    for ring, half, tone in ((_TURNTABLE, 0.016, -0.34), (_TURNTABLE + 0.035, 0.018, 0.1), (2.3, 0.004, -0.1)):
        floor += tone * np.clip((half - np.abs(radius - ring)) / step + 0.5, 0, 1) * np.minimum(1, 2 * half / step)
    wall_reach = (_WALL + camera.distance) / along
    above, aside = camera.height + rise * wall_reach, columns * wall_reach
    wall = 0.88 - 0.05 * np.abs(above - 1.2) - 0.005 * aside**2 + 0.05 * np.exp(-((above - 1.4) ** 2) / 1.5)
    wall -= 0.13 * np.exp(-np.maximum(above, 0) / 0.10)
    cove = _smooth(-0.12, 0.22, above)
    tone = floor + (wall - floor) * cove
    tone *= 1 - 0.16 * ((columns / columns[-1]) ** 2 + (rows / rows[-1]) ** 2) ** 1.5 / 2.8
    colour = tone[..., None] * (tint[0] + (tint[1] - tint[0]) * cove[..., None])
    image = np.asarray(np.clip(255 * colour + 0.5, 0, 255), np.uint8)
    return np.asarray(cv2.resize(image, camera.size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def _shadow_map(shape: Shape, stations: Stations) -> Bytes:
    """Light that reaches the floor round the car, uint8 (cells, cells), 255 is all of it; nose towards column 0."""
    cell = 2 * _SHADOW_REACH / _SHADOW_CELLS

    def cells(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.int32]:
        metres = np.stack(np.broadcast_arrays(np.asarray(x), np.asarray(y)), -1)
        return np.rint((metres + _SHADOW_REACH) / cell).astype(np.int32)

    body, tyres = np.zeros((2, _SHADOW_CELLS, _SHADOW_CELLS), np.float32)
    width = 0.96 * stations.half_width
    outline = np.concatenate([cells(0.985 * stations.x, width), cells(0.985 * stations.x, -width)[::-1]])
    cv2.fillPoly(body, [outline], 1.0)
    for axle in shape.axles:
        for side in (-1, 1):
            x, y = (axle - 0.5) * shape.length, side * (0.5 * shape.width - 0.14)
            low, high = cells(x - 0.16, y - 0.11), cells(x + 0.16, y + 0.11)
            cv2.rectangle(tyres, low.tolist(), high.tolist(), 1.0, -1)

    def blur(mask: Array, metres: float) -> Array:
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), metres / cell), np.float32)

    light = (1 - 0.45 * blur(body, 0.34)) * (1 - 0.72 * blur(body, 0.10)) * (1 - 0.75 * blur(tyres, 0.05))
    return np.asarray(255 * light + 0.5, np.uint8)


def _cast_shadow(shadow: Bytes, camera: Camera, yaw: float) -> Bytes:
    """The shadow map seen by the camera: uint8 (height, width), 255 where the floor is fully lit."""
    cell = 2 * _SHADOW_REACH / _SHADOW_CELLS
    to_metres = np.asarray([[cell, 0, -_SHADOW_REACH], [0, cell, -_SHADOW_REACH], [0, 0, 1]])
    turn = np.eye(3)
    turn[:2, :2] = _rotation(yaw)[:2, :2]
    # OpenCV counts from the first pixel's centre, the camera from the image's corner.
    centre = np.asarray([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    matrix = centre @ camera.floor_homography() @ turn @ to_metres
    height, width = camera.size
    return np.asarray(
        cv2.warpPerspective(shadow, matrix, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=255),
        np.uint8,
    )


def _rotation(yaw: float) -> Array:
    """Car frame to world frame; at yaw 0 the nose points at the camera."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.asarray([[-sine, cosine, 0], [cosine, sine, 0], [0, 0, 1]], np.float32)


def _noise_table(spread: float) -> Bytes:
    """Maps a uniform byte to Gaussian noise round 128."""
    bell = NormalDist(128, spread)
    return np.asarray([round(bell.inv_cdf((byte + 0.5) / 256)) for byte in range(256)], np.uint8)


# --------------------------------------------------------------------------------------------------- one car, one view


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
    shape = _vary_shape(SHAPES[turn % len(SHAPES)], rng)
    livery = _pick_livery(turn, rng)
    stations = _place_stations(shape)
    mesh = _build_mesh(shape, stations, rng.uniform(0, 2 * np.pi, 4).tolist())
    height, width = size
    texels = int(np.clip(round(width / 240), 1, 8))
    distance = 6.0 * (shape.length / 4.6) ** 0.6 * (shape.height / 1.5) ** 0.15 + rng.uniform(-0.1, 0.1)
    camera = Camera(
        size=size,
        distance=distance,
        height=1.5 + rng.uniform(-0.1, 0.1),
        target=0.46 * shape.height,
        focal=1.0 * min(width, 1.498 * height),
    )
    tint = np.asarray([[1.0, 0.99, 0.965], [0.965, 0.985, 1.0]], np.float32) * rng.uniform(0.95, 1.02)
    return Scene(
        mesh=mesh,
        texture=_paint_car(shape, livery, mesh, stations, texels),
        camera=camera,
        studio=_draw_studio(camera, tint.astype(np.float32)),
        shadow=_shadow_map(shape, stations),
    )


def _vary_shape(shape: Shape, rng: np.random.Generator) -> Shape:
    length, width, height, wheel = rng.uniform(0.965, 1.035, 4)
    return replace(
        shape,
        length=shape.length * length,
        width=shape.width * (0.5 + 0.5 * width),
        height=shape.height * height,
        wheel_radius=shape.wheel_radius * wheel,
    )


def _jitter(colour: tuple[float, float, float], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The colour a little lighter or darker, and a little off its hue."""
    return np.asarray(colour) * rng.uniform(0.85, 1.15) * rng.uniform(0.975, 1.025, 3)


def _pick_livery(turn: int, rng: np.random.Generator) -> Livery:
    paints: tuple[tuple[float, float, float], ...] = (
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
    red, green, blue = (float(part) for part in _jitter(paints[turn % len(paints)], rng))
    two_tone = turn % 7 == 3
    rim = rng.uniform(0.1, 0.4) if rng.random() < 0.8 else 0.02
    return Livery(
        paint=(red, green, blue, 0.5),
        lower=(0.05, 0.05, 0.055, 0.4) if two_tone else None,
        rim=(rim, rim, rim * 1.02, 0.7),
        spokes=int(rng.choice([5, 5, 6, 7, 10])),
    )


def draw_view(scene: Scene, *, view: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Draw view `view` of 0 .. 15; the turntable stands at 22.5 degrees times `view`, the nose towards us at 0.

    Returns:
        The picture, uint8 (height, width, 3) RGB with sensor noise, and its mask, uint8 (height, width): 255 where the
        car covers at least half of the pixel, else 0; the car without its shadow and reflection.
    """
    yaw = 2 * np.pi * view / VIEWS
    points = (scene.mesh.points.reshape(-1, 3) @ _rotation(yaw).T).astype(np.float32)
    normals = (scene.mesh.normals.reshape(-1, 3) @ _rotation(yaw).T).astype(np.float32)
    light = _light(points, normals, scene.camera).reshape(*scene.mesh.points.shape[:2], 3)
    skin = _shade(scene.texture, light)
    picture = scene.studio.copy()
    _lay_floor(picture, scene, points, skin, yaw)
    mask = np.zeros(scene.camera.size, np.uint8)
    _lay_car(picture, mask, scene, points, skin)
    exposure = float(rng.uniform(0.95, 1.05))
    grain = np.frombuffer(rng.bytes(picture.size), np.uint8).reshape(picture.shape)
    noise = cv2.LUT(grain, _noise_table(1.4))
    return np.asarray(cv2.addWeighted(picture, exposure, noise, 1.0, -128.0), np.uint8), mask


def _window(camera: Camera, projected: Array, used: npt.NDArray[np.int32], scale: float) -> _Window:
    """The part of the image that holds the used points, widened to whole pixels."""
    height, width = camera.size
    kept = np.zeros(len(projected), np.bool_)
    kept[used] = True
    corners = projected[kept, :2]
    left, top = np.clip(np.floor(corners.min(axis=0)) - 2, 0, [width - 2, height - 2]).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 2, [left + 2, top + 2], [width, height]).astype(int)
    return _Window(left=int(left), top=int(top), right=int(right), bottom=int(bottom), scale=scale)


def _texture_places(scene: Scene) -> Array:
    """Where in the texture every vertex lies: (vertices, 2) as x, y of OpenCV's pixel centres."""
    rows, columns = scene.mesh.points.shape[:2]
    texels = scene.texture.shape[0] // rows
    place = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return np.asarray((place + 0.5) * texels - 0.5, np.float32)


def _look_up(layer: _Layer, skin: Bytes) -> Bytes:
    """The colour of every sample: uint8 (height, width, 3); black where there is no quad.

    There the texture's first texel is looked up, which lies in the atlas' margin and is black.
    """
    x, y = layer.value(0), layer.value(1)
    return np.asarray(cv2.remap(skin, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _lay_car(picture: Bytes, mask: Bytes, scene: Scene, points: Array, skin: Bytes) -> None:
    """Draw the car over `picture` and into `mask`, both in place."""
    mesh = scene.mesh
    projected = scene.camera.project(points)
    window = _window(scene.camera, projected, mesh.quads, _SUPERSAMPLING)
    samples = window.samples(projected)
    values = np.concatenate([_texture_places(scene), projected[:, 2:]], axis=1)
    body, parts = (
        _rasterise(samples, mesh.quads[mesh.parts == part], values, window.shape) for part in (False, True)
    )  # fmt: skip
    layer = _merge(body, parts, inverse_depth=2)
    rows, columns = window.bottom - window.top, window.right - window.left
    colour = cv2.resize(_look_up(layer, skin), (columns, rows), interpolation=cv2.INTER_AREA)
    covered = cv2.resize((layer.ids > 0).astype(np.uint8) * 255, (columns, rows), interpolation=cv2.INTER_AREA)
    behind = picture[window.area]
    share = cv2.merge([255 - covered] * 3)
    picture[window.area] = cv2.add(colour, cv2.multiply(behind, share, scale=1 / 255))
    mask[window.area] = np.where(covered >= 127, 255, 0)


def _lay_floor(picture: Bytes, scene: Scene, points: Array, skin: Bytes, yaw: float) -> None:
    """Mirror the car in the glossy floor and let it cast its shadow, in place."""
    camera = scene.camera
    mirrored = points * np.asarray([1, 1, -1], np.float32)
    projected = camera.project(mirrored)
    low = points[:, 2] < 1.15  # what is higher up has faded away
    quads = scene.mesh.quads[low[scene.mesh.quads[:, 0]]]
    window = _window(camera, projected, quads, 0.5)
    values = np.concatenate([_texture_places(scene), points[:, 2:]], axis=1)
    layer = _rasterise(window.samples(projected), quads[:, ::-1], values, window.shape)
    strength = 0.30 * np.exp(-np.maximum(layer.value(2), 0) / 0.42) * (layer.ids > 0)
    sharp = np.dstack([_look_up(layer, skin) * strength[..., None], 255 * (1 - strength)]).astype(np.float32)
    blurred = np.rint(cv2.GaussianBlur(sharp, (0, 0), max(camera.focal / 900, 0.3))).astype(np.uint8)
    size = window.right - window.left, window.bottom - window.top
    glow = np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    area = window.area
    through = cv2.merge([glow[..., 3]] * 3)
    picture[area] = cv2.add(cv2.multiply(picture[area], through, scale=1 / 255), np.ascontiguousarray(glow[..., :3]))
    shadow = _cast_shadow(scene.shadow, camera, yaw)
    rows = np.flatnonzero(shadow.min(axis=1) < 255)
    if len(rows):
        lit = slice(int(rows[0]), int(rows[-1]) + 1)
        picture[lit] = cv2.multiply(picture[lit], cv2.merge([shadow[lit]] * 3), scale=1 / 255)
