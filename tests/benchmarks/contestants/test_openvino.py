"""OpenVINO for real where it is installed, and the message where it is not."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark_models import require_installed, write_benchmark_model
from devices import images
from graphs import DEEP

from benchmarks.contestants import base, openvino
from benchmarks.contestants.answers import compare_answers
from benchmarks.contestants.openvino import OpenVinoContestant, OpenVinoPredictorContestant
from export.proof import network_run

ROOT = Path(__file__).parents[3]

LOADING = """
import sys
from pathlib import Path
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.ncnn import NcnnContestant
from benchmarks.contestants.openvino import OpenVinoContestant, OpenVinoPredictorContestant
model = BenchmarkModel.read(Path(sys.argv[1]))
for one in (OpenVinoContestant(), OpenVinoPredictorContestant(), NcnnContestant()):
    if one.unavailable_reason(model) is None:
        one.load(model, 1, (1, 32, 64)).close()
        print(one.name)
"""

CONFIGS = [{}, DEEP, {"widths": (3, 5, 9), "up": "bilinear", "classes": 2}]


@pytest.mark.parametrize("config", CONFIGS, ids=["thin", "deep", "bilinear"])
def test_openvino_answers_as_the_network(config, tmp_path):
    require_installed("openvino")
    model, contestant = write_benchmark_model(tmp_path, **config), OpenVinoContestant()
    assert contestant.unavailable_reason(model) is None
    for shape in ((1, 32, 64), (3, 31, 45)):
        batch = np.ascontiguousarray(images(*shape)[..., : model.card.architecture.in_channels])
        loaded = contestant.load(model, 1, shape)
        assert compare_answers(loaded(batch), network_run(model.segmenter())(batch)).refusal("fp32") is None
        assert (loaded.provider, loaded.facts) == ("OpenVINO CPU", {"file": "model.onnx"})
        loaded.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_computes_in_what_it_was_asked_to(tmp_path, precision):
    require_installed("openvino")
    model, contestant = write_benchmark_model(tmp_path), OpenVinoContestant(precision=precision)
    if (reason := contestant.unavailable_reason(model)) is not None:
        assert reason == "this processor has no instructions for bf16 (AVX512-BF16 or AMX)"
        pytest.skip(reason)
    batch = images(1, 32, 64)
    loaded = contestant.load(model, 1, (1, 32, 64))
    difference = compare_answers(loaded(batch), network_run(model.segmenter())(batch))
    assert difference.refusal(precision) is None
    assert (difference.largest > 1e-5) is (precision == "bf16")


def test_bf16_is_measured_where_the_processor_has_it(tmp_path, monkeypatch):
    model, contestant = write_benchmark_model(tmp_path), OpenVinoContestant(precision="bf16")
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    assert contestant.unavailable_reason(model) is None
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    reason = "this processor has no instructions for bf16 (AVX512-BF16 or AMX)"
    assert contestant.unavailable_reason(model) == reason
    assert OpenVinoContestant().unavailable_reason(model) is None


def test_a_predictor_in_openvino_answers_as_the_network(tmp_path):
    require_installed("openvino")
    model, contestant = write_benchmark_model(tmp_path), OpenVinoPredictorContestant()
    assert contestant.unavailable_reason(model) is None
    batch = images(2, 31, 45)
    loaded = contestant.load(model, 1, (2, 31, 45))
    assert compare_answers(loaded(batch), network_run(model.segmenter())(batch)).refusal("fp32") is None
    assert (loaded.provider, loaded.facts) == ("OpenVINO", {"file": "model.onnx"})
    loaded.close()


def test_engines_of_others_leave_nothing_in_the_home_folder(tmp_path):
    """OpenVINO's telemetry would write there, and ask a server."""
    write_benchmark_model(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = [sys.executable, "-c", LOADING, str(tmp_path / "model.onnx")]
    done = subprocess.run(
        command, cwd=ROOT, env={**keep, "HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    assert "OpenVINO" in done.stdout or importlib.util.find_spec("openvino") is None


def test_the_reason_names_the_missing_package_or_file(tmp_path, monkeypatch):
    model = write_benchmark_model(tmp_path)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert OpenVinoContestant().unavailable_reason(model) == "not installed: openvino; pip install openvino"
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    assert OpenVinoContestant().unavailable_reason(model) is None
    reason = "no int8 file was given; make one with unet-export --precision int8"
    assert OpenVinoContestant(precision="int8").unavailable_reason(model) == reason
