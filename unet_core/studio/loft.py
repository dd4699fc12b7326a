"""The body's surface: cross-sections along the car, and the skin drawn over them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_core.studio.arches import snap_to_arches
from unet_core.studio.arrays import Array, smooth
from unet_core.studio.shape import Curve, Shape

_STATIONS = 176  # cross-sections along the car
RING = 113
"""Points around each cross-section."""


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


def place_stations(shape: Shape) -> Stations:
    """Cross-sections at equal steps along the surface, so that nose and tail get as fine a grid as the doors."""
    side = np.linspace(-1, 1, 6001)
    shares = 0.5 + 0.5 * np.sign(side) * (1 - (1 - np.abs(side)) ** 6)  # the width grows steeply at both ends
    fine = _sample_stations(shape, shares)
    steps = [np.diff(part, prepend=part[:1]) for part in (fine.x, fine.half_width, fine.roof, 0.6 * fine.sunk)]
    walked = np.cumsum(np.sqrt(sum(step**2 for step in steps)))
    even = np.interp(np.linspace(0, walked[-1], _STATIONS), walked, shares)
    return _sample_stations(shape, even)


def _sample_stations(shape: Shape, shares: npt.NDArray[np.float64]) -> Stations:
    corner = np.where(shares < 0.5, *shape.corner)
    half_width = 0.5 * shape.width * np.maximum(1 - np.abs(2 * shares - 1) ** corner, 0) ** (1 / corner)
    belt = shape.height * _profile(shape.belt, shares, 0.012)
    roof = shape.height * _profile(shape.roof, shares, 0.014)
    # Outside the greenhouse the "roof" is the bonnet or boot lid, crowned a little above its edges.
    ends = np.minimum(shares, 1 - shares)
    # Rounds the front edge of the bonnet and the back edge of the boot lid.
    belt = belt - 0.035 * np.exp(-ends / 0.012) - 0.04 * (1 - 2 * half_width / shape.width)
    crown = belt + 0.01 + 0.035 * smooth(0.0, 0.08, ends)
    roof = np.where((shares < shape.roof[0][0]) | (shares > shape.roof[-1][0]), crown, np.maximum(roof, crown))
    sunk = np.zeros(len(shares), np.float32)
    if shape.bed:
        front, back = shape.bed
        sunk += 0.5 * smooth(front - 0.006, front + 0.006, shares) * smooth(back + 0.004, back - 0.004, shares)
    return Stations(
        share=np.asarray(shares, np.float32),
        x=np.asarray((shares - 0.5) * shape.length, np.float32),
        half_width=np.asarray(half_width, np.float32),
        belt=np.asarray(belt, np.float32),
        roof=np.asarray(roof, np.float32),
        sunk=sunk,
    )


def _profile(curve: Curve, shares: npt.NDArray[np.float64], softness: float) -> Array:
    """A polyline with rounded corners: `curve` at `shares`, averaged over about +-`softness`."""
    nodes = np.asarray(curve)
    offsets = np.linspace(-1.6, 1.6, 15)
    weights = np.exp(-(offsets**2))
    samples = np.interp(shares[:, None] + softness * offsets, nodes[:, 0], nodes[:, 1])
    return np.asarray(samples @ (weights / weights.sum()), np.float32)


def loft(shape: Shape, stations: Stations) -> Array:
    """The body's surface: points of shape (stations, ring, 3), the ring running once around each section."""
    controls = _section_controls(stations, shape.clearance)
    fine = np.linspace(0, len(controls) - 3, 2000, dtype=np.float32)
    middle = _spline_basis(len(controls), fine) @ controls[:, _STATIONS // 2]
    walked = np.cumsum(np.linalg.norm(np.diff(middle, axis=0, prepend=middle[:1]), axis=1) + 1e-6)
    walked -= 0.7 * np.minimum(walked, 0.8)  # the floor pan is hardly ever seen: few points there
    half = np.interp(np.linspace(walked[0], walked[-1], RING // 2 + 1), walked, fine)
    section = np.einsum("pc,csd->spd", _spline_basis(len(controls), np.asarray(half, np.float32)), controls)
    x = np.broadcast_to(stations.x[:, None], section.shape[:2])
    right = np.dstack([x, section])
    left = right[:, -2::-1] * np.asarray([1, -1, 1], np.float32)
    return snap_to_arches(shape, _lean(shape, stations, np.concatenate([right, left], axis=1)))


def _section_controls(stations: Stations, clearance: float) -> Array:
    """B-spline control points (y, z) of half a cross-section, floor to roof: shape (points, stations, 2)."""
    width, belt, roof, rail = stations.half_width, stations.belt, stations.roof, stations.rail
    base = np.full_like(width, clearance)
    flank, house, deck = belt - base, roof - belt, roof - stations.sunk
    top = belt + np.maximum(0.8 * house, house - 0.07)
    # Without a greenhouse the points of the window pillar lie flat on the bonnet, still in rising order.
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
    house = smooth(0.05, 0.25, (stations.roof - stations.belt)[:, None])
    bow = 0.13 * (1 - (2 * y / shape.width) ** 2) * smooth(-0.05, 0.1, z - stations.belt[:, None])
    cowl = smooth(0.0, 0.25, share) * smooth(0.62, 0.4, share) * (0.4 + 0.6 * house)
    back = smooth(0.62, 0.75, share) * house * (0.3 if shape.bed else 0.8) * (shape.rear_window is not None)
    return np.asarray(np.stack([x - bow * cowl + bow * back, y, z], -1), np.float32)
