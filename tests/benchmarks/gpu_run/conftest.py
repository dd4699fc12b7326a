"""A folder of a run with the files of an older release in place of step models, and contexts of steps."""

import shutil
import time
from pathlib import Path

import pytest

from benchmarks.gpu_run.processes import StepContext

MODELS = Path(__file__).parents[2] / "data" / "v0.1" / "models"
FILES = {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "int8-s8.onnx"}


@pytest.fixture
def run_folder(tmp_path):
    out = tmp_path / "run"
    (out / "models").mkdir(parents=True)
    (out / "steps").mkdir()
    for precision, name in FILES.items():
        shutil.copy(MODELS / name, out / "models" / f"{precision}.onnx")
    return out


@pytest.fixture
def context(run_folder):
    return make_context(run_folder)


def make_context(out, **changes):
    fields = {"data": None, "checkpoint": None, "is_stand_in": False, "ends": time.time() + 60}
    return StepContext(out=out, **{**fields, **changes})
