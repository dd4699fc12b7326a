from dataclasses import replace

import pytest
from click.testing import CliRunner
from known_times import in_known_time
from networks import make_card, make_network

from benchmarks.cases import training
from benchmarks.cases.training import AUGMENTATIONS, BARE, VARIANT, config_like, measure
from benchmarks.results import Measurement, Results, Skipped
from benchmarks.training import main
from runtime.errors import ConfigError
from unet_core.config import TrainConfig


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(training, "interleave", in_known_time)
    monkeypatch.setattr(training, "default_workers", lambda: 1)


def config_of(data, **changes):
    settings = {"height": 32, "width": 48, "widths": (4, 8), "batch_size": 2, "device": "cpu", "amp": "off"}
    return TrainConfig(data=str(data), out="unused", **(settings | changes))


def test_loading_in_pictures_per_second_and_steps_in_ms(data):
    found = measure(config_of(data), threads=1, rounds=5)
    settings = {"batch": 2, "height": 32, "width": 48, "widths": "4,8", "device": "cpu", "threads": 1}
    assert all(one.settings == settings for one in found)
    loading = [one for one in found if isinstance(one, Measurement) and one.group == "loading"]
    assert len(loading) == len(AUGMENTATIONS) * 2
    pictures = 6 * 86  # the least number of passes over six that has 512
    assert loading[1].values == pytest.approx([1e3 * pictures / (2 * step) for step in (1, 2, 3, 4, 5)])
    steps = {one.contestant: one.values for one in found if isinstance(one, Measurement) and one.group == "steps"}
    assert steps == {
        BARE: (1.0, 2.0, 3.0, 4.0, 5.0),
        "trainer": (2.0, 4.0, 6.0, 8.0, 10.0),
        "trainer, moving average": (3.0, 6.0, 9.0, 12.0, 15.0),
    }
    epochs = [one for one in found if isinstance(one, Measurement) and not one.group]
    assert [(one.unit, len(one.values), one.values[0] > 0) for one in epochs] == [("images/s", 1, True)] * 3


def test_variants_of_a_gpu_are_skipped_with_the_reason(data):
    (skipped,) = [one for one in measure(config_of(data), threads=1, rounds=5) if isinstance(one, Skipped)]
    assert skipped.contestant == f"{VARIANT}all"
    assert skipped.reason == "need a CUDA device, by --device cuda"


def test_several_classes_are_trained_too(data):
    found = measure(config_of(data, classes=("background", "car"), ignore_index=255), threads=1, rounds=5)
    assert BARE in {one.contestant for one in found}


def test_a_run_like_the_cards_trains_such_a_network(tmp_path):
    card = make_card(make_network(classes=3, in_channels=1), size=(48, 64))
    config = config_like(card, tmp_path, epochs=5)
    assert config.architecture == card.architecture
    assert config.input.size == (48, 64)
    assert (config.input.channels, config.output.classes, config.epochs) == ("L", ("c0", "c1", "c2"), 5)
    with pytest.raises(ConfigError, match=r"^--height 45: expected a multiple of 4"):
        config_like(replace(card, input=replace(card.input, size=(45, 64))), tmp_path)


def test_the_command_prints_and_writes_all(data, tmp_path):
    flags = ["--size", "48x32", "--widths", "4,8", "--batch-size", "2", "--rounds", "5", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(data), *flags, "--threads", "1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    results = Results.read(tmp_path / "out")
    assert {one.part for one in results.measurements} == {"training"}
    assert results.method == {"rounds": 5, "threads": 1}
    assert (tmp_path / "out" / "training.md").read_text().strip() in result.output
