"""Notes on the data that a training prints before its first epoch."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from unet_core.checkpoint import load_checkpoint
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.predictions import checkpoint_predictions
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display
from unet_core.train import train
from unet_core.training.distributed import Processes
from unet_core.training.run import find_records, load_records


def notes(config, capsys):
    """The notes on the data of a run."""
    load_records(config, find_records(config), Processes(), Display())
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_a_split_that_may_not_be_meant_is_told(config, data, capsys):
    for kind in ("images", "masks"):
        shutil.rmtree(data / f"val_{kind}")
    for path in sorted(data.glob("train_*/car*")):
        path.rename(path.with_name(f"{('cat', 'dog')[int(path.name[3]) // 3]}_{path.name[3:]}"))
    (note,) = notes(config, capsys)
    assert note == (
        "validation has 3 of 6 images where --val-share asks for 1: all that are named cat_, and training has none of "
        "these; if names with the same beginning up to '_' are not views of one thing, give --group ''"
    )


def write_masks(data, split, value):
    """Write one value into all masks of a split."""
    for path in (data / f"{split}_masks").iterdir():
        with Image.open(path) as picture:
            size = picture.size
        path.unlink()
        Image.new("L", size, value).save(path.with_suffix(".png"))


@pytest.mark.parametrize(
    ("classes", "value", "what"),
    [
        (("car",), 0, "no mask has any foreground"),
        (("car",), 255, "every pixel of every mask is foreground"),
        (("background", "car"), 0, "no mask has any foreground"),
        (("background", "car"), 1, "every pixel of every mask is car"),
        (("road", "car"), 0, "every pixel of every mask is road"),
    ],
)
def test_masks_of_one_label_are_told_before_the_first_epoch(config, data, capsys, classes, value, what):
    config = replace(config, classes=classes)
    assert notes(config, capsys) == []
    write_masks(data, "val", value)
    by_loss = (
        f"validation: {what}, so Dice tells little and the best epoch is chosen by the validation loss; add images "
        "with other pixels"
    )
    assert notes(config, capsys) == [by_loss]
    write_masks(data, "train", value)
    if what == "no mask has any foreground":
        with pytest.raises(DataError) as caught:
            notes(config, capsys)
        assert str(caught.value) == f"{data / 'train_masks'}: {what}, so there is nothing to learn"
        return
    everywhere = f"training: {what}, so the network learns to answer that everywhere; add images with other pixels"
    for _ in range(2):  # decoded, and from the cache
        assert notes(config, capsys) == [everywhere, by_loss]


def test_classes_that_no_mask_has_are_told(config, data, capsys):
    config = replace(config, classes=("background", "car", "tram", "bus", "train"), height=16, width=24)
    labels = np.full((32, 48), 2, np.uint8)
    labels[:16] = 1
    labels[3, 3] = 3  # gone at half of the size
    for path in [*(data / "train_masks").iterdir(), *(data / "val_masks").iterdir()]:
        path.unlink()
        Image.fromarray(labels).save(path.with_suffix(".png"))
    expected = [
        "training: at 24x16 no mask has bus, train; these classes cannot be learned",
        "validation: no mask has train; this class cannot be measured",
    ]
    for _ in range(2):  # decoded, and from the cache
        assert notes(config, capsys) == expected
    expected[1] = "validation: at 24x16 no mask has bus, train; these classes cannot be measured"
    assert notes(replace(config, validate_at="trained"), capsys) == expected


def test_masks_of_which_no_pixel_counts_are_refused(config, data, capsys):
    write_masks(data, "val", 7)
    with pytest.raises(DataError) as caught:
        notes(replace(config, ignore_index=7), capsys)
    assert str(caught.value) == (
        "validation: no pixel of any mask counts (all are 7, the value of --ignore-index), so there is nothing to "
        "validate on"
    )


@pytest.mark.parametrize("classes", [("car",), ("background", "car")], ids=len)
def test_without_foreground_to_validate_on_the_best_epoch_is_that_of_the_lowest_loss(config, data, classes, capsys):
    """The first epoch answers nothing, and was the best one for ever: its Dice is 1."""
    write_masks(data, "val", 0)
    best = train(replace(config, classes=classes, epochs=6, lr=1e-2))
    rows = list(csv.DictReader((best.parent / "metrics.csv").read_text().splitlines()))
    losses = [float(row["val_loss"]) for row in rows]
    lowest = losses.index(min(losses))
    epoch = load_checkpoint(best).card.training.epochs
    assert epoch == lowest + 1 != 1
    assert "val_loss" not in load_checkpoint(best).card.training.metrics
    said = capsys.readouterr().out
    assert f"best epoch: {epoch} of 6, with a validation loss of {losses[lowest]:.4f}\n" in said
    assert f"  validation loss {losses[0]:.4f}  accuracy " in said
    network = load_checkpoint(best)
    segmenter = Segmenter(network.network(), network.card).eval()
    pairs = find_pairs(data, "val")
    decoder = SampleDecoder(input=network.card.input, labels=config.labels, truth_at_original=True)
    records = Records(pairs, replace(decoder, labels=replace(config.labels, classes=classes)))
    found = []
    for _, probability, truth in checkpoint_predictions(segmenter, network.card, records):
        answer = np.where(truth == 1, probability[-1], 1 - probability[-1])
        found.append(-np.log(answer).mean())
    assert losses[lowest] == pytest.approx(np.mean(found), rel=1e-4)
