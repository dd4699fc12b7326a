"""Pictures of 12 bits in files of 16: a run tells their levels, keeps them in the card, and learns as from others."""

import csv
import shutil
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from runtime.errors import ConfigError
from runtime.image import load_image
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display
from unet_core.train import train
from unet_core.training.distributed import Processes
from unet_core.training.run import find_records, load_records

LINE = "levels: stored values 0 to 4095 become 0 to 255, since the images use 12 bits (--levels 0,4095)"


def deepen(data, white):
    """Replace the pictures of a data set by greys of 12 bits, of which 4095 is stored as `white`."""
    for index, path in enumerate(sorted(data.glob("*_images/*.jpg"))):
        random = np.random.default_rng(index)
        deep = cv2.imread(str(path))[:, :, 0].astype(int) * 16 + random.integers(0, 16, (32, 48))  # 0..4095
        cv2.imwrite(str(path.with_suffix(".png")), (deep * white // 4095).astype(np.uint16))
        path.unlink()


def records_of(config):
    """The records of a run, decoded."""
    sets = find_records(config)
    load_records(config, sets, Processes(), Display())
    return sets


def result_of(folder):
    """The metrics of every epoch, without the time that it took."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture
def twelve(data):
    deepen(data, 4095)
    return data


def test_12_bits_reach_what_the_full_range_does(config, data, tmp_path, capsys):
    """To the last digit: the network sees the same pictures."""
    shutil.copytree(data, tmp_path / "full")
    deepen(data, 4095)
    deepen(tmp_path / "full", 65_535)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = train(config)
        assert LINE in capsys.readouterr().out.splitlines()
        full = train(replace(config, data=str(tmp_path / "full"), out=str(tmp_path / "b")))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "b")
    assert "levels: " not in capsys.readouterr().out
    cards = [load_checkpoint(path).card for path in (best, full)]
    assert [card.input.levels for card in cards] == [(0, 4095), None]
    assert cards[0].weights_sha256 == cards[1].weights_sha256


def test_every_program_obeys_the_levels_of_the_card(models, views):
    """On pictures of 12 bits they answer what they answered on the same pictures of 8 bits, to the last digit."""
    from export.samples import load_samples

    def answers(change):
        checkpoint, graph, _, card = models(change)
        pairs = find_pairs(views, "val")
        figures = [evaluate(path, pairs, device="cpu").summary() for path in (checkpoint, graph)]
        probability = Predictor(graph, "cpu").predict(pairs[0].image).probability
        return figures, load_samples(views, card).pictures(9), probability

    figures, pictures, probability = answers(lambda card: card)
    for path in sorted((views / "val_images").iterdir()):
        pixels = load_image(path).astype(int)
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), (-(-pixels * 4095 // 255)).astype(np.uint16)[:, :, ::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = answers(lambda card: replace(card, input=replace(card.input, levels=(0, 4095))))
    assert found[0] == figures and np.array_equal(found[2], probability)
    assert len(pictures) == 3 and all(map(np.array_equal, found[1], pictures))


@pytest.mark.parametrize(
    ("setting", "levels"), [("auto", (0, 4095)), ("full", None), ("9,5000", (9, 5000)), ("percentile", (9, 4000))]
)
@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")
def test_the_setting_decides(config, twelve, setting, levels):
    train_set, val_set = records_of(replace(config, levels=setting))
    assert train_set.decoder.input.levels == val_set.decoder.input.levels
    found = train_set.decoder.input.levels
    if setting == "percentile":
        values = [cv2.imread(str(pair.image), cv2.IMREAD_UNCHANGED).ravel() for pair in train_set.pairs]
        ordered = np.sort(np.concatenate(values))
        levels = ordered[len(ordered) // 1000], ordered[-1 - len(ordered) // 1000]
    assert found == levels


@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")
@pytest.mark.parametrize("setting", ["full", "0,60000"])
def test_few_levels_are_told_whatever_is_set(config, twelve, capsys, setting):
    records_of(replace(config, levels=setting))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    high = {"full": 14, "0,60000": 15}[setting]
    assert note == (
        f"note: training: the images fill {high + 1} of the 256 levels that the network sees (0 to {high}, but for "
        "0.2 % of their values), so it learns little; give --levels auto or percentile"
    )


def test_dark_pictures_of_8_bits_are_told_and_percentiles_mend_them(config, data, capsys):
    for path in data.glob("train_images/*.jpg"):
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)) // 8)
        path.unlink()
    records_of(config)
    said = capsys.readouterr().err
    assert "the images fill 29 of the 256 levels" in said and said.endswith("; give --levels percentile, or LOW,HIGH\n")
    found, _ = records_of(replace(config, levels="percentile"))
    said = capsys.readouterr()
    assert "note" not in said.err and "levels: stored values 0 to 2" in said.out
    assert np.ptp(found[0][0]) == 255


def test_bars_of_a_letterbox_are_no_levels_of_the_images(config, data, capsys):
    """They are black, and these images are not."""
    for path in data.glob("train_images/*.jpg"):
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)) // 8 + 100)
        path.unlink()
    records_of(replace(config, height=64, width=64, fit="letterbox"))
    assert "the images fill 28 of the 256 levels that the network sees (100 to 127, " in capsys.readouterr().err


def test_a_resumed_run_keeps_its_levels(config, twelve, monkeypatch):
    train(config)
    monkeypatch.setattr("unet_core.training.run.find_levels", lambda *_: pytest.fail("levels were sought again"))
    train(replace(config, epochs=3), resume=True)
    assert load_checkpoint(f"{config.out}/model.pth").card.input.levels == (0, 4095)
    with pytest.raises(ConfigError) as caught:
        train(replace(config, epochs=4, levels="full"), resume=True)
    assert str(caught.value) == f"--levels full: the run in {config.out} has auto; leave it out"


def test_a_run_of_a_version_without_levels_is_resumed_with_the_whole_range(config, data):
    train(config)
    content = torch.load(f"{config.out}/my_checkpoint.pth.tar")
    del content["config"]["levels"]
    torch.save(content, f"{config.out}/my_checkpoint.pth.tar")
    train(replace(config, epochs=3), resume=True)
    assert load_checkpoint(f"{config.out}/model.pth").card.input.levels is None


def test_an_invalid_setting_is_refused(config):
    with pytest.raises(ConfigError, match=r"^--levels 9: expected auto, full, percentile or LOW,HIGH: "):
        replace(config, levels="9")
