"""Metrics of a checkpoint or an ONNX file, at the images' original size: `python -m unet_core.evaluate`."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import click
import torch

from runtime import rle
from runtime.card import ModelCard
from runtime.commands.console import NONE, Command, IgnoredValue
from runtime.errors import ConfigError, DataError, DeviceError, ImageError, OutputError, UnetError
from runtime.image import list_images
from runtime.predictor import Predictor
from runtime.support.files import replacing
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig, check, flag
from unet_core.data.cache import prepare
from unet_core.data.labels import IGNORED, Labels, LabelSpec
from unet_core.data.pairs import (
    Layout,
    Pair,
    Split,
    find_splits,
    fingerprint,
    has_validation,
    image_folder,
    surplus_masks,
)
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.metrics import Metrics, table
from unet_core.evaluation.predictions import (
    Prediction,
    checkpoint_predictions,
    default_workers,
    measure,
    onnx_predictions,
    torch_device,
)
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display
from unet_core.reporting.tables import figure_lines, one_sided

Measured = Split | Literal["test"]

OF_RUN = {name: getattr(TrainConfig, name) for name in ("masks", "ignore_index", "val_share", "group")}
"""Settings of a run by which the same labels of the same images are found again, with their defaults."""


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
        OutputError: the submission cannot be written, or its folder is not there.
        DataError: an image or mask cannot be used, all such pairs are listed; or there are none.
        UnetError: the system fails while an image is read or the model runs.
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
    labels = LabelSpec(classes=classes, ignore_index=ignore_index, of_model=True)
    records = Records(pairs, SampleDecoder(input=model.card.input, labels=labels, truth_at_original=True))
    with ExitStack() as stack:
        # First of all, so that a place that cannot be written shows before the work.
        written = None if submission is None else stack.enter_context(_submission(submission, pairs))
        try:
            answers = _answers(model, records, batch_size, workers)
            with closing(display.through(answers, "evaluating", len(pairs))) as shown:
                metrics = measure(shown, model.card, written.add if written is not None else None)
            if written is not None and written.empty:
                display.note("every mask of the submission is empty")
            return metrics
        except ImageError:
            with display.bar("checking images", len(pairs)) as advance:
                prepare((records,), None, advance, display.note)  # raises, with all that cannot be used
            raise


def _answers(model: Opened, records: Records, batch_size: int, workers: int) -> Iterator[Prediction]:
    """A model's predictions; the first pair that cannot be used ends them with an `ImageError`."""
    for pair in records.pairs:
        if pair.fault:
            raise ImageError(f"{pair.image}: {pair.fault}")
    try:
        for index, probability, truth in model.predictions(records, batch_size, workers):
            if probability.shape[1:] != truth.shape:
                raise ImageError(f"{records.pairs[index].mask}: has another size than its image")
            yield index, probability, truth
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"--batch-size {batch_size}: the device's memory is too small; give a smaller one, or --device cpu"
        ) from error
    except OSError as error:  # as it is, it would be taken for one of writing the submission
        raise UnetError(f"{model.path}: cannot go on measuring ({error})") from error


class Submission:
    """The file that Carvana's competition takes: a line for each image, its name and its mask's runs."""

    def __init__(self, file: TextIO, pairs: Sequence[Pair]) -> None:
        self._writer, self._pairs, self.empty = csv.writer(file, lineterminator="\n"), pairs, True
        self._writer.writerow(("img", "rle_mask"))

    def add(self, index: int, predicted: Labels, *_: Any) -> None:
        """Write an image's mask, at its original size."""
        self.empty = self.empty and not predicted.any()
        self._writer.writerow((self._pairs[index].image.name, rle.encode(predicted)))


@contextmanager
def _submission(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> Iterator[Submission]:
    """A submission that takes its place at `path` when all is written; raises OutputError where there is no folder."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise OutputError(f"--submission {path}: no such folder {folder}; make it or choose another")
    # Names of files that are no text are written back byte for byte.
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield Submission(file, pairs)


def pairs_of(data: Path, split: Measured, layout: Layout) -> list[Pair]:
    """The pairs to measure on; of the split "test" only images are expected.

    Raises:
        DataError: as `find_splits`; or there are no test images.
    """
    if split != "test":
        return find_splits(data, layout, (split,))[split == "val"]
    folder = image_folder(data, split)
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        raise DataError(f"{folder}: no images in this folder; expected .jpg or .png files to predict")
    return [Pair(image=path) for path in images]


def _of_run(model: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """The settings `OF_RUN` in the `config.json` that the trainer wrote beside a model; {} where there is none."""
    file = model.parent / "config.json"  # of any name, also "."
    try:
        stored = json.loads(file.read_bytes()) if file.is_file() else None
        if not isinstance(stored, dict) or not OF_RUN.keys() <= stored.keys():
            return {}
        for name in OF_RUN:
            check(name, stored[name])
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        note(f"{file}: cannot be used ({error}); what is not given has its default")
        return {}
    return {name: stored[name] for name in OF_RUN}


def run_settings(model: Path, data: Path, given: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """The settings `OF_RUN`: those that were given, else the run's, which is noted where it matters, else defaults."""
    given = {name: None if value == NONE else value for name, value in given.items() if value is not None}
    settings = OF_RUN | _of_run(model, note) | given
    split_up = ("val_share", "group") if not has_validation(data) else ()
    taken = [name for name in ("masks", "ignore_index", *split_up) if name not in given]
    shown = [f"{flag(name)} {settings[name]!r}" for name in taken if settings[name] != OF_RUN[name]]
    if shown:
        note(
            f"{model.with_name('config.json')}: {', '.join(shown)}, as in training; give other values with these flags"
        )
    return settings


def _default(name: str) -> str:
    """What the help shows."""
    return f"the run's, else {'none' if OF_RUN[name] is None else OF_RUN[name]}"


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
@click.option("--masks", show_default=_default("masks"), help="Masks are in SPLIT_MASKS/.")
@click.option(
    "--ignore-index",
    type=IgnoredValue(),
    show_default=_default("ignore_index"),
    help="Value in the masks that does not count; none: all count.",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0.001, 0.9),
    show_default=_default("val_share"),
    help="Without val_images/: as in training, to find the same images.",
)
@click.option("--group", show_default=_default("group"), help="Likewise.")
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
def main(model: Path, data: Path, split: Measured, submission: Path | None, device: str, **how: Any) -> None:
    """Measure MODEL (a checkpoint or an .onnx file) on the images and masks in DATA, at their original size.

    Beside MODEL lies the config.json of its run, as the trainer leaves it: its masks, split and ignored value are used.
    """
    if split == "test" and submission is None:
        raise ConfigError("--split test: has no masks to measure with; give --submission FILE, or use unet-predict")
    display = Display()
    given = {name: how.pop(name) for name in OF_RUN}
    settings = dict(OF_RUN) if split == "test" else run_settings(model, data, given, display.note)
    ignore_index = settings.pop("ignore_index")
    layout = Layout(**settings)
    pairs = pairs_of(data, split, layout)
    if split != "test" and (note := surplus_masks(data, layout, (split,))):
        display.note(note)
    opened = open_model(model, device)
    metrics = _evaluate(opened, pairs, ignore_index=ignore_index, submission=submission, display=display, **how)
    if submission is not None:
        click.echo(f"{submission}: {len(pairs)} mask{'s' * (len(pairs) > 1)}")
    if split == "test":
        return
    click.echo(f"{model} on {len(pairs)} {split} image{'s' * (len(pairs) > 1)} of {data}")
    if split == "val" and not _known_split(opened.card, data, layout):
        display.note("the model was trained on other data, or on another split of it: it may have seen these images")
    click.echo(figure_lines(metrics.summary()))
    if note := one_sided(metrics):
        display.note(note)
    if len(metrics.classes) > 1:
        click.echo(table(metrics))


def _known_split(card: ModelCard, data: Path, layout: Layout) -> bool:
    """False where images to validate on were split off otherwise than in training, as far as the card tells."""
    if has_validation(data) or card.training is None:
        return True
    return card.training.data == fingerprint(*find_splits(data, layout))


if __name__ == "__main__":
    main()
