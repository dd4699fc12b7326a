"""Stand-ins for the clock: what times would mean, without waiting for them."""

import numpy as np


def in_known_time(contestants, rounds, *, budget_s=None):
    """Call each contestant; the first took 1, 2, 3 ... milliseconds, the second twice as long, and so on."""
    for call in contestants.values():
        call()
    return {name: factor * np.arange(1.0, rounds + 1) for factor, name in enumerate(contestants, 1)}
