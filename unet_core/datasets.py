"""`unet-data`, or `python -m unet_core.data`: checks a data set before it is trained on, and converts other layouts."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from runtime.commands.console import (
    NONE,
    Command,
    IgnoredValue,
    Listed,
    Named,
    echo,
    max_pixels_option,
    version_option,
)
from runtime.commands.entry import exit_without
from runtime.errors import DataError
from runtime.image_files.limits import MOST_PIXELS, Limits
from runtime.support.files import make_folder

LAYOUT_NAMES = ("auto", "coco", "labelme", "voc", "cityscapes", "ade20k", "rle", "folders")


def mask_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say how masks are read."""
    for option in reversed(
        (
            click.option("--classes", type=Listed(str), help="Names of the classes, in the order of their indices."),
            click.option("--ignore-index", type=IgnoredValue(), help="Value in the masks whose pixels do not count."),
            click.option(
                "--class-offset",
                type=click.IntRange(0, 255),
                help="Value of the first of several classes in the masks.",
            ),
            click.option(
                "--mask-threshold",
                type=click.IntRange(1, 255),
                help="Mask value from which on a pixel is foreground, for JPEG or antialiased masks.",
            ),
            click.option(
                "--colours",
                type=Listed(str),
                help="Colours of the classes in RGB masks: NAME=#RRGGBB,... or ignore=#RRGGBB.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group(params=[version_option()])
def main() -> None:
    """Check a data set before it is trained on, or convert one from another layout."""


@main.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=Named(), help="Folder to write problems.csv, images.csv and samples.png to.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings, as training takes it.")
@mask_options
@click.option("--masks", help="Name of the mask folders: masks are in SPLIT_MASKS/.  [default: masks]")
@click.option("--channels", help="RGB, L, or the number of channels, 1 to 16, that training is to use.  [default: RGB]")
@click.option(
    "--val-share",
    type=click.FloatRange(0.001, 0.9),
    help="Share of the images to validate on, for DATA without val_images/.  [default: 0.1]",
)
@click.option("--group", help="Separator by which file names are grouped, for DATA without val_images/.  [default: _]")
@click.option("--max-pixels", type=click.IntRange(1, MOST_PIXELS), help="Largest image or mask to decode, in pixels.")
def check(data: Path, out: Path | None, file: Path | None, **given: Any) -> None:
    """Check all images and masks of DATA as training would, and print their sizes, values and classes.

    Options that are left out have the defaults of training. The exit code is 2 if training would refuse the data.
    """
    try:
        check_and_print(data, out, file, given)
    except ModuleNotFoundError as error:
        exit_without(error, "data")


def check_and_print(data: Path, out: Path | None, file: Path | None, given: Mapping[str, Any]) -> None:
    """Run `unet-data check`."""
    from unet_core.data.faults import files_left_out, refuse, shared_images, surplus_masks
    from unet_core.data.levels import levels_line
    from unet_core.data.pairs import find_splits, has_validation
    from unet_core.data.validation_split import doubtful_split
    from unet_core.inspection.checking import (
        check_data_set,
        notes_on_masks,
        with_levels,
        write_images,
        write_problems,
    )
    from unet_core.inspection.sheet import save_sheet, spread
    from unet_core.inspection.statistics import advice, statistics
    from unet_core.reporting.progress import Display
    from unet_core.settings_file import make_config, read_settings, unused_settings
    from unet_core.training.data_notes import unused_channels

    from_file = read_settings(file) if file is not None else {}
    flags = {name: None if value == NONE else value for name, value in given.items() if value is not None}
    config = make_config({**from_file, **flags, "data": str(data), "out": "unused"}, from_file, file)
    display, layout = Display(), config.layout
    if unused := unused_settings(data, file, flags):
        display.note(unused)
    if out is not None:
        make_folder(out)  # before the work
    asked, config = config.levels, with_levels(config)
    with ExitStack() as stack:
        findings = check_data_set(config, lambda total: stack.enter_context(display.bar("checking images", total)))
    if findings.images:
        if config.input.levels is not None and config.levels != asked:
            echo(levels_line(config.input.levels, asked))
        echo(statistics(findings, config.labels))
    if out is not None:
        write_problems(out / "problems.csv", data, findings)
        write_images(out / "images.csv", data, findings, config.classes)
        if findings.images:
            save_sheet(out / "samples.png", [findings.images[index] for index in spread(len(findings.images))], config)
        echo(
            f"\nwritten to {out}: problems.csv ({findings.problems}), images.csv"
            + ", samples.png" * bool(findings.images)
        )
    train, val = find_splits(data, layout)
    for note in (
        *advice(findings, config.labels),
        surplus_masks(data, layout),
        files_left_out(data, layout),
        shared_images(train, val),
        unused_channels(train, config.input, config.limits),
        None if has_validation(data) else doubtful_split(train, val, layout),
    ):
        if note:
            display.note(note)
    try:
        refuse(findings.faults, findings.total)
    except DataError as error:
        listed = f"{out / 'problems.csv'} lists them all" if out is not None else "-o FOLDER lists them all"
        raise DataError(f"{data}: {error}; {listed}") from None
    for note in notes_on_masks(config, findings):
        display.note(note)


@main.command(cls=Command)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=Named())
@click.option(
    "--from",
    "layout",
    type=click.Choice(LAYOUT_NAMES),
    default="auto",
    show_default=True,
    help="Layout of SOURCE. coco: JSON with polygons or run lengths; labelme: a JSON file for each image; voc: "
    "JPEGImages and SegmentationClass; cityscapes: leftImg8bit and gtFine; ade20k: images/training and "
    "annotations/training; rle: Kaggle's CSV files of run lengths; folders: images and mask files, paired by name.",
)
@click.option("--images", type=Named(), help="Folder of the images, if it is not in SOURCE.")
@click.option("--masks", help="Name of the mask folders, or its end after _, if SOURCE has several kinds of masks.")
@mask_options
@click.option(
    "--instances",
    type=click.Choice(["foreground"]),
    help="Masks hold numbers or colours of instances: all but 0 and black is foreground.",
)
@click.option(
    "--rle-order",
    type=click.Choice(["rows", "columns"]),
    show_default="rows for Carvana's header, else columns",
    help="Order in which run lengths count the pixels.",
)
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used, and list them in left_out.csv.")
@max_pixels_option
def convert(source: Path, out: Path, layout: str, limits: Limits, **given: Any) -> None:
    """Convert the data set SOURCE into a new folder OUT, as training takes it.

    Images are linked where the file system allows; masks are written as PNG files. OUT/dataset.toml has the classes.
    """
    try:
        convert_and_print(source, out, layout, limits, **given)
    except ModuleNotFoundError as error:
        exit_without(error, "data")


def convert_and_print(
    source: Path,
    out: Path,
    layout: str,
    limits: Limits,
    images: Path | None,
    masks: str | None,
    classes: tuple[str, ...] | None,
    ignore_index: int | str | None,
    class_offset: int | None,
    mask_threshold: int | None,
    colours: tuple[str, ...] | None,
    instances: str | None,
    rle_order: str | None,
    copy: bool,
    skip_bad: bool,
) -> None:
    """Run `unet-data convert`."""
    from unet_core.conversion.layouts import read_source
    from unet_core.conversion.samples import ConvertOptions
    from unet_core.conversion.writer import LEFT_OUT, write_data_set
    from unet_core.data.folders import SETTINGS
    from unet_core.data.mask_values import MaskValues
    from unet_core.reporting.progress import Display

    options = ConvertOptions(
        classes=classes or (),
        images=images,
        masks=masks or "",
        values=MaskValues(threshold=mask_threshold, colours=colours or ()),
        ignore_index=ignore_index if isinstance(ignore_index, int) else None,
        class_offset=class_offset or 0,
        instances=instances is not None,
        columns=None if rle_order is None else rle_order == "columns",
        limits=limits,
    )
    display = Display()
    name, found = read_source(source, layout, options)
    with display.bar("converting images", len(found.samples)) as advance:
        written = write_data_set(found, out, copy=copy, skip_bad=skip_bad, limits=limits, advance=advance)
    for note in found.notes:
        display.note(note)
    if written.left_out:
        count = f"{len(written.left_out)} of {len(found.samples)} images left out"
        display.note(f"{count}; {out / LEFT_OUT} lists them")
    if "train" not in written.splits:
        display.note(f"{out}: has no train_images, so there is nothing to train on; convert those of training, too")
    splits = ", ".join(f"{count} in {split}_images" for split, count in sorted(written.splits.items()))
    ways = ", ".join(f"{count} {way}" for way, count in sorted(written.ways.items()))
    echo(
        f"{source} ({name}) -> {out}: {splits} ({ways}), {len(found.classes)} class{'es' * (len(found.classes) > 1)}: "
        f"{', '.join(found.classes)}"
    )
    new = f"{shlex.quote(str(out))} --config {shlex.quote(str(out / SETTINGS))}"
    echo(f"next: unet-data check {new}, then: unet-train {new} --out RUN")


if __name__ == "__main__":
    main()
