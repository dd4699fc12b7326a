"""For programs that `StandIn.run` starts: sessions on the stand-in, marks among its calls, the size of its memory."""

import os
from pathlib import Path

import numpy as np

from runtime.devices.availability import candidates
from runtime.devices.registry import open_session
from runtime.model_file.golden import Golden
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions


def open_on(path, device="cuda", **options):
    """Open a model on a device without replaying its golden sample, since the stand-in's answers mean nothing."""
    card, _ = read_model(Path(path))
    return open_session(Path(path), candidates(device)[0], card, ProviderOptions(**options), note=print)


def no_golden():
    """Let every golden sample pass from now on."""
    Golden.error = Golden.largest_error = lambda *_: 0.0


def images(batch, height, width, channels=3):
    """Grey pictures uint8 [batch, height, width, channels]."""
    return np.full((batch, height, width, channels), 128, np.uint8)


def mark(name):
    """Write a mark among the calls; see `Ran.part`."""
    with open(os.environ["STAND_IN_CALLS"], "a") as file:
        file.write(f"mark {name}\n")


def set_memory(size):
    """Give the card `size` bytes of memory from now on; what is allocated already stays."""
    os.environ["STAND_IN_MEMORY"] = str(size)
