from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.cases import stages
from benchmarks.cases.image_files import write_jpeg
from benchmarks.cases.stages import measure
from runtime.predictor import Predictor
from runtime.result import Times


def test_stages_of_every_size_without_those_that_take_no_time(thin):
    found = measure(
        thin / "model.onnx", thin / "val_images" / "v0.jpg", sizes=[(20, 30), (50, 40)], threads=1, rounds=3
    )
    names = ("decode", "fit", "infer", "restore")
    assert [(one.settings["height"], one.contestant) for one in found] == [
        (height, name) for height in (20, 50) for name in names
    ]
    assert all((len(one.values), one.unit, one.group) == (3, "ms", "stages") for one in found)
    assert all(one.settings["pictures"] == "real" and one.settings["device"] == "cpu" for one in found)


def test_the_second_of_two_predictions_counts(thin, monkeypatch):
    asked = []

    def predict(self, file):
        with Image.open(file) as picture:
            asked.append(picture.size)
        return SimpleNamespace(times=Times(decode=len(asked), fit=0.0, transfer=0.5, infer=2.0, restore=0.0))

    monkeypatch.setattr(Predictor, "predict", predict)
    found = measure(thin / "model.onnx", sizes=[(20, 30), (50, 40)], threads=1, rounds=2)
    assert asked == [(30, 20), (30, 20), (40, 50), (40, 50)] * 2
    assert [(one.contestant, one.values) for one in found] == [
        ("decode", (2.0, 6.0)),
        ("transfer", (0.5, 0.5)),
        ("infer", (2.0, 2.0)),
        ("decode", (4.0, 8.0)),
        ("transfer", (0.5, 0.5)),
        ("infer", (2.0, 2.0)),
    ]
    assert {one.settings["pictures"] for one in found} == {"synthetic"}


@pytest.mark.parametrize(("budget", "rounds"), [(None, 8), (80.0, 8), (65.0, 6), (1.0, 5)])
def test_a_budget_means_fewer_rounds_but_at_least_five(thin, monkeypatch, budget, rounds):
    """Ten seconds a round: two predictions of 5 s."""
    now = [0.0]

    def predict(self, file):
        now[0] += 5.0
        return SimpleNamespace(times=Times(decode=1.0, fit=0.0, transfer=0.0, infer=0.0, restore=0.0))

    monkeypatch.setattr(Predictor, "predict", predict)
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    (decode,) = measure(thin / "model.onnx", sizes=[(20, 30)], threads=1, rounds=8, budget_s=budget)
    assert len(decode.values) == rounds


@pytest.mark.parametrize(("channels", "mode"), [("RGB", "RGB"), ("L", "L")])
def test_pictures_have_the_size_and_channels_that_were_asked_for(thin, tmp_path, channels, mode):
    for source in (None, thin / "val_images" / "v0.jpg"):
        with Image.open(write_jpeg(tmp_path / "a.jpg", (21, 34), channels, source)) as picture:
            assert (picture.size, picture.mode, picture.format) == ((34, 21), mode, "JPEG")
