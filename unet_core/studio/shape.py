"""The cars to choose from: five body types and their variations."""

from dataclasses import dataclass, replace

import numpy as np

Curve = tuple[tuple[float, float], ...]
"""(share of the length from the nose, share of the height), left to right."""


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
"""The body types, in the order in which the cars of a data set take them."""


def vary_shape(shape: Shape, rng: np.random.Generator) -> Shape:
    """Change length, width, height and wheels of a shape by a few per cent at random."""
    length, width, height, wheel = rng.uniform(0.965, 1.035, 4)
    return replace(
        shape,
        length=shape.length * length,
        width=shape.width * (0.5 + 0.5 * width),
        height=shape.height * height,
        wheel_radius=shape.wheel_radius * wheel,
    )
