"""docs/design.md, "How to add": each recipe is tried with a throw-away entry."""

import os
import subprocess
import sys
from pathlib import Path

from benchmark_models import write_bare_benchmark_model

from benchmarks.cases import latency
from benchmarks.contestants import registry
from benchmarks.contestants.onnx_runtime import PlainContestant
from benchmarks.gpu_run.findings import GpuRun
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]

CASE = """
from benchmarks.results import Measurement

def measure(model, *, rounds, threads, display):
    settings = {"threads": threads}
    size = (model.stat().st_size / 1e6,) * rounds
    return [Measurement(part="size", contestant=model.name, settings=settings, unit="MB", values=size)]
"""

COMMAND = """
from benchmarks import suite

suite.PARTS["size"] = suite.Part(
    name="size", function="throw_away_case:measure", takes=("model", "rounds"), cpu_only=True
)
from benchmarks.cli import main

main()
"""


STEP = """
from benchmarks.gpu_run.findings import Finding

def add(context):
    yield Finding.measured("sum", {"of_two": 3 if context.out.is_dir() else 0})
"""

STEP_COMMAND = """
from benchmarks.gpu_run import steps

first = steps.STEPS.pop("machine")
steps.STEPS["own"] = steps.Step(name="own", title="adds", function="throw_away_step:add", limit_s=30)
from benchmarks.first_gpu_run import main

main()
"""
"""Without the first step, which takes seconds to look for a GPU."""


class AnotherContestant(PlainContestant):
    name = "another"
    precisions = {"cpu": ("fp32",)}  # noqa: RUF012 - as in dataclasses, without the annotation


def test_a_contestant_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "CONTESTANTS", (*registry.CONTESTANTS, AnotherContestant))
    model = write_bare_benchmark_model(tmp_path)
    (found,) = latency.measure(model, contestants=["another"], threads=1, rounds=5)
    assert (found.contestant, found.settings["precision"], len(found.values)) == ("another", "fp32", 5)


def test_a_step_of_a_first_run_is_one_entry(tmp_path, monkeypatch):
    """The command takes its name, runs it in a process of its own, and reports it."""
    (tmp_path / "throw_away_step.py").write_text(STEP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", STEP_COMMAND, "--out", tmp_path / "run", "--only", "own"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (outcome,) = GpuRun.read_outcomes(tmp_path / "run" / "report.json")
    assert (outcome.step, outcome.end, outcome.of("sum").figures) == ("own", "passed", {"of_two": 3})
    assert "## Step own" in done.stdout


def test_a_part_is_one_entry(tmp_path):
    """The command lists it, measures it, and reports it."""
    (tmp_path / "throw_away_case.py").write_text(CASE)
    model = write_bare_benchmark_model(tmp_path)

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        command = [sys.executable, "-c", COMMAND, "run", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "|size]" in "".join(run("--help").stdout.split())
    done = run(model.path, "--part", "size", "--out", tmp_path / "bench", "--device", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    (found,) = Results.read(tmp_path / "bench").measurements
    assert (found.part, found.contestant, found.unit) == ("size", "bare.onnx", "MB")
    assert "## Size" in (tmp_path / "bench" / "report.md").read_text()
    assert run(model.path, "--part", "size", "--out", tmp_path / "gpu", "--device", "cuda", "--quick").returncode == 1
    (skipped,) = Results.read(tmp_path / "gpu").skipped
    assert (skipped.part, skipped.reason) == ("size", "is measured on the CPU; give --device cpu, or auto for both")
