"""A stand-in for the clock: known times, without waiting for them."""

import numpy as np


def in_known_time(contestants, rounds, *, budget_s=None):
    """Call each contestant; return 1, 2, 3 ... milliseconds for the first, twice as long for the second, ..."""
    for call in contestants.values():
        call()
    return {name: factor * np.arange(1.0, rounds + 1) for factor, name in enumerate(contestants, 1)}
