"""The cars of a data set: their number, size and split, and the names of their files."""

import hashlib
from dataclasses import dataclass

from runtime.errors import DataError

VIEWS = 16
"""Number of sides from which a car is seen."""

SMALLEST = (32, 48)
"""Size (height, width) of the smallest image that can be drawn."""

LARGEST_SIDE = 16384


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """The cars to draw; the last `val_cars` of them are kept for validation. `size` is (height, width) in pixels.

    Raises:
        DataError: a number is out of range; the message names it.
    """

    cars: int
    val_cars: int
    size: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        if self.cars < 2:
            raise DataError(f"cars = {self.cars}: at least 2 are needed, one to train on and one to validate on")
        if not 0 < self.val_cars < self.cars:
            raise DataError(f"val_cars = {self.val_cars}: expected 1 to {self.cars - 1}, with {self.cars} cars in all")
        if self.seed < 0:
            raise DataError(f"seed = {self.seed}: expected 0 or more")
        (height, width), (least_height, least_width) = self.size, SMALLEST
        if height < least_height or width < least_width:
            raise DataError(f"size {width}x{height}: too small, expected at least {least_width}x{least_height}")
        if max(height, width) > LARGEST_SIDE:
            raise DataError(f"size {width}x{height}: too large, expected at most {LARGEST_SIDE} pixels a side")

    def split(self, car: int) -> str:
        """The split that a car belongs to: "train" or "val"."""
        return "val" if car >= self.cars - self.val_cars else "train"

    def files(self, car: int, view: int) -> tuple[str, str]:
        """Names of a view's picture and mask, relative to the data set's folder; `view` is counted from 0."""
        name, split = f"{car_id(self.seed, car)}_{view + 1:02d}", self.split(car)
        return f"{split}_images/{name}.jpg", f"{split}_masks/{name}_mask.gif"


def car_id(seed: int, car: int) -> str:
    """The 12 hex digits that name a car."""
    return hashlib.blake2b(f"{seed}:{car}".encode(), digest_size=6).hexdigest()
