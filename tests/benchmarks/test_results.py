import json
import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.results import Measurement, Ratio, Results, Skipped, ratio_of
from runtime.errors import ConfigError, OutputError

BATCH = {"batch": 1, "height": 160, "width": 240, "device": "cpu"}


def measured(*values, contestant="ours", unit="ms", **others):
    return Measurement(
        **{"part": "latency", "contestant": contestant, "settings": BATCH, "unit": unit} | others, values=values
    )


def results(*measurements, **others):
    environment = {"cpu": "Abacus", "gpu": None, "versions": {"numpy": "4"}}
    return Results(
        **{"environment": environment, "method": {"rounds": 5}, "disturbance": None} | others, measurements=measurements
    )


@pytest.fixture
def written(tmp_path):
    skipped = Skipped(part="latency", contestant="ncnn", settings=BATCH, reason="is not installed")
    whole = results(
        measured(1.5, 2.5, group="a", facts={"gflop": 3.25, "provider": "CPU", "proved": True}),
        measured(3, 4, contestant="PyTorch eager", group="a"),
        skipped=(skipped,),
        disturbance="it rained",
    )
    return whole, whole.write(tmp_path / "new" / "folder")


def test_what_is_written_is_read_again_from_the_file_or_its_folder(written):
    whole, path = written
    assert path.name == "results.json"
    assert Results.read(path) == whole
    assert Results.read(path.parent) == whole
    assert whole.of("latency") == whole.measurements
    assert whole.of("peak") == ()


def test_percentiles_and_spread():
    one = measured(*range(101))
    assert (one.median, one.p90, one.p99, one.spread) == (50, 90, 99, 1.0)
    assert measured(0.0).spread == 0.0


def test_the_interval_of_a_median_lies_around_it():
    assert measured(*range(101)).interval == (41, 59)
    assert measured(3, 9, 1, 4, 2).interval == (1, 9)
    assert measured(1, 2, 3, 4).interval == (0, math.inf)


def test_contestants_measured_in_turns_are_compared_round_by_round():
    drift = np.linspace(1, 10, 40)
    ours, theirs = measured(*(3 * drift), group="a"), measured(*drift, group="a")
    found = ratio_of(ours, theirs)
    assert (found.median, found.low, found.high) == pytest.approx((3, 3, 3))
    assert found.excludes_one


@pytest.mark.parametrize("group", ["", "b"])
def test_others_are_compared_by_their_medians(group):
    drift = np.linspace(1, 10, 40)
    found = ratio_of(measured(*(1.2 * drift), group=group), measured(*drift[::-1], group=group and "a"))
    assert found.median == pytest.approx(1.2)
    assert found.low < 1 < found.high
    assert not found.excludes_one


def test_a_record_of_another_schema_is_not_made():
    with pytest.raises(ConfigError, match="schema: found 7, expected 1; if it is newer, upgrade unet-deploy"):
        Results(environment={}, method={}, disturbance=None, measurements=(), schema=7)


def test_medians_far_apart_differ_without_doubt():
    random = np.random.default_rng(0)
    found = ratio_of(measured(*random.normal(2, 0.02, 30)), measured(*random.normal(1, 0.01, 50)))
    assert 1.9 < found.low < found.median < found.high < 2.1
    assert found.excludes_one
    assert Ratio(median=0.5, low=0.4, high=0.6).excludes_one


@pytest.mark.parametrize(
    ("ours", "theirs", "median"),
    [
        ((2, 2, 2, 2), (1, 1, 1, 1), 2),
        ((2.0,), (4.0,), 0.5),
        ((0,) * 5, (0,) * 5, 1),
        ((1,) * 5, (0,) * 5, math.inf),
        ((1,) * 5, (5e-324,) * 5, math.inf),
    ],
)
@pytest.mark.parametrize("group", ["", "a"])
def test_too_few_values_zeros_and_almost_zeros_give_no_interval(ours, theirs, median, group):
    found = ratio_of(measured(*ours, group=group), measured(*theirs, group=group))
    assert found == Ratio(median=median, low=0, high=math.inf)
    assert not found.excludes_one


def test_numbers_of_numpy_can_be_written(tmp_path):
    whole = results(measured(*np.array([1.5, 2.5]), facts={"gflop": np.float64(3)}))
    assert Results.read(whole.write(tmp_path)) == whole


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("part", "", "measurements.part: found '', expected one line of 1 to 2000 characters"),
        ("contestant", "", "measurements.contestant: found '', expected one line of 1 to 2000 characters"),
        ("contestant", "two\nlines", "measurements.contestant: found 'two\\nlines', expected one line"),
        ("unit", "furlongs", "measurements.unit: found 'furlongs', expected one of ms, s"),
        ("values", (), "measurements.values: found (), expected 1 to 10000 values"),
        ("values", [1.0], "measurements.values: found [1.0], expected 1 to 10000 values"),
        ("values", (math.nan,), "measurements.values: found nan, expected finite numbers from 0"),
        ("values", (-1.0,), "measurements.values: found -1.0, expected finite numbers from 0"),
        ("values", (1e15,), "measurements.values: found 1000000000000000.0, expected finite numbers from 0"),
        ("values", (True,), "measurements.values: found True, expected finite numbers from 0"),
        ("settings", {"shape": (1, 2)}, "measurements.settings.shape: found (1, 2), expected a text, a finite number"),
        ("settings", ["batch"], "measurements.settings: found ['batch'], expected a record of at most 200 entries"),
        ("facts", {"gflop": math.inf}, "measurements.facts.gflop: found inf, expected a text, a finite number"),
        ("facts", {"": 1}, "measurements.facts: found '', expected text of 1 to"),
        ("group", None, "measurements.group: found None, expected one line of 0 to"),
    ],
)
def test_absurd_measurements_cannot_be_made(field, value, message):
    given = {"part": "latency", "contestant": "ours", "settings": BATCH, "unit": "ms", "values": (1.0,)} | {
        field: value
    }
    with pytest.raises(ConfigError) as caught:
        Measurement(**given)
    assert f"results field {message}" in str(caught.value)


def test_two_measurements_of_one_name_are_refused_but_not_of_two_units():
    both = results(measured(1.0), measured(1.0, unit="MB"), measured(1.0, contestant="theirs"))
    assert len(both.measurements) == 3
    with pytest.raises(ConfigError) as caught:
        results(measured(1.0), measured(2.0))
    assert "found latency, ours, {'batch': 1," in str(caught.value)
    assert "in ms twice, expected each once" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=2), "schema: found 2, expected 1; if it is newer, upgrade unet-deploy"),
        (lambda data: data.update(schema=True), "schema: found True, expected 1"),
        (lambda data: data.clear(), "schema: found None, expected 1"),
        (lambda data: data.pop("method"), "method: is missing; measure again"),
        (lambda data: data.update(speed=1), "'speed': is unknown; measure again"),
        (lambda data: data.update(measurements={}), "measurements: found {}, expected 0 to 100000 values"),
        (lambda data: data.update(measurements=[1]), "measurements: found 1, expected a record"),
        (lambda data: data.update(environment={"cpu": [1]}), "environment.cpu: found [1], expected a text"),
        (lambda data: data.update(disturbance=""), "disturbance: found '', expected one line"),
        (lambda data: data["measurements"][0].pop("unit"), "measurements.unit: is missing; measure again"),
        (lambda data: data["measurements"][0].update(values=[[1]]), "measurements.values: found [1], expected finite"),
        (lambda data: data["skipped"][0].update(reason=3), "skipped.reason: found 3, expected one line"),
    ],
)
def test_absurd_files_are_refused_by_field(written, change, message):
    _, path = written
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        Results.read(path)
    assert str(caught.value).startswith(f"{path}: results field {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON (Expecting value"),
        (b"\xff\xfe\x00", "is not JSON ("),
        (b"[" * 100_000, "is not JSON ("),
        (b'{"schema": NaN}', "results field schema: found nan, expected 1"),
        (b"[1]", "results field (the whole file): found [1], expected a record"),
    ],
)
def test_what_are_no_results_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Results.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_far_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        Results.read(tmp_path)
    path = tmp_path / "results.json"
    assert str(caught.value) == f"{path}: cannot be read (no such file or directory), expected results of unet-bench"
    monkeypatch.setattr("benchmarks.results.MAX_BYTES", 10)
    path.write_bytes(b" " * 11)
    with pytest.raises(ConfigError) as caught:
        Results.read(path)
    assert str(caught.value) == f"{path}: has more than 10 bytes, expected results of unet-bench"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        results().write(tmp_path / "file")


def test_reading_and_comparing_need_neither_pytorch_nor_onnx_runtime():
    program = (
        "import sys, benchmarks.reporting.compare, benchmarks.reporting.report;"
        "print({'torch', 'onnx', 'onnxruntime', 'matplotlib', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
