"""Comparison of a contestant's answer with the reference's, and the limits of their difference in each arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.base import MAX_ERROR, Arithmetic

MAX_DIFFERENCE: Mapping[Arithmetic, float] = {"fp32": MAX_ERROR, "tf32": 2e-2}
"""Limit of the largest |p - reference's p|. In other arithmetics single pixels near an edge may tip; see below."""

MEAN_DIFFERENCE: Mapping[Arithmetic, float] = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Limit of the mean |p - reference's p|; another network, or another order of channels, exceeds it.

What an fp16 or int8 file lost was judged on real images by its gate."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest and mean |p - reference's p|; NaN is infinite."""

    largest: float
    mean: float

    def refusal(self, precision: Arithmetic, tolerance: float = MAX_ERROR) -> str | None:
        """Return why an answer that differs by this is wrong; None if it is within the limits.

        `tolerance` is what the file's own proof allows, which is more for deep networks that round coarsely.
        """
        most = MAX_DIFFERENCE.get(precision)
        most = most if most is None else max(most, tolerance)
        if most is not None:
            found, limit, what = self.largest, most, "answers differ"
        else:
            found, limit, what = self.mean, MEAN_DIFFERENCE[precision], "answers differ in the mean"
        return None if found <= limit else f"{what} by {found:.2g}, expected at most {limit:g} in {precision}"


def compare_answers(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> Difference:
    """Compare two answers float32 [batch, classes, height, width]; the difference of two shapes is infinite."""
    if answer.shape != reference.shape:
        return Difference(largest=float("inf"), mean=float("inf"))
    found = np.abs(answer - reference)
    largest, mean = float(found.max()), float(found.mean(dtype=np.float64))
    if not np.isfinite(largest):
        return Difference(largest=float("inf"), mean=float("inf"))
    return Difference(largest=largest, mean=mean)
