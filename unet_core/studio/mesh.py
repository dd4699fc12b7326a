"""All surfaces of a car, body, wheels and mirrors, as one atlas of vertices and the quads between them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unet_core.studio.arches import arch_distance, recess_arches
from unet_core.studio.arrays import Array, smooth, unit
from unet_core.studio.loft import Stations, loft
from unet_core.studio.shape import Shape

Place = tuple[slice, slice]
"""Rows and columns of the atlas."""

_AROUND = 49  # points around a wheel
RIM_GRID = 14
"""Points of a wheel from hub over tread to the back."""
RIM_BENDS = (0, 5, 6, 9, 10, 11), (0.0, 0.62, 0.67, 0.9, 0.97, 1.0)
"""Numbers of the points that lie at each share of the wheel's radius, up to the tread."""
_MIRROR_GRID = 13
_SLIVER = 1e-5  # square metres: smaller quads show no more than the rounding of their normals


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """All grids of a car in one atlas of shape (rows, columns, 3); `quads` index its flattened cells.

    `body` is the body's grid (stations, ring, 3) before its arches are pushed in; the paint is laid out on it.
    `parts` tells wheels and mirrors (True) from the body (False), one bool per quad. Corners run clockwise as seen on
    the screen from outside. `places` are the places of the grids: the body, four wheels, two mirrors.
    """

    body: Array
    points: Array
    normals: Array
    quads: npt.NDArray[np.int32]
    parts: npt.NDArray[np.bool_]
    places: tuple[Place, ...]


def build_mesh(shape: Shape, stations: Stations, angles: Sequence[float]) -> Mesh:
    """The mesh of a car whose four wheels are turned on their axles by `angles`, in radians."""
    grids = [loft(shape, stations)]
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
    mesh.points[mesh.places[0]] = recess_arches(shape, mesh.body)  # after the normals, which stay those of the paint
    return _split_at_arches(shape, mesh)


def _wheel(shape: Shape, centre: tuple[float, float, float], angle: float) -> Array:
    """A wheel turned on its axle by `angle`: shape (around, hub to tread to back, 3)."""
    bends, shares = RIM_BENDS
    radii = np.interp(np.arange(RIM_GRID), [*bends, 12, 13], [*shares, 0.99, 0.3])
    depths = np.interp(
        np.arange(RIM_GRID),
        [0, 2, 5, 6, 8, 9, 10, 11, 12, 13],
        [-0.02, -0.018, -0.035, 0.0, 0.012, 0.008, -0.01, -0.03, -0.2, -0.2],
    )
    turn = np.linspace(0, 2 * np.pi, _AROUND)[:, None] + angle
    side = np.sign(centre[1])
    radii = radii * shape.wheel_radius
    return np.asarray(
        np.stack(
            [
                centre[0] + side * radii * np.cos(turn),
                centre[1] + side * np.broadcast_to(depths, (_AROUND, RIM_GRID)),
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
    arm = smooth(-0.04, -0.1, y)
    z = z * (1 - 0.75 * arm) - 0.05 * arm
    y = y - 0.08 * arm
    return np.asarray(np.stack([centre[0] + x, centre[1] + side * y, centre[2] + z], -1), np.float32)


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
        body=grids[0],
        points=points,
        normals=normals,
        quads=np.concatenate(quads),
        parts=np.arange(sum(map(len, quads))) >= len(quads[0]),
        places=tuple(places),
    )


def _grid_normals(grid: Array, closed: int) -> tuple[Array, npt.NDArray[np.bool_], bool]:
    """Find the outside of a surface grid that is closed along axis `closed`.

    Returns:
        Outward unit normals, shaped like `grid`, weighted by the area of the quads around each vertex; a mask of
        the quads that have an area, bool (rows - 1, columns - 1); True if corners run as seen from outside.
    """
    faces = np.cross(grid[1:, 1:] - grid[:-1, :-1], grid[:-1, 1:] - grid[1:, :-1])
    around = np.pad(faces, [(1, 1) if axis == closed else (0, 0) for axis in range(3)], mode="wrap")
    around = np.pad(around, [(1, 1) if axis == 1 - closed else (0, 0) for axis in range(3)])
    normals = unit(around[1:, 1:] + around[1:, :-1] + around[:-1, 1:] + around[:-1, :-1])
    outward = float(np.sum(normals * (grid - grid.mean(axis=(0, 1))))) > 0
    return (normals if outward else -normals), np.linalg.norm(faces, axis=-1) > _SLIVER, outward


def _split_at_arches(shape: Shape, mesh: Mesh) -> Mesh:
    """Cut quads that reach from the fender into a recess in two triangles, along the arch's edge."""
    side = np.zeros(mesh.points.shape[:2], np.int32)
    distance = arch_distance(shape, mesh.body[..., 0], mesh.body[..., 2])
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
