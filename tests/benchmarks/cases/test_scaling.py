import json
import math

import numpy as np
import pytest
from known_times import in_known_time

from benchmarks.cases import scaling
from benchmarks.cases.scaling import default_sizes, fit_power_law, measure
from benchmarks.results import Measurement, Skipped
from runtime.card import InputSpec

SIZES = [(32, 48), (160, 240), (320, 480), (160, 480)]


@pytest.fixture
def costs(monkeypatch):
    """Processes that take 10 KB and 1 s for 1,000 pixels, and a machine with 5 MB; timing takes no time."""

    def run_script(script, model, threads, *shape):
        return json.dumps([math.prod(shape) / 1e5, math.prod(shape) / 1e3])

    monkeypatch.setattr(scaling, "run_script", run_script)
    monkeypatch.setattr(scaling, "available_megabytes", lambda: 5.0)
    monkeypatch.setattr(scaling, "interleave", in_known_time)
    monkeypatch.setattr(scaling, "memory_unavailable_reason", lambda: None)


def test_a_power_law_is_found_again():
    sizes = np.array([10.0, 20.0, 50.0, 90.0])
    drift = np.array([1.0, 2.0, 4.0])
    found = fit_power_law(sizes, 3 * sizes[:, None] ** 1.5 * drift)
    assert found.exponents == pytest.approx([1.5, 1.5, 1.5])
    assert found.scale == pytest.approx(6.0)  # of the medians
    assert found.miss == pytest.approx(0.0, abs=1e-12)


def test_what_is_no_power_law_misses():
    found = fit_power_law(np.array([1.0, 10.0, 100.0]), np.array([[1.0], [20.0], [100.0]]))
    assert found.exponents == pytest.approx([1.0])
    assert found.scale == pytest.approx(2 ** (1 / 3))
    assert found.miss == pytest.approx(2 ** (2 / 3) - 1)


def test_an_exponent_is_not_below_0():
    assert fit_power_law(np.array([1.0, 2.0, 4.0]), np.array([[4.0], [2.0], [1.0]])).exponents == (0.0,)


def test_sizes_have_the_trained_ratio_and_are_multiples_of_the_stride():
    expected = [(80, 128), (112, 176), (160, 240), (224, 336), (320, 480), (448, 672)]
    assert default_sizes(InputSpec(size=(160, 240), stride=16)) == expected
    assert default_sizes(InputSpec(size=(16, 16), stride=16)) == [(16, 16), (32, 32), (48, 48)]


def test_every_shape_has_its_time_and_its_peak(thin, costs):
    found = measure(thin / "model.onnx", sizes=[(160, 240), (160, 480)], batches=(1, 2, 3), threads=1, rounds=5)
    rows = [one for one in found if isinstance(one, Measurement) and one.unit != "exponent"]
    assert [(one.settings["batch"], one.settings["width"], one.unit) for one in rows[:4]] == [
        (1, 48, "ms"),  # of the trained size, 32x48: less than the file of 0.08 MB
        (2, 48, "ms"),
        (3, 48, "ms"),
        (1, 240, "ms"),
    ]
    assert [one.values for one in rows[3:5]] == [(4.0, 8.0, 12.0, 16.0, 20.0), (38_400 / 1e5,)]
    assert rows[4].unit == "MB"
    (curve,) = [one for one in found if isinstance(one, Measurement) and one.unit == "exponent"]
    assert curve.settings == {"of": "ms", "over": "images", "device": "cpu", "threads": 1}
    assert curve.values == pytest.approx([1.0] * 5)
    assert curve.facts["scale"] == pytest.approx(3.0)
    skipped = {(one.settings["of"], one.settings["over"]): one.reason for one in found if isinstance(one, Skipped)}
    assert skipped == {
        ("ms", "pixels"): "found 2 shapes, expected at least 3 to fit a curve to",
        ("MB", "pixels"): "found 2 shapes, expected at least 3 to fit a curve to",
        ("MB", "images"): "found 0 shapes, expected at least 3 to fit a curve to",
    }


def test_memory_is_fitted_where_it_is_more_than_the_weights(thin, costs):
    found = measure(thin / "model.onnx", sizes=SIZES, batches=(1,), threads=1, rounds=5)
    (curve,) = [one for one in found if one.settings.get("of") == "MB" and one.settings["over"] == "pixels"]
    assert curve.values == pytest.approx([1.0])
    assert curve.facts["scale"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("budget", "size", "reason"),
    [
        (None, (1000, 500), "would take about 5 MB, expected at most 80% of the 5 MB free"),
        (50.0, (160, 240), "the sweep up to here would take about 250 s, the budget is 50 s"),
    ],
)
def test_what_would_not_fit_is_skipped(thin, costs, budget, size, reason):
    sizes = [(32, 48), size]
    found = measure(thin / "model.onnx", sizes=sizes, batches=(1,), threads=1, rounds=5, budget_s=budget)
    settings = {"batch": 1, "height": size[0], "width": size[1], "device": "cpu", "threads": 1}
    assert Skipped(part="scaling", contestant="Predictor.run", settings=settings, reason=reason) in found
    assert {one.settings["height"] for one in found if isinstance(one, Measurement)} == {32}


@pytest.mark.slow
def test_peaks_of_real_processes_grow(thin, monkeypatch):
    monkeypatch.setattr(scaling, "interleave", in_known_time)
    found = measure(thin / "model.onnx", sizes=[(160, 240), (320, 480), (640, 960)], batches=(1,), threads=1)
    (curve,) = [one for one in found if one.settings.get("of") == "MB" and one.settings["over"] == "pixels"]
    assert 0.5 < curve.values[0] < 1.5
