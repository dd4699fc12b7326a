import json

import pytest

from benchmarks import memory
from benchmarks.memory import MANY, MANY_SCRIPT, TILES, WHOLE, measure
from benchmarks.results import Measurement, Skipped
from runtime.errors import DeviceError

pytestmark = pytest.mark.skipif(memory.no_memory_figures() is not None, reason="needs /proc")
SMALL = "tiles of 256x256"


def test_values_are_those_that_the_processes_print(thin, monkeypatch):
    rounds = iter(range(1, 100))

    def fresh(script, model, threads, *rest):
        if script == MANY_SCRIPT:
            return json.dumps([100.0 + count for count in range(rest[0])])
        side, tile = rest
        if tile == 512:
            raise DeviceError("a process of its own: was ended by signal 9")
        return json.dumps([float(next(rounds)), float(tile + side)])

    monkeypatch.setattr(memory, "fresh", fresh)
    skipped, *found = sorted(
        measure(thin / "model.onnx", threads=3, predictions=12, side=600, rounds=2),
        key=lambda one: isinstance(one, Measurement),
    )
    settings = {"height": 600, "width": 600, "overlap": 0.25, "device": "cpu", "threads": 3}
    reason = "a process of its own: was ended by signal 9"
    assert skipped == Skipped(part="tiles", contestant="tiles of 512x512", settings=settings, reason=reason)
    assert {(one.contestant, one.unit): one.values for one in found} == {
        (MANY, "MB"): tuple(100.0 + count for count in range(12)),
        (WHOLE, "s"): (1.0, 3.0),
        (WHOLE, "MB"): (600.0, 600.0),
        (SMALL, "s"): (2.0, 4.0),
        (SMALL, "MB"): (856.0, 856.0),
    }
    assert found[0].settings == {"images": 12, "device": "cpu", "threads": 3}
    assert all(one.settings == settings for one in found[1:])


@pytest.mark.slow
def test_memory_of_real_processes(thin):
    found = measure(thin / "model.onnx", threads=1, predictions=12, side=1024, rounds=1)
    values = {(one.contestant, one.unit): one.values for one in found}
    assert len(values) == 1 + 2 * len(TILES)
    assert len(values[MANY, "MB"]) == 10 and min(values[MANY, "MB"]) > 20
    assert values[WHOLE, "MB"][0] > 2 * values[SMALL, "MB"][0] > 0


def test_without_proc_it_is_skipped(thin, monkeypatch):
    monkeypatch.setattr(memory, "no_memory_figures", lambda: "needs Linux")
    found = measure(thin / "model.onnx", threads=1)
    assert [(one.part, one.reason) for one in found] == [("memory", "needs Linux"), ("tiles", "needs Linux")]
