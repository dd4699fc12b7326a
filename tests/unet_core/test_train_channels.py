"""Training, evaluation and checks of images of many channels."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from evaluating import run as run_evaluate
from layouts import run as run_data
from many_channels import write_channels, write_image
from PIL import Image

from runtime.errors import ConfigError, DataError
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.augmentation import augmentation
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display
from unet_core.train import main, train
from unet_core.training.distributed import Processes
from unet_core.training.run import find_records, load_records, settings_of_network

SUFFIXES = (".tif", ".npy", ".npz")


@pytest.fixture
def bands(tmp_path):
    """Eight pairs to train on and three to validate, of five channels in three formats."""
    for index in range(8):
        write_channels(tmp_path / "bands", "train", f"a{index}", suffix=SUFFIXES[index % 3], seed=index)
    for index in range(3):
        write_channels(tmp_path / "bands", "val", f"b{index}", suffix=SUFFIXES[index], seed=100 + index)
    return tmp_path / "bands"


@pytest.fixture
def five(config, bands):
    """The settings of a run on five channels that learns."""
    return replace(config, data=str(bands), channels="5", epochs=12, lr=1e-2, cache_gb=0)


def loaded(config, capsys):
    """The records of a run, and the notes that it printed."""
    sets = find_records(config)
    load_records(config, sets, Processes(), Display())
    notes = [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    return sets, notes


def test_the_fifth_channel_is_learned_and_measured(five, bands, tmp_path, capsys):
    best = train(five)
    card = load_checkpoint(best).card
    assert (card.input.channels, card.architecture.in_channels) == ("raw", 5)
    assert (card.input.mean, card.input.std) == ((0.0,) * 5, (1.0,) * 5)
    assert card.training.metrics["pixel_dice"] > 0.8  # the others are noise; one answer everywhere gives 0.4
    metrics = evaluate(best, find_pairs(bands, "val", five.layout), device="cpu")
    assert metrics.summary()["pixel_dice"] == pytest.approx(card.training.metrics["pixel_dice"], abs=1e-6)
    done = run_evaluate(best, bands, "--pictures", tmp_path / "shown")
    assert done.exit_code == 0, done.stderr
    assert f"on 3 val images of {bands}" in done.stdout
    assert {path.name for path in (tmp_path / "shown").iterdir()} == {"typical.png", "worst.png"}
    panels = sorted((tmp_path / "run" / "saved_images").rglob("*.png"))
    assert len(panels) == 3
    for path in panels:
        with Image.open(path) as picture:
            assert picture.mode == "RGB"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_any_number_of_channels_are_decoded(config, tmp_path, count, suffix, capsys):
    expected = {}
    for split in ("train", "val"):
        for index in range(2):
            name = f"{split}{index}"
            expected[name], _ = write_channels(tmp_path / "x", split, name, count, suffix, seed=index)
    (train_set, val_set), notes = loaded(replace(config, data=str(tmp_path / "x"), channels=str(count)), capsys)
    assert notes == []
    for records in (train_set, val_set):
        for index, pair in enumerate(records.pairs):
            assert np.array_equal(records[index][0], expected[pair.name])


@pytest.mark.parametrize("kind", ["basic", "strong"])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 16])
def test_augmentation_keeps_channels_together(kind, count):
    """All channels alike: after each augmentation they still are, and beside the mask that they show."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:25, 20:45] = 1
    image = np.repeat(mask[:, :, None] * np.uint8(200), count, axis=2)
    change = augmentation(kind, False)
    for seed in range(6):
        change.set_random_seed(seed)
        found = change(image=image, mask=mask)
        assert found["image"].shape == (40, 60, count) and found["image"].dtype == np.uint8
        assert np.array_equal(found["image"], np.repeat(found["image"][:, :, :1], count, axis=2))
        assert np.mean((found["image"][:, :, 0] > 90) != (found["mask"] > 0)) < 0.04


def test_crops_and_strong_augmentation_train(five, tmp_path):
    train(replace(five, fit="native", height=16, width=24, augment="strong", epochs=1, out=str(tmp_path / "crops")))
    card = load_checkpoint(tmp_path / "crops" / "model.pth").card
    assert (card.input.fit, card.input.size, card.architecture.in_channels) == ("native", (16, 24), 5)


def test_a_network_of_another_library_takes_many_channels(five, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    config = replace(
        five,
        network="smp.Unet",
        widths=TrainConfig.widths,
        encoder="resnet18",
        encoder_weights="none",
        network_arg=("encoder_depth=3", "decoder_channels=[8, 8, 8]"),
        epochs=1,
        height=64,
        width=64,
        out=str(tmp_path / "smp"),
    )
    card = load_checkpoint(train(config)).card
    assert (card.input.channels, card.architecture.in_channels, card.input.mean) == ("raw", 5, (0.0,) * 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_twelve_bits_of_many_channels_are_found(config, tmp_path, suffix, capsys):
    folder = tmp_path / "deep"
    for split in ("train", "val"):
        image, _ = write_channels(folder, split, split, 4, suffix, np.uint16)
        write_image(folder / f"{split}_images" / f"{split}{suffix}", (image // 16).astype(np.uint16))
    settings = replace(config, data=str(folder), channels="4")
    load_records(settings, sets := find_records(settings), Processes(), Display())
    assert sets[0].decoder.input.levels == (0, 4095)
    assert "levels: stored values 0 to 4095 become 0 to 255" in capsys.readouterr().out
    expected = (image // 16).astype(int) * 255 // 4095
    assert np.array_equal(sets[1][0][0], expected)


@pytest.mark.parametrize("levels", ["auto", "percentile", "0,4095"])
def test_floating_point_images_of_0_to_1_need_no_levels(config, tmp_path, levels, capsys):
    folder = tmp_path / "floats"
    image, _ = write_channels(folder, "train", "a", 4, ".npy", np.float32)
    write_channels(folder, "val", "b", 4, ".tif", np.float32, seed=1)
    sets, _ = loaded(replace(config, data=str(folder), channels="4", levels=levels), capsys)
    assert np.array_equal(sets[0][0][0], np.rint(image * np.float32(255)))


def test_floating_point_images_beyond_are_refused_with_the_range(config, tmp_path, capsys):
    folder = tmp_path / "floats"
    for split in ("train", "val"):
        write_channels(folder, split, split, 4, ".npy", np.float32)
    decibels = np.linspace(-20, 3, 32 * 48 * 4, dtype=np.float32).reshape(32, 48, 4)
    np.save(folder / "train_images" / "train.npy", decibels)
    with pytest.raises(DataError, match=r"found float32 values from -20\.0 to 3\.0, expected 0 to 1, scale it"):
        loaded(replace(config, data=str(folder), channels="4"), capsys)


def test_files_of_other_numbers_of_channels_are_refused_by_name(five, bands, capsys):
    write_channels(bands, "train", "c", 3, ".npy")
    write_channels(bands, "train", "d", 6, ".tif")
    Image.new("RGB", (48, 32)).save(bands / "train_images" / "e.png")
    Image.new("L", (48, 32)).save(bands / "train_masks" / "e.png")
    with pytest.raises(DataError) as caught:
        loaded(five, capsys)
    text = str(caught.value)
    assert "3 of 14 pairs" in text
    for count in (3, 6):
        advice = f"use images of 5 channels, or a model that is trained with --channels {count}"
        assert f"has {count} channels, expected 5, {advice}" in text


def test_a_fourth_channel_is_used_if_it_is_asked_for_and_told_otherwise(config, tmp_path, capsys):
    folder = tmp_path / "rgba"
    images = {split: write_channels(folder, split, split, 4, ".png", seed=7)[0] for split in ("train", "val")}
    sets, notes = loaded(replace(config, data=str(folder), channels="4"), capsys)
    assert notes == [] and np.array_equal(sets[0][0][0], images["train"])
    sets, notes = loaded(replace(config, data=str(folder)), capsys)
    assert np.array_equal(sets[0][0][0], images["train"][:, :, :3])
    assert notes == [
        f"training: channel 4 of {folder / 'train_images' / 'train.png'} is not used, since --channels is RGB; give "
        "--channels 4 to train on all 4"
    ]
    opaque = np.dstack([images["train"][:, :, :3], np.full((32, 48), 255, np.uint8)])
    write_image(folder / "train_images" / "train.png", opaque)
    assert loaded(replace(config, data=str(folder)), capsys)[1] == []


def test_arrays_beside_images_stay_out_unless_channels_are_given(config, data, capsys):
    np.save(data / "train_images" / "car0.npy", np.zeros((32, 48, 4), np.uint8))
    sets, notes = loaded(config, capsys)
    assert len(sets[0]) == 6
    assert notes == [
        f"{data}: 1 file left out: .npy (1); arrays are read as images alone, with unet-train --channels N"
    ]


@pytest.mark.parametrize("channels", ["0", "17", "05", "rgb", "4.0", "-3", ""])
def test_other_channels_are_refused(config, channels):
    with pytest.raises(ConfigError) as caught:
        replace(config, channels=channels)
    assert str(caught.value) == f"--channels {channels}: expected RGB, L, or a number of channels from 1 to 16"


def test_a_number_of_channels_may_stand_in_a_file_as_a_number(tmp_path, bands):
    file = tmp_path / "settings.toml"
    file.write_text(f"channels = 6\nout = '{tmp_path / 'run'}'\n")
    done = CliRunner().invoke(main, [str(bands), "--config", str(file), "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 2 and "has 5 channels, expected 6" in done.stderr


def test_weights_of_many_channels_are_trained_further(five, tmp_path, capsys):
    best = train(replace(five, epochs=1))
    assert settings_of_network(str(best)) == {"widths": (4, 8), "up": "transpose", "channels": "5"}
    with pytest.raises(ConfigError, match="5 channels; give --widths 4,8 --up transpose --channels 5"):
        train(replace(five, channels="4", init_from=str(best), out=str(tmp_path / "b")))
    train(replace(five, epochs=2), resume=True)
    train(replace(five, init_from=str(best), epochs=1, out=str(tmp_path / "c")))


def test_unet_data_checks_images_of_many_channels(bands, tmp_path):
    done = run_data("check", bands, "--channels", "5", "-o", tmp_path / "report")
    assert done.exit_code == 0, done.stderr
    means = np.mean(
        [record[0].mean(axis=(0, 1)) for record in all_records(bands)],
        axis=0,
    )
    assert f"; 5 channels, mean of each: {', '.join(f'{mean:.1f}' for mean in means)}\n" in done.stdout
    assert "left out" not in done.stderr
    assert (tmp_path / "report" / "images.csv").read_text().count(",5 channels,") == 11
    with Image.open(tmp_path / "report" / "samples.png") as sheet:
        assert sheet.mode == "RGB"
    shutil.rmtree(tmp_path / "report")
    refused = run_data("check", bands, "--channels", "4")
    assert refused.exit_code == 2
    assert "has 5 channels, expected 4" in refused.stderr


def all_records(folder):
    """All pairs of a data set of five channels, decoded at their own size."""
    config = TrainConfig(data=str(folder), out="unused", channels="5", fit="native")
    decoder = SampleDecoder(input=config.input, labels=config.labels, truth_at_original=True)
    pairs = [pair for split in ("train", "val") for pair in find_pairs(folder, split, config.layout)]
    records = Records(pairs, decoder)
    return [records[index] for index in range(len(records))]
