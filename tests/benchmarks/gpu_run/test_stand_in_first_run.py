"""A whole first run on the stand-in: everything but answers and times, which it says itself."""

import subprocess
import sys

import pytest

from benchmarks.gpu_run.findings import GpuRun
from benchmarks.gpu_run.report import STAND_IN_NOTE
from benchmarks.gpu_run.steps import STEPS

pytestmark = pytest.mark.stub

NO_PYTORCH = "PyTorch sees no GPU"
ENDS = {
    "machine": ("passed", ""),
    "answers": ("passed", ""),
    "shapes": ("passed", ""),
    "memory": ("passed", ""),
    "threads": ("passed", ""),
    "graphs": ("passed", ""),
    "dlpack": ("skipped", NO_PYTORCH),
    "tests": ("skipped", "compares answers, and a stand-in has none"),
    "training": ("skipped", NO_PYTORCH),
    "speed": ("skipped", NO_PYTORCH),
    "floor": ("skipped", NO_PYTORCH),
    "tensorrt": ("skipped", ""),
    "camvid": ("skipped", NO_PYTORCH),
}
"""The end of each step but `models`, whose files are there already, and the beginning of the reason."""

QUOTED = {"max_abs_error", "flipped", "median_ms", "opened_s", "seconds", "graph_ms", "1_A_ms"}
"""Figures of answers and of times."""


def test_a_first_run_goes_from_end_to_end(stand_in, run_folder):
    steps = [word for name in ENDS if name != "machine" for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_gpu_run", "--out", str(run_folder), "--seconds", "280", *steps],
        env=stand_in.environment(),
        cwd=run_folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {one.step: one for one in GpuRun.read_outcomes(run_folder / "report.json")}
    assert {name: (one.end, one.text[: len(ENDS[name][1])]) for name, one in outcomes.items()} == ENDS
    assert "libnvinfer" in outcomes["tensorrt"].text
    assert list(outcomes) == [name for name in STEPS if name in ENDS]
    found = {one.subject: one for outcome in outcomes.values() for one in outcome.findings}
    assert not [one for one in found.values() if QUOTED & set(one.figures)]

    assert found["GPU"].figures["name"] == "stand-in" and found["GPU"].figures["stand_in"] is True
    placed = {name: found[f"{name}, TF32 on, placement"].figures for name in ("fp32", "fp16", "int8")}
    assert all(one["CUDAExecutionProvider"] > one["CPUExecutionProvider"] for one in placed.values())
    assert all(found[f"fp16, TF32 off, {shape}"].state == "ran" for shape in ("golden sample", "4x320x480"))
    failed = next(one for subject, one in found.items() if subject.startswith("2048x1536 with"))
    assert failed.text.startswith("DeviceError: device cuda:0: ")  # else nothing follows from the next one
    assert found["the same shape with room"].state == "ran"
    assert found["memory after close"].figures["held_mib"] > 0
    assert found["8 threads, 20 runs each"].state == "ran"
    for precision in ("fp32", "fp16", "int8"):
        assert found[f"{precision}, round 4: 1x160x240, 2x160x240, 1x96x96"].state == "ran"

    text = (run_folder / "report.md").read_text()
    assert done.stdout == text + "\n" or done.stdout == text
    assert "Device: stand-in\n" in text and STAND_IN_NOTE in text and text.count("not measured") == 4
