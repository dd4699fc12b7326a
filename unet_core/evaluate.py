"""Metrics of a checkpoint or an ONNX file, at the images' original size: `python -m unet_core.evaluate`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands.console import NONE, Command, IgnoredValue, Listed, Named, echo, max_pixels_option
from runtime.commands.entry import exit_without
from runtime.errors import ConfigError, DataError, ImageError
from runtime.image_files.limits import LIMITS, Limits
from runtime.model_file.opening import open_wire
from runtime.support.files import formula_note, make_folder, require_temporary_folder
from unet_core.data.faults import files_left_out, surplus_masks
from unet_core.data.folders import require_folder
from unet_core.data.pairs import (
    Layout,
    Measured,
    Pair,
    find_splits,
    fingerprint,
    has_validation,
    pairs_to_measure,
)
from unet_core.model_options import (
    CardChanges,
    NetworkOptions,
    card_changes,
    network_options,
    with_card_options,
    with_network_options,
)
from unet_core.weight_files.presence import require_weights

if TYPE_CHECKING:  # PyTorch takes seconds to import, so --help must not need it
    from runtime.image import Decode
    from unet_core.data.records import Records
    from unet_core.evaluation.metrics import Metrics
    from unet_core.evaluation.models import EvaluatedModel
    from unet_core.reporting.progress import Display

RUN_SETTINGS: Mapping[str, Any] = {name: value for name, value in asdict(Layout()).items() if name != "arrays"} | {
    "ignore_index": None,
    "skip_bad": False,
}
"""Settings of a training run that decide which images are validated on and how masks are read, with their defaults."""


def evaluate(
    model: str | os.PathLike[str],
    pairs: Sequence[Pair],
    *,
    device: str | int = "auto",
    batch_size: int = 4,
    workers: int = 0,
    ignore_index: int | None = None,
    class_offset: int = 0,
    submission: str | os.PathLike[str] | None = None,
    network: NetworkOptions | None = None,
    changes: CardChanges | None = None,
    limits: Limits = LIMITS,
    decode: "Decode" = "full",
    display: "Display | None" = None,
) -> "Metrics":
    """Measure a checkpoint (with PyTorch) or an .onnx file (with the runtime) on pairs, at the original size.

    Args:
        model: a checkpoint, or an .onnx file.
        pairs: images and their masks; a pair without a mask is predicted but not measured.
        device: for a checkpoint see `unet_core.evaluation.torch_device`, for an .onnx file see `Predictor`.
        batch_size, workers: images per batch, and processes that load images; for checkpoints only.
        ignore_index: the value in the masks whose pixels do not count.
        class_offset: the value of the first of several classes in the masks.
        submission: a CSV file of img and rle_mask, as Carvana's competition takes it, to write the masks to.
        network: for a checkpoint, how its network is made by its author's code, which is run, and which of its weights
            are taken.
        changes: values that a checkpoint without a card does not hold.
        limits: the largest images and masks that are decoded.
        decode: "scaled" decodes JPEG files for an .onnx file as `Predictor` does.
        display: shows progress and notes; None shows nothing.

    Raises:
        CheckpointError, ModelError, DeviceError: see `load_checkpoint` and `Predictor`; or the device is out of memory.
        ConfigError: the model has more than 255 classes, or classes that overlap; a submission is
            asked of a model with several classes; or the network cannot be made or used.
        OutputError: the submission cannot be written, or its folder does not exist.
        DataError: there are no pairs, or images or masks cannot be used; the message lists all such pairs.
        UnetError: the operating system fails while an image is read or the model runs.
    """
    from unet_core.evaluation.models import load_model
    from unet_core.reporting.progress import Display

    return measure_model(
        load_model(model, device, network, changes, decode),
        pairs,
        batch_size=batch_size,
        workers=workers,
        ignore_index=ignore_index,
        class_offset=class_offset,
        submission=submission,
        limits=limits,
        display=display or Display(quiet=True),
    )


def measure_model(
    model: "EvaluatedModel",
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    workers: int,
    ignore_index: int | None,
    class_offset: int,
    submission: str | os.PathLike[str] | None,
    limits: Limits,
    display: "Display",
) -> "Metrics":
    """Measure a loaded model; arguments and errors are those of `evaluate`."""
    from unet_core.data.cache import check_and_cache
    from unet_core.data.labels import IGNORED
    from unet_core.evaluation.predictions import compute_metrics
    from unet_core.evaluation.submission import open_submission

    classes = model.card.output.classes
    if submission is not None and len(classes) > 1:
        raise ConfigError(f"--submission: is for one class, {model.path} has {len(classes)}; leave it out")
    if model.card.output.overlapping:
        raise ConfigError(
            f"{model.path}: has {len(classes)} independent classes, of which a pixel may have several, and a mask file "
            "holds one for each pixel; measure result.region(name) of runtime.predict against masks of your own"
        )
    if not pairs:
        raise DataError("pairs: found none, expected at least one image to measure")
    if len(classes) > IGNORED:
        raise ConfigError(f"{model.path}: has {len(classes)} classes, expected at most {IGNORED} to measure")
    for note in model.notes:
        display.note(f"{model.path}: {note}")
    records = records_for(model, pairs, ignore_index, class_offset, limits)
    with ExitStack() as stack:
        # Opened first, so that a file that cannot be written is refused before the work.
        written = None if submission is None else stack.enter_context(open_submission(submission, pairs))
        try:
            predictions = model.predict(records, batch_size, workers)
            with closing(display.through(predictions, "evaluating", len(pairs))) as shown:
                metrics = compute_metrics(shown, model.card, written.add if written is not None else None)
            if written is not None and written.empty:
                display.note("every mask of the submission is empty")
            return metrics
        except ImageError:
            with display.bar("checking images", len(pairs)) as advance:
                check_and_cache(
                    (records,), None, advance, display.note
                )  # raises, listing every pair that cannot be used
            raise


def records_for(
    model: "EvaluatedModel", pairs: Sequence[Pair], ignore_index: int | None, class_offset: int, limits: Limits
) -> "Records":
    """Pairs as the model's card says that they are read, with truths at the images' original size."""
    from unet_core.data.labels import LabelSpec
    from unet_core.data.records import Records, SampleDecoder

    labels = LabelSpec(
        classes=model.card.output.classes, ignore_index=ignore_index, class_offset=class_offset, of_model=True
    )
    decoder = SampleDecoder(input=model.card.input, labels=labels, truth_at_original=True, limits=limits)
    return Records(pairs, decoder)


def run_settings(model: Path, data: Path, given: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Choose each of `RUN_SETTINGS`: the value given, else that of the model's training run, else the default.

    The run's values are read from the `config.json` that the trainer writes beside its models. `note` is called with
    those that are used and differ from the defaults.
    """
    from unet_core.config import check, flag, setting_text
    from unet_core.settings_file import LATER

    file = model.parent / "config.json"  # other programs write files of this name too
    of_run: dict[str, Any] = {}
    try:
        stored = json.loads(file.read_bytes()) if file.is_file() else None
        if isinstance(stored, dict) and RUN_SETTINGS.keys() <= stored.keys() | {*LATER}:
            found = {name: stored.get(name, default) for name, default in RUN_SETTINGS.items()}
            found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
            for name, value in found.items():
                check(name, value)
            of_run = found
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        note(f"{file}: cannot be used ({error}); settings that are not given take their defaults")
    given = {name: None if value == NONE else value for name, value in given.items() if value is not None}
    settings = {**RUN_SETTINGS, **of_run, **given}
    split_up = ("val_share", "group") if not has_validation(data) else ()
    reading = ("masks", "ignore_index", "class_offset", "mask_threshold", "colours", "skip_bad")
    taken = [name for name in (*reading, *split_up) if name not in given]
    shown = [
        flag(name)
        if value is True
        else f"{flag(name)} {setting_text(value)!r}"
        if isinstance(value, tuple)
        else f"{flag(name)} {value!r}"
        for name, value in ((name, settings[name]) for name in taken)
        if value != RUN_SETTINGS[name]
    ]
    if shown:
        note(f"{file}: {', '.join(shown)}, as in training; give other values with these flags")
    return settings


def run_default(name: str) -> str:
    """The default of one of `RUN_SETTINGS` as the help shows it."""
    default = RUN_SETTINGS[name]
    return f"the training run's, else {'none' if default in (None, ()) else default}"


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="val",
    show_default=True,
    help="Images to measure on; test: those in test_images/, which need no masks, for --submission.",
)
@click.option("--masks", show_default=run_default("masks"), help="Name of the mask folders: masks are in SPLIT_MASKS/.")
@click.option(
    "--ignore-index",
    type=IgnoredValue(),
    show_default=run_default("ignore_index"),
    help="Value in the masks whose pixels do not count; none: every pixel counts.",
)
@click.option(
    "--class-offset",
    type=click.IntRange(0, 255),
    show_default=run_default("class_offset"),
    help="Value of the first of several classes in the masks.",
)
@click.option(
    "--mask-threshold",
    type=click.IntRange(1, 255),
    show_default=run_default("mask_threshold"),
    help="Mask value from which on a pixel is foreground, for JPEG or antialiased masks.",
)
@click.option(
    "--colours",
    type=Listed(str),
    show_default=run_default("colours"),
    help="Colours of the classes in RGB masks: NAME=#RRGGBB,...",
)
@click.option(
    "--skip-bad/--no-skip-bad",
    default=None,
    help="Leave out pairs of image and mask that cannot be used, and count them.  [default: the training run's, else "
    "no]",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0.001, 0.9),
    show_default=run_default("val_share"),
    help="Share of the images that training kept back to validate on, for DATA without val_images/.",
)
@click.option(
    "--group",
    show_default=run_default("group"),
    help="Separator by which training grouped file names before it kept images back, for DATA without val_images/.",
)
@click.option(
    "--submission",
    type=click.Path(path_type=Path),
    help="CSV file of img,rle_mask to write the masks to, as Carvana's.",
)
@click.option(
    "--pictures",
    type=Named(),
    help="Folder for typical.png and worst.png: image, truth, prediction and difference of the image with the median "
    "Dice, and of the one with the lowest.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, gpu, cuda; cuda:N or N for one of several GPUs; for .onnx also tensorrt:N and openvino.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Images per batch, for checkpoints only.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="CPU cores, at most 8",
    help="Processes that load images, for checkpoints only.",
)
@click.option(
    "--fast-decode",
    is_flag=True,
    help="For an .onnx file: decode JPEG files as unet-predict --fast-decode does, to see what that changes.",
)
@max_pixels_option
@with_network_options
@with_card_options
def main(model: Path, data: Path, **options: Any) -> None:
    """Measure MODEL (a checkpoint or an .onnx file) on the images and masks in DATA, at their original size.

    If the config.json of its training run is beside MODEL, masks, ignored value and split are as in that run.
    """
    require_temporary_folder("PyTorch")
    try:
        measure_and_print(model, data, **options)
    except ModuleNotFoundError as error:
        exit_without(error, extra="train")


def require_files(model: Path, data: Path) -> None:
    """Refuse a model or a data folder that is not there before PyTorch is imported, which takes seconds."""
    if model.suffix.lower() == ".onnx":
        with open_wire(model):  # raises
            pass
    else:
        require_weights(model)
    require_folder(data)


def measure_and_print(
    model: Path,
    data: Path,
    split: Measured,
    submission: Path | None,
    pictures: Path | None,
    device: str,
    batch_size: int,
    workers: int | None,
    limits: Limits,
    fast_decode: bool,
    **given: Any,
) -> None:
    """Run the command; `given` holds the values of all other options, None for those that were left out."""
    require_files(model, data)
    from unet_core.data.skipping import check_or_leave_out
    from unet_core.data.workers import default_workers
    from unet_core.evaluation.models import load_model
    from unet_core.reporting.example_panels import save_examples
    from unet_core.reporting.progress import Display
    from unet_core.reporting.tables import class_table, figure_lines, one_sided

    if split == "test" and submission is None:
        raise ConfigError("--split test: has no masks to measure with; give --submission FILE, or use unet-predict")
    if split == "test" and pictures is not None:
        raise ConfigError("--pictures: shows answers beside the truth, and test_images/ has no masks; leave it out")
    display = Display()
    of_run = {name: given.pop(name) for name in RUN_SETTINGS}
    named = {name: value for name, value in given.items() if value is not None and value != ()}
    network, changes = network_options(named), card_changes(named)
    if split == "test":
        settings = {**RUN_SETTINGS, "skip_bad": bool(of_run["skip_bad"])}
    else:
        settings = run_settings(model, data, of_run, display.note)
    ignore_index, skip_bad = settings.pop("ignore_index"), settings.pop("skip_bad")
    loaded = load_model(model, device, network, changes, "scaled" if fast_decode else "full")
    layout = Layout(**settings, arrays=loaded.card.input.channels == "raw")
    pairs = pairs_to_measure(data, split, layout)
    if split != "test" and (note := surplus_masks(data, layout, (split,))):
        display.note(note)
    if pictures is not None:
        make_folder(pictures)  # before the work
    if skip_bad:
        records = records_for(loaded, pairs, ignore_index, layout.class_offset, limits)
        with display.bar("checking images", len(pairs)) as advance:
            check_or_leave_out((records,), skip_bad, advance, display.note)
        pairs = records.pairs
    metrics = measure_model(
        loaded,
        pairs,
        batch_size=batch_size,
        workers=default_workers() if workers is None else workers,
        ignore_index=ignore_index,
        class_offset=layout.class_offset,
        submission=submission,
        limits=limits,
        display=display,
    )
    if submission is not None:
        echo(f"{submission}: {len(pairs)} mask{'s' * (len(pairs) > 1)}")
        if note := formula_note(submission, [pair.file_name for pair in pairs]):
            display.note(note)
    left_out = files_left_out(data, layout, (split,))
    if split == "test":
        if left_out:
            display.note(left_out)
        return
    echo(f"{model} on {len(pairs)} {split} image{'s' * (len(pairs) > 1)} of {data}")
    training, split_off = loaded.card.training, split == "val" and not has_validation(data)
    if training is not None and split_off and not skip_bad and training.data != fingerprint(*find_splits(data, layout)):
        display.note("the model was trained on other data, or on another split of it: it may have seen these images")
    echo(figure_lines(metrics.summary()))
    if note := one_sided(metrics):
        display.note(note)
    if len(metrics.classes) > 1:
        echo(class_table(metrics))
    if pictures is not None:
        records = records_for(loaded, pairs, ignore_index, layout.class_offset, limits)
        echo("\n".join(save_examples(pictures, loaded, records, metrics)))
    if left_out:
        display.note(left_out)


if __name__ == "__main__":
    main()
