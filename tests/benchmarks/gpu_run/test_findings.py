"""Findings in a file, one line each, and the report that is read again."""

import json

import numpy as np
import pytest

from benchmarks.gpu_run.findings import Finding, GpuRun, Outcome, read_findings
from runtime.errors import ConfigError


def test_findings_are_read_as_they_were_appended(tmp_path):
    path = tmp_path / "step.jsonl"
    found = (
        Finding.measured("a copy", {"GB/s": 3.5, "runs": 2}),
        Finding.verdict("an answer", False, "off by 1", {"max_abs_error": 1.0}),
        Finding.skipped("another", "there is none"),
    )
    for one in found:
        one.append(path)
    assert read_findings(path) == (found, 0)
    assert read_findings(tmp_path / "missing.jsonl") == ((), 0)


def test_figures_become_what_json_has(tmp_path):
    figures = {"nan": float("nan"), "inf": np.float32("inf"), "numpy": np.float64(0.5), "list": [1], "none": None}
    Finding.measured("odd", figures).append(tmp_path / "step.jsonl")
    ((one,), strange) = read_findings(tmp_path / "step.jsonl")
    assert (one.figures, strange) == ({"nan": "nan", "inf": "inf", "numpy": 0.5, "list": "[1]", "none": None}, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"Segmentation fault",
        b"[1]",
        b"\xff\xfe\x00",
        b"{}",
        b"[" * 5000,
        json.dumps({"subject": "a", "state": "fine", "text": "", "figures": {}}).encode(),
        json.dumps({"subject": 1, "state": "ran", "text": "", "figures": {}}).encode(),
        json.dumps({"subject": "a", "state": "ran", "text": "", "figures": {"a": [1]}}).encode(),
    ],
)
def test_lines_that_are_no_findings_are_counted(tmp_path, line):
    path = tmp_path / "step.jsonl"
    good = Finding.measured("good", {})
    good.append(path)
    with open(path, "ab") as file:
        file.write(line + b"\n")
    good.append(path)
    assert read_findings(path) == ((good, good), 1)


def test_a_report_is_read_again(tmp_path):
    outcomes = (
        Outcome(step="machine", title="t", end="passed", seconds=1.5, findings=(Finding.measured("a", {"b": 1}),)),
        Outcome(step="models", title="t", end="not reached", text="no time"),
    )
    run = GpuRun(device="d", is_stand_in=False, started="now", seconds=2.0, outcomes=outcomes)
    run.write(tmp_path, [])
    assert GpuRun.read_outcomes(tmp_path / "report.json") == outcomes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "Expecting value"),
        ("[]", "list indices must be integers"),
        ('{"schema": 9, "outcomes": []}', "its schema is 9, expected 1"),
        ('{"schema": 1, "outcomes": [{"step": "a"}]}', "'findings'"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path, text, reason):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        GpuRun.read_outcomes(path)
    assert str(error.value).startswith(f"{path}: cannot be read ({reason}")
    assert str(error.value).endswith("give another folder to --out")
