"""The time that opening a file takes."""

from dataclasses import replace

import pytest
from benchmark_models import write_benchmark_model

from benchmarks.cases import loading
from benchmarks.cases.loading import measure
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS
from benchmarks.reporting.report import markdown
from benchmarks.results import Results, Skipped


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    forms = {"downs.1.conv.3": "f4"}
    return write_benchmark_model(tmp_path_factory.mktemp("model"), widths=(4, 8), forms=forms)


def test_seconds_and_megabytes_of_each_file_until_it_is_open_and_has_answered(model):
    found = measure(model, threads=1, rounds=2)
    keys = [(one.contestant, one.settings["until"], one.unit) for one in found]
    assert keys == [
        (name, until, unit) for name in (OURS, FOR_CPUS) for until in ("opened", "first answer") for unit in ("s", "MB")
    ]
    assert {len(one.values) for one in found} == {2}
    seconds = {key: one.values for key, one in zip(keys, found, strict=True)}
    for name in (OURS, FOR_CPUS):
        assert all(a < b for a, b in zip(seconds[name, "opened", "s"], seconds[name, "first answer", "s"], strict=True))
        assert all(value > 1 for value in seconds[name, "opened", "MB"])
    assert found[0].facts == {"file_mb": model.path.stat().st_size / 1e6}
    assert found[-1].facts == {"file_mb": model.for_cpus.stat().st_size / 1e6}
    text = markdown(Results(environment={}, method={}, disturbance=None, measurements=tuple(found)))
    assert "until first answer" in text and "| file in MB |" in text


def test_files_of_other_precisions_take_turns(model, monkeypatch):
    asked = []

    def run_script(script, model, *_):
        asked.append(model.name)
        return "[[1.0, 2.0], [3.0, 4.0]]"

    monkeypatch.setattr(loading, "run_script", run_script)
    half = model.path.with_name("model.fp16.onnx")
    half.write_bytes(b"half")
    found = measure(replace(model, files={"fp16": half}), threads=1, rounds=9, budget_s=1e-9)
    assert asked == ["model.onnx", "model.cpu.onnx", "model.fp16.onnx"] * 5
    assert [one.settings["precision"] for one in found[-4:]] == ["fp16"] * 4


def test_where_memory_is_not_told_it_is_skipped(model, monkeypatch):
    monkeypatch.setattr(loading, "memory_unavailable_reason", lambda: "needs Linux")
    assert measure(model, threads=1) == [Skipped(part="loading", contestant="all", settings={}, reason="needs Linux")]
