"""Masks whose values are not labels yet: thresholds and colours, from the file to a trained and evaluated model."""

import re

import numpy as np
import pytest
from click.testing import CliRunner
from folders import write_pair
from PIL import Image

from runtime.card import InputSpec
from runtime.errors import ConfigError, ImageError
from runtime.image_files.limits import LIMITS
from unet_core.config import TrainConfig
from unet_core.data.cache import Cache
from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.mask_values import MaskValues, classes_of, labels_from
from unet_core.data.pairs import Layout, find_pairs
from unet_core.data.records import SampleDecoder
from unet_core.evaluate import main as evaluate
from unet_core.settings_file import make_config
from unet_core.train import main as train

ROAD, CAR, VOID = (128, 64, 128), (0, 0, 142), (255, 255, 255)
COLOURS = ("road=#804080", "car=#00008e", "ignore=#FFFFFF")


def coloured(path, colours):
    Image.fromarray(np.array([colours], np.uint8)).save(path)
    return path


def labels(path, classes, **values):
    return labels_from(path, LabelSpec(classes=classes), MaskValues(**values), LIMITS).tolist()


def refused(classes, ignore_index=None, **values):
    with pytest.raises(ConfigError) as caught:
        MaskValues(**values).check(classes, ignore_index)
    return str(caught.value)


def test_the_threshold_itself_is_foreground(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 99, 100, 255]], np.uint8)).save(path)
    assert labels(path, ("car",), threshold=100) == [[0, 0, 1, 1]]
    Image.fromarray(np.array([[0, 99, 100, 255]], np.uint16) * 257).save(path)
    assert labels(path, ("car",), threshold=100) == [[0, 0, 1, 1]]


def test_values_of_8_bits_in_a_file_of_16_are_no_shades_of_black(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint16)).save(path)
    assert labels(path, ("car",), threshold=2) == [[0, 0, 1, 1]]


def test_colours_are_classes_and_may_not_count(tmp_path):
    path = coloured(tmp_path / "m.png", [CAR, ROAD, VOID])
    assert labels(path, ("road", "car"), colours=COLOURS) == [[1, 0, IGNORED]]


def test_with_one_class_black_is_background_as_are_colours_of_that_name(tmp_path):
    path = coloured(tmp_path / "m.png", [CAR, (0, 0, 0), ROAD])
    assert labels(path, ("car",), colours=("car=#00008e", "background=#804080")) == [[1, 0, 0]]
    assert labels(path, ("car",), colours=("car=#00008e", "car=#804080")) == [[1, 0, 1]]


def test_unknown_colours_are_named(tmp_path):
    path = coloured(tmp_path / "m.png", [CAR, *((value, 1, 2) for value in range(9))])
    with pytest.raises(ImageError) as caught:
        labels(path, ("road", "car"), colours=COLOURS)
    assert str(caught.value) == (
        f"{path}: has colours of no class (#000102, #010102, #020102, #030102, #040102, ...); name them in --colours, "
        "as a class or as ignore"
    )


def test_contradictions_are_refused():
    assert refused(("car",), threshold=128, colours=COLOURS) == (
        "--mask-threshold: contradicts --colours; leave one of them out"
    )
    assert refused(("a", "b"), threshold=128) == (
        "--mask-threshold 128: is for one class, found 2 --classes; leave it out"
    )
    assert refused(("car",), 255, threshold=128) == (
        "--mask-threshold 128: contradicts --ignore-index 255; leave that out, or use masks of plain labels"
    )
    assert refused(("road", "car"), 255, colours=COLOURS) == (
        "--colours: contradicts --ignore-index 255; leave that out, or use ignore=#RRGGBB among the --colours"
    )
    assert refused(("car", "bus"), colours=COLOURS) == "--colours: 'road' is none of the --classes (car, bus)"
    assert refused(("road", "car", "bus"), colours=COLOURS) == (
        "--colours: has no colour for the class 'bus'; add bus=#RRGGBB"
    )
    assert refused(("road",), colours=("road=#12",)) == (
        "--colours 'road=#12': expected NAME=#RRGGBB, such as road=#804080"
    )
    assert refused(("a", "b"), colours=("a=#123456", "b=#123456")) == (
        "--colours: found #123456 twice (a, b), expected it once"
    )


def test_an_offset_says_nothing_of_colours():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(data="d", out="o", classes=("road", "car"), colours=COLOURS, class_offset=1)
    assert str(caught.value) == "--colours: contradicts --class-offset 1; leave one of them out"


def test_classes_are_those_of_the_colours_unless_given():
    assert classes_of(COLOURS) == ("road", "car")
    assert classes_of(("background=#000000", "car=#00008e", "ignore=#ffffff")) == ("car",)
    assert classes_of(("background=#000000", "car=#00008e", "road=#804080")) == ("background", "car", "road")
    settings = {"data": "d", "out": "o", "colours": COLOURS}
    assert make_config(settings, {}, None).classes == ("road", "car")
    assert make_config({**settings, "classes": ("car", "road")}, {}, None).classes == ("car", "road")


def test_a_cache_keeps_readings_apart(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path, "train", name)
    decoder = SampleDecoder(input=InputSpec(), labels=LabelSpec(classes=("car",)))
    readings = [find_pairs(tmp_path, "train", Layout(mask_threshold=value, val_share=0.5)) for value in (None, 9, 99)]
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    assert len({cache.of(pairs, decoder) for pairs in readings}) == 3


def test_jpeg_masks_train_and_are_evaluated_as_trained(tmp_path):
    """`imgs/` and `masks/` of JPEG files, as people have them; the same command without a threshold is refused."""
    for index in range(4):
        write_pair(tmp_path, "train", f"car{index}", mask_suffix=".jpg")
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (tmp_path / "train_images").rename(data / "imgs")
    (tmp_path / "train_masks").rename(data / "masks")
    settings = ["--widths", "2", "--size", "16x16", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    command = [str(data), "--out", str(out), *settings, "--no-tensorboard", "--cache-gb", "0", "--group", ""]
    done = CliRunner().invoke(train, command)
    assert done.exit_code == 2 and "has a mask in a lossy format (.jpg)" in done.stderr
    done = CliRunner().invoke(train, [*command, "--mask-threshold", "128"])
    assert done.exit_code == 0
    done = CliRunner().invoke(evaluate, [str(out / "model.pth"), str(data), "--workers", "0"])
    assert done.exit_code == 0
    assert "--mask-threshold 128" in done.stderr
    dice = re.search(r"pixel Dice +([0-9.]+)", done.stdout)[1]
    again = CliRunner().invoke(evaluate, [str(out / "model.pth"), str(data), "--workers", "0", "--mask-threshold", "1"])
    assert re.search(r"pixel Dice +([0-9.]+)", again.stdout)[1] != dice  # JPEG's noise around the edges is foreground
    assert TrainConfig(data="d", out="o").layout == Layout()
