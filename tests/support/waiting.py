"""For tests of threads: those of ours that run, functions that wait to be let go, conditions that come true soon."""

import threading
import time

PATIENCE = 10
"""Seconds after which a test gives up; nothing that works takes so long."""


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("unet-")]


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


class Gate:
    """Calls of `passing` stand at it until it is open; `arrived` holds their arguments."""

    def __init__(self):
        self.arrived = []
        self._open = threading.Event()

    def open(self):
        self._open.set()

    def passing(self, value):
        self.arrived.append(value)
        assert self._open.wait(PATIENCE), "the gate was never opened"
        return value
