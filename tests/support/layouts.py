"""Small images for data sets in the layouts of other programs, and what conversion made of one."""

import numpy as np
from click.testing import CliRunner
from PIL import Image

from unet_core.data.labels import LabelSpec, load_truth
from unet_core.data.pairs import Layout, find_splits
from unet_core.datasets import main
from unet_core.settings_file import read_settings

SIZE = (24, 32)
"""Size (height, width) of the images."""


def write_image(path, seed=0, size=SIZE):
    """A noisy picture; another seed gives another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)).save(path)
    return path


def write_mask(path, values):
    """A grey or RGB file of these values, uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def blocks(*entries, size=SIZE, dtype=np.uint8):
    """Zeros with blocks (top, bottom, left, right, value)."""
    values = np.zeros(size, dtype)
    for top, bottom, left, right, value in entries:
        values[top:bottom, left:right] = value
    return values


def run(*arguments):
    """Run `unet-data`."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def convert(source, out, *options):
    """Run `unet-data convert` without an error."""
    done = run("convert", source, out, *options)
    assert done.exit_code == 0, done.stderr or done.exception
    return done


def converted(out):
    """Labels by "SPLIT/NAME", read as training reads them with the settings that were written; the settings."""
    settings = read_settings(out / "dataset.toml")
    spec = LabelSpec(classes=settings["classes"], ignore_index=settings.get("ignore_index"))
    train, val = (
        find_splits(out, Layout(group=""), ("train", "val")) if (out / "val_images").is_dir() else (all_pairs(out), [])
    )
    found = {}
    for split, pairs in (("train", train), ("val", val)):
        for pair in pairs:
            assert not pair.fault, pair
            found[f"{split}/{pair.name}"] = load_truth(pair.mask, spec)
    return found, settings


def all_pairs(out):
    """All pairs of a folder without validation images."""
    return sorted((pair for pairs in find_splits(out, Layout(group="")) for pair in pairs), key=lambda pair: pair.name)
