"""A server of tiny models, and pictures for it."""

from contextlib import ExitStack

import numpy as np
import pytest
from served import RunGate, png, served


@pytest.fixture(scope="module")
def server(models):
    """A server of two models, in a thread; tests must not change it."""
    with served({"brightness": models["brightness"], "softmax": models["softmax"]}) as running:
        yield running


@pytest.fixture(scope="session")
def picture():
    """A PNG file of 7x5 pixels."""
    return png(np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8))


@pytest.fixture
def held(models):
    """Start a server of one model that waits at a gate: (server, gate); keywords are `ServerSettings`."""
    with ExitStack() as stack:

        def start(**settings):
            running = stack.enter_context(served({"brightness": models["brightness"]}, **settings))
            gate = RunGate(running.service.store.models["brightness"].current.predictor._model.session)
            stack.callback(gate.open)
            return running, gate

        yield start
