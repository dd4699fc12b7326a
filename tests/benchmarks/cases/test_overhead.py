import cv2
import numpy as np
import pytest
import torch
from benchmark_models import require_installed
from known_times import in_known_time

from benchmarks.cases import overhead
from benchmarks.cases.overhead import BARE, BARE_OPENVINO, PREDICT, RUN, measure, overhead_calls
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.openvino import OpenVinoContestant
from runtime.image import list_images
from runtime.predictor import Predictor


@pytest.fixture
def model(thin):
    return BenchmarkModel.read(thin / "model.onnx")


@pytest.fixture
def known(monkeypatch):
    seen = []

    def interleave(contestants, rounds, *, budget_s=None):
        seen.append((torch.get_num_threads(), cv2.getNumThreads(), rounds, budget_s))
        return in_known_time(contestants, rounds)

    monkeypatch.setattr(overhead, "interleave", interleave)
    return seen


def test_overhead_of_each_engine_in_ms_in_one_run(thin, model, known):
    require_installed("openvino")
    image = list_images(thin / "val_images")[0]
    found = measure(model, image, rounds=6, threads=1, budget_s=9.0)
    steps = np.arange(1.0, 7)
    values = {(one.settings["engine"], one.contestant): one.values for one in found}
    assert values == {
        ("ONNX Runtime", BARE): tuple(steps),
        ("ONNX Runtime", RUN): tuple(2 * steps),
        ("ONNX Runtime", f"{PREDICT}60x40"): tuple(3 * steps),
        ("OpenVINO", BARE_OPENVINO): tuple(4 * steps),
        ("OpenVINO", RUN): tuple(5 * steps),
        ("OpenVINO", f"{PREDICT}60x40"): tuple(6 * steps),
    }
    assert {one.group for one in found} == {"overhead"}
    assert known == [(1, 1, 6, 9.0)]


def test_without_openvino_it_is_skipped(model, known, monkeypatch):
    monkeypatch.setattr(OpenVinoContestant, "unavailable_reason", lambda *_: "not installed")
    skipped, *found = measure(model, rounds=6, threads=1)
    assert (skipped.settings, skipped.reason) == ({"engine": "OpenVINO"}, "not installed")
    assert [one.contestant for one in found] == [BARE, RUN, f"{PREDICT}48x32"]


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_bare_engine_answers_as_ours(thin, model, device):
    if device == "openvino":
        require_installed("openvino")
    with Predictor(thin / "model.onnx", device, 1) as predictor:
        calls = overhead_calls(model, predictor, None)
        bare = calls[BARE]()[0] if device == "cpu" else calls[BARE_OPENVINO]()
        assert np.array_equal(bare, calls[RUN]())
        assert np.array_equal(bare[0], calls[f"{PREDICT}48x32"]().probability)
