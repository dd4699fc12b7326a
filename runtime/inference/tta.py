"""Test-time augmentation: the network's mean answer over a picture's mirror images and turns."""

from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.model_file.golden import NetworkFunction

Tta = Literal["flip", "d4"]
"""Test-time augmentation: the picture and its mirror image, or all eight ways to turn and mirror a square."""


def augmented(run: NetworkFunction, tta: Tta | None) -> NetworkFunction:
    """Return a network that answers the mean over a picture's mirror images and turns, each turned back."""
    if tta is None:
        return run
    turns = list(product([0] if tta == "flip" else range(4), [False, True]))

    def mean(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        total: NDArray[np.float32] | None = None
        for turn, mirror in turns:
            seen = batch[:, :, ::-1] if mirror else batch
            answer = run(np.ascontiguousarray(np.rot90(seen, turn, axes=(1, 2))))
            back = np.rot90(answer, -turn, axes=(2, 3))
            back = back[..., ::-1] if mirror else back
            total = back.copy() if total is None else np.add(total, back, out=total)
        assert total is not None
        total /= len(turns)
        return total

    return mean
