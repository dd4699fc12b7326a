"""A server of tiny models, and pictures for it."""

import threading

import numpy as np
import pytest
from served import png, served


@pytest.fixture(scope="module")
def server(models):
    """A server of two models, in a thread; tests must not change it."""
    with served({"brightness": models["brightness"], "softmax": models["softmax"]}) as running:
        yield running


@pytest.fixture(scope="session")
def picture():
    """A PNG file of 7x5 pixels."""
    return png(np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8))


class Gate:
    """Holds a model back: a run waits until `open` is called; `runs` counts those that came."""

    def __init__(self, session):
        self._opened, self._run, self.runs = threading.Event(), session.run_steady, 0
        self.entered = threading.Semaphore(0)
        session.run_steady = self._wait

    def _wait(self, batch):
        self.runs += 1
        self.entered.release()
        assert self._opened.wait(60)
        return self._run(batch)

    def open(self):
        self._opened.set()


@pytest.fixture
def held(models):
    """Start a server of one model that waits at a gate: (server, gate); keywords are `ServerSettings`."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(**settings):
            running = stack.enter_context(served({"brightness": models["brightness"]}, **settings))
            gate = Gate(running.service.store.models["brightness"].current.predictor._model.session)
            stack.callback(gate.open)
            return running, gate

        yield start
