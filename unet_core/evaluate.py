"""Metrics of a checkpoint or an ONNX file, at the images' original size: `python -m unet_core.evaluate`."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click
import torch

from runtime import rle
from runtime.card import ModelCard
from runtime.console import Command
from runtime.errors import ConfigError, DataError, DeviceError
from runtime.files import replacing
from runtime.image import list_images
from runtime.predictor import Predictor
from unet_core.cache import prepare
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.display import Display
from unet_core.labels import IGNORED, Labels, LabelSpec
from unet_core.metrics import Metrics, table
from unet_core.model import Segmenter
from unet_core.pairs import Layout, Pair, find_splits, fingerprint, has_validation, image_folder
from unet_core.records import Recipe, Records
from unet_core.validation import (
    Prediction,
    checkpoint_predictions,
    default_workers,
    measure,
    onnx_predictions,
    torch_device,
)


def evaluate(
    model: str | os.PathLike[str],
    pairs: Sequence[Pair],
    *,
    device: str = "auto",
    batch_size: int = 4,
    workers: int = 0,
    ignore_index: int | None = None,
    submission: str | os.PathLike[str] | None = None,
    display: Display | None = None,
) -> Metrics:
    """Measure a checkpoint (with PyTorch) or an .onnx file (with the runtime) on pairs, at the original size.

    Args:
        model: a checkpoint, or an .onnx file.
        pairs: images and their masks; those without a mask are predicted only.
        device: see `torch_device`, or for an .onnx file `Predictor`.
        batch_size, workers: of a checkpoint: images at once, and processes that load them.
        ignore_index: the value in the masks that does not count.
        submission: also write the masks as Carvana's competition takes them: a CSV file of img and rle_mask.
        display: where progress and notes are shown; by default nowhere.

    Raises:
        CheckpointError, ModelError, DeviceError: see `load_checkpoint` and `Predictor`; or the memory is too small.
        ConfigError: more than 255 classes, or a submission of several.
        OutputError: the submission cannot be written.
        DataError: an image or mask cannot be used, all such pairs are listed; or there are none.
    """
    return _evaluate(
        open_model(model, device),
        pairs,
        batch_size=batch_size,
        workers=workers,
        ignore_index=ignore_index,
        submission=submission,
        display=display or Display(quiet=True),
    )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that is ready to answer: `predictions` takes records, batch size and workers."""

    path: Path
    card: ModelCard
    predictions: Callable[[Records, int, int], Iterator[Prediction]]
    notes: tuple[str, ...] = ()


def open_model(model: str | os.PathLike[str], device: str) -> Opened:
    """Load a checkpoint, or an .onnx file by its suffix; raises as `evaluate`."""
    path = Path(model)
    if path.suffix.lower() == ".onnx":
        predictor = Predictor(path, device)
        return Opened(
            path=path, card=predictor.card, predictions=lambda records, *_: onnx_predictions(predictor, records)
        )
    checkpoint = load_checkpoint(path)
    card, notes = checkpoint.card, checkpoint.notes
    segmenter = Segmenter(checkpoint.network(), card).to(torch_device(device))
    if checkpoint.card_is_assumed:
        height, width = card.input.size
        assumed = f"trained at {width}x{height}, values divided by 255, classes {', '.join(card.output.classes)}"
        notes = (f"has no card; assumed: {assumed}", *notes)

    def predictions(records: Records, batch_size: int, workers: int) -> Iterator[Prediction]:
        return checkpoint_predictions(segmenter, card, records, batch_size=batch_size, workers=workers)

    return Opened(path=path, card=card, predictions=predictions, notes=notes)


def _evaluate(
    model: Opened,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    workers: int,
    ignore_index: int | None,
    submission: str | os.PathLike[str] | None,
    display: Display,
) -> Metrics:
    classes = model.card.output.classes
    if submission is not None and len(classes) > 1:
        raise ConfigError(f"--submission: is for one class, {model.path} has {len(classes)}; leave it out")
    if not pairs:
        raise DataError("pairs: found none, expected at least one image to measure")
    if len(classes) > IGNORED:
        raise ConfigError(f"{model.path}: has {len(classes)} classes, expected at most {IGNORED} to measure")
    for note in model.notes:
        display.note(f"{model.path}: {note}")
    recipe = Recipe(
        input=model.card.input, labels=LabelSpec(classes=classes, ignore_index=ignore_index), truth_at_original=True
    )
    records = Records(pairs, recipe)
    with ExitStack() as stack:
        # First of all, so that a place that cannot be written shows before the work.
        written = None if submission is None else stack.enter_context(_submission(submission, pairs))
        with display.bar("checking images", len(pairs)) as advance:
            prepare((records,), None, advance, display.note)
        predictions = model.predictions(records, batch_size, workers)
        shown = stack.enter_context(closing(display.through(predictions, "evaluating", len(pairs))))
        try:
            return measure(shown, model.card, written.add if written is not None else None)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"--batch-size {batch_size}: the device's memory is too small; give a smaller one, or --device cpu"
            ) from error


class Submission:
    """The file that Carvana's competition takes: a line for each image, its name and its mask's runs."""

    def __init__(self, file: TextIO, pairs: Sequence[Pair]) -> None:
        self._writer, self._pairs = csv.writer(file, lineterminator="\n"), pairs
        self._writer.writerow(("img", "rle_mask"))

    def add(self, index: int, predicted: Labels, *_: Any) -> None:
        """Write an image's mask, at its original size."""
        self._writer.writerow((self._pairs[index].image.name, rle.encode(predicted)))


@contextmanager
def _submission(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> Iterator[Submission]:
    """A submission that takes its place at `path` when all is written."""
    # Names of files that are no text are written back byte for byte.
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield Submission(file, pairs)


def pairs_of(data: Path, split: str, layout: Layout) -> list[Pair]:
    """The pairs to measure on; of the split "test" only images are expected.

    Raises:
        DataError: as `find_splits`; or there are no test images.
    """
    if split != "test":
        if has_validation(data):
            return find_splits(data, layout, ("train",) if split == "train" else ("val",))[split == "val"]
        return find_splits(data, layout)[split == "val"]
    folder = image_folder(data, split)
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        raise DataError(f"{folder}: no images in this folder; expected .jpg or .png files to predict")
    return [Pair(image=path) for path in images]


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="val",
    show_default=True,
    help="test: test_images/ without masks, for --submission.",
)
@click.option("--masks", default=TrainConfig.masks, show_default=True, help="Masks are in SPLIT_MASKS/.")
@click.option("--ignore-index", type=click.IntRange(0, 255), help="Value in the masks that does not count.")
@click.option(
    "--val-share",
    type=click.FloatRange(0.001, 0.9),
    default=TrainConfig.val_share,
    show_default=True,
    help="Without val_images/: as in training, to find the same images.",
)
@click.option("--group", default=TrainConfig.group, show_default=True, help="Likewise.")
@click.option("--submission", type=click.Path(path_type=Path), help="Write masks as Carvana's CSV of img,rle_mask.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N; for .onnx also tensorrt:N.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Of a checkpoint: images at once."
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=default_workers,
    show_default="CPU cores, at most 8",
    help="Of a checkpoint: processes that load images.",
)
def main(
    model: Path, data: Path, split: str, masks: str, val_share: float, group: str, device: str, **how: Any
) -> None:
    """Measure MODEL (a checkpoint or an .onnx file) on the images and masks in DATA, at their original size."""
    layout = Layout(masks=masks, val_share=val_share, group=group)
    submission: Path | None = how["submission"]
    if split == "test" and submission is None:
        raise ConfigError("--split test: has no masks to measure with; give --submission FILE, or use unet-predict")
    pairs, display = pairs_of(data, split, layout), Display()
    opened = open_model(model, device)
    metrics = _evaluate(opened, pairs, display=display, **how)
    if submission is not None:
        click.echo(f"{submission}: {len(pairs)} mask{'s' * (len(pairs) > 1)}")
    if split == "test":
        return
    click.echo(f"{model} on {len(pairs)} {split} image{'s' * (len(pairs) > 1)} of {data}")
    if split == "val" and not _known_split(opened.card, data, layout):
        display.note("the model was trained on other data, or on another split of it: it may have seen these images")
    for name, value in metrics.summary().items():
        if " " not in name:
            click.echo(f"  {name:<12}{value:.4f}")
    if len(metrics.classes) > 1:
        click.echo(table(metrics))


def _known_split(card: ModelCard, data: Path, layout: Layout) -> bool:
    """False where images to validate on were split off otherwise than in training, as far as the card tells."""
    if has_validation(data) or card.training is None:
        return True
    return card.training.data == fingerprint(*find_splits(data, layout))


if __name__ == "__main__":
    main()
