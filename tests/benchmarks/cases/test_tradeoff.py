import subprocess
from contextlib import contextmanager

import pytest
from known_times import in_known_time

from benchmarks.cases import tradeoff
from benchmarks.cases.tradeoff import EvaluatedFile, Trained, measure, train_within, widths_of
from benchmarks.results import Measurement, Skipped
from runtime.errors import DeviceError, ProofError
from runtime.model_file.reader import read_model
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)


class Stopwatch:
    """Stands in for `threading.Timer`: it goes off when the test says so."""

    def __init__(self, seconds, function):
        Stopwatch.seconds, Stopwatch.go_off = seconds, function

    def start(self):
        """Nothing happens by itself."""

    cancel = start


class Watched(Display):
    """Remembers what stands beside the bar; the limit goes off after the first epoch."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    @contextmanager
    def bar(self, label, total, *, unit="image", done=0):
        def advance(count, figures=""):
            self.lines.append((count, figures))
            if count:
                Stopwatch.go_off()

        yield advance


def config_of(data, tmp_path, **changes):
    settings = {"epochs": 1, "height": 32, "width": 48, "widths": (2, 4), "lr": 1e-2, "batch_size": 2, "workers": 0}
    fixed = {"cache_gb": 0.0, "tensorboard": False, "device": "cpu"}
    return TrainConfig(data=str(data), out=str(tmp_path / "run"), **(settings | fixed | changes))


def test_widths_double_on_each_of_four_levels():
    assert widths_of(8) == (8, 16, 32, 64)


def test_a_training_that_is_stopped_counts_with_its_complete_epochs(tmp_path, data, monkeypatch):
    monkeypatch.setattr(tradeoff.threading, "Timer", Stopwatch)
    display = Watched()
    trained = train_within(config_of(data, tmp_path, epochs=10**6), 0.0, display)
    epochs = [line for count, line in display.lines if count]
    assert len(epochs) == trained.epochs < 1000
    assert epochs[0].startswith("epoch 1/1000000  loss ")
    assert load_checkpoint(trained.checkpoint).card.training.epochs in range(1, trained.epochs + 1)


def test_a_training_is_not_left_running_by_an_error(tmp_path, data, monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*given, **named):
        started.append(popen(*given, **named))
        return started[0]

    monkeypatch.setattr(tradeoff.subprocess, "Popen", start)
    monkeypatch.setattr(Stopwatch, "go_off", lambda: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        train_within(config_of(data, tmp_path, epochs=10**6), 600.0, Watched())
    assert started[0].returncode is not None


def test_a_training_without_an_epoch_is_refused(tmp_path, data):
    with pytest.raises(DeviceError) as caught:
        train_within(config_of(data, tmp_path), 0.0, QUIET)
    assert str(caught.value) == "training: no epoch was complete after 0 s; give it more time, or fewer images"


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(DeviceError) as caught:
        train_within(config_of(tmp_path / "none", tmp_path), 600.0, QUIET)
    start = f"training in a process of its own: ended with status 1 (runtime.errors.DataError: {tmp_path / 'none'}"
    assert str(caught.value).startswith(start)


@pytest.fixture
def stand_ins(thin, monkeypatch):
    """Trainings of base 3 fail, base 2 gives the thin model; its int8 does not pass its proof."""

    def train_within(config, limit_s, display):
        if config.widths[0] == 3:
            raise DeviceError("training: no epoch was complete")
        return Trained(checkpoint=thin / "model.pth", epochs=4, seconds=2.5)

    def file_of(config, trained, settings, display):
        if settings["precision"].startswith("int8"):
            raise ProofError("int8: answers\nwith NaN")
        facts = {"epochs": trained.epochs}
        return EvaluatedFile(path=thin / "model.onnx", settings=settings, image_dice=0.5, facts=facts)

    monkeypatch.setattr(tradeoff, "train_within", train_within)
    monkeypatch.setattr(tradeoff, "export_and_evaluate", file_of)
    monkeypatch.setattr(tradeoff, "interleave", in_known_time)


def test_all_files_take_turns_and_failures_are_told(stand_ins, tmp_path):
    config = config_of(tmp_path, tmp_path, epochs=7)
    found = measure(config, tmp_path, bases=(3, 2), threads=1, rounds=5)
    reasons = {
        (one.settings["base"], one.settings["precision"]): one.reason for one in found if isinstance(one, Skipped)
    }
    refused = "training: no epoch was complete"
    assert reasons == {
        (3, "fp32"): refused,
        (3, "fp16"): refused,
        (3, "int8 u8"): refused,
        (2, "int8 u8"): "int8: answers with NaN",
    }
    rows = [one for one in found if isinstance(one, Measurement)]
    assert [(one.settings["precision"], one.unit, one.values, one.group) for one in rows] == [
        ("fp32", "ms", (1.0, 2.0, 3.0, 4.0, 5.0), "trade-off"),
        ("fp32", "Dice", (0.5,), ""),
        ("fp16", "ms", (2.0, 4.0, 6.0, 8.0, 10.0), "trade-off"),
        ("fp16", "Dice", (0.5,), ""),
    ]
    assert rows[0].settings["epochs"] == 7
    assert rows[0].facts == {"epochs": 4}


def test_a_device_that_is_not_there_is_told_before_the_training(stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff.availability, "unavailable_reason", lambda device: f"{device} is away")
    monkeypatch.setattr(tradeoff, "train_within", None)
    found = measure(config_of(tmp_path, tmp_path), tmp_path, device="cuda:1", threads=1)
    settings = {"device": "cuda:1"}
    assert found == [Skipped(part="trade-off", contestant="unet-deploy", settings=settings, reason="cuda:1 is away")]


@pytest.mark.slow
def test_networks_are_trained_exported_and_measured(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff, "interleave", in_known_time)
    found = measure(config_of(data, tmp_path), tmp_path, bases=(2,), kinds=("fp32", "int8 u8"), threads=1, rounds=5)
    dices = {one.settings["precision"]: one for one in found if one.unit == "Dice"}
    assert list(dices) == ["fp32", "int8 u8"]
    for name, one in dices.items():
        path = tmp_path / "base-2" / f"{name.replace(' ', '.')}.onnx"
        metrics = evaluate(path, find_pairs(data, "val"), device="cpu")
        assert one.values == (metrics.image_dice,)
        assert one.facts["pixel_dice"] == metrics.pixel_dice
        assert one.facts["file_mb"] == path.stat().st_size / 1e6
        assert (one.facts["epochs"], one.facts["images"]) == (1, 3)
        assert read_model(path)[0].architecture.widths == (2, 4, 8, 16)
    assert "gate_passed" in dices["int8 u8"].facts
