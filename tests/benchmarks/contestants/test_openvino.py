"""OpenVINO for real where it is installed, and the message where it is not."""

import numpy as np
import pytest
from benchmark_models import require_installed, write_benchmark_model
from devices import images
from graphs import DEEP

from benchmarks.contestants import base
from benchmarks.contestants.answers import compare_answers
from benchmarks.contestants.openvino import OpenVinoContestant
from export.proof import network_run

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


def test_the_reason_names_the_missing_package_or_file(tmp_path, monkeypatch):
    model = write_benchmark_model(tmp_path)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    assert OpenVinoContestant().unavailable_reason(model) == "not installed: openvino; pip install openvino"
    monkeypatch.setattr(base, "find_spec", lambda name: object())
    assert OpenVinoContestant().unavailable_reason(model) is None
    reason = "no int8 file was given; make one with unet-export --precision int8"
    assert OpenVinoContestant(precision="int8").unavailable_reason(model) == reason
