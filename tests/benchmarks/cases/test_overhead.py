import cv2
import numpy as np
import torch
from known_times import in_known_time

from benchmarks.cases import overhead
from benchmarks.cases.overhead import BARE, PREDICT, RUN, measure, overhead_calls
from runtime.image import list_images
from runtime.predictor import Predictor


def test_overhead_in_ms(thin, monkeypatch):
    seen = []

    def interleave(contestants, rounds, *, budget_s=None):
        seen.append((torch.get_num_threads(), cv2.getNumThreads(), rounds, budget_s))
        return in_known_time(contestants, rounds)

    monkeypatch.setattr(overhead, "interleave", interleave)
    image = list_images(thin / "val_images")[0]
    calls = measure(thin / "model.onnx", image, rounds=6, threads=1, budget_s=9.0)
    steps = np.arange(1.0, 7)
    values = {one.contestant: one.values for one in calls if one.part == "overhead"}
    assert values == {BARE: tuple(steps), RUN: tuple(2 * steps), f"{PREDICT}60x40": tuple(3 * steps)}
    assert seen == [(1, 1, 6, 9.0)]


def test_the_bare_session_answers_as_ours(thin):
    with Predictor(thin / "model.onnx", "cpu", 1) as predictor:
        calls = overhead_calls(predictor, None)
        (bare,) = calls[BARE]()
        assert np.array_equal(bare, calls[RUN]())
        assert np.array_equal(bare[0], calls[f"{PREDICT}48x32"]().probability)
