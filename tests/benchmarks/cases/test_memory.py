import json
from types import SimpleNamespace

import pytest

from benchmarks.cases import memory
from benchmarks.cases.memory import MANY, MANY_SCRIPT, TILES, WHOLE, measure, seconds_of_one
from benchmarks.results import Measurement, Skipped
from runtime.errors import DeviceError
from runtime.predictor import Predictor

pytestmark = pytest.mark.skipif(memory.memory_unavailable_reason() is not None, reason="needs /proc")
SMALL = "tiles of 256x256"


def test_values_are_those_that_the_processes_print(thin, monkeypatch):
    rounds = iter(range(1, 100))

    def run_script(script, model, threads, *rest, limit_s=None):
        if script == MANY_SCRIPT:
            return json.dumps([100.0 + count for count in range(rest[0])])
        side, tile = rest
        if tile == 512:
            raise DeviceError("a process of its own: was ended by signal 9")
        return json.dumps([float(next(rounds)), float(tile + side)])

    monkeypatch.setattr(memory, "run_script", run_script)
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


@pytest.mark.parametrize(("budget", "count"), [(None, 50), (200.0, 50), (60.0, 15), (1.0, 10)])
def test_a_budget_means_fewer_predictions_but_at_least_ten(thin, monkeypatch, budget, count):
    """Two seconds each, in half of the budget."""
    monkeypatch.setattr(memory, "seconds_of_one", lambda model, threads: 2.0)
    limits = []
    monkeypatch.setattr(memory, "run_script", lambda script, *_, limit_s=0.0: limits.append(limit_s) or "[1.0, 2.0]")
    found = measure(thin / "model.onnx", threads=1, predictions=50, rounds=1, budget_s=budget)
    assert found[0].settings["images"] == count
    assert limits == [max(600.0, 10 * 2.0 * count), 0.0, 0.0, 0.0]


def test_the_second_of_two_predictions_of_the_mean_area_is_timed(thin, monkeypatch):
    now, sizes = [0.0], []

    def predict(self, image, size):
        sizes.append((*image.shape, size))
        now[0] += 7.0 - 2.0 * len(sizes)

    monkeypatch.setattr(Predictor, "predict", predict)
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert seconds_of_one(thin / "model.onnx", 1) == 3.0
    assert sizes == [(272, 272, 3, "native")] * 2


@pytest.mark.slow
def test_memory_of_real_processes(thin):
    found = measure(thin / "model.onnx", threads=1, predictions=12, side=1024, rounds=1)
    values = {(one.contestant, one.unit): one.values for one in found}
    assert len(values) == 1 + 2 * len(TILES)
    assert len(values[MANY, "MB"]) == 10 and min(values[MANY, "MB"]) > 20
    assert values[WHOLE, "MB"][0] > 2 * values[SMALL, "MB"][0] > 0


def test_without_proc_it_is_skipped(thin, monkeypatch):
    monkeypatch.setattr(memory, "memory_unavailable_reason", lambda: "needs Linux")
    found = measure(thin / "model.onnx", threads=1)
    assert [(one.part, one.reason) for one in found] == [("memory", "needs Linux"), ("tiles", "needs Linux")]
