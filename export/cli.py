"""unet-export: the command line of `export.export_onnx` and `export.verify.check_file`."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from export.console_report import check_line, parity_table, proof_table, verdict_line
from export.options import (
    MASK_OPTIONS,
    Allowed,
    ExportOptions,
    Int8For,
    Values,
    options_to_export,
    refuse_to_check,
    with_fixed_size,
)
from runtime.card import ModelCard, Precision, Target
from runtime.commands.console import Command, FixedSize, IgnoredValue, Listed, Percent, echo, end, max_pixels_option
from runtime.commands.entry import exit_without
from runtime.errors import ConfigError, DeviceError, ModelError, ProofError, one_line
from runtime.image_files.limits import LIMITS, LimitsByOption
from runtime.support.files import new_folder, prepare_target, require_temporary_folder
from unet_core.model_options import network_options, with_card_options, with_network_options
from unet_core.weight_files.presence import require_weights

if TYPE_CHECKING:
    from export.exporter import ExportReport
    from unet_core.reporting.progress import Display

F = TypeVar("F", bound=Callable[..., None])


def with_options_of_masks(command: F) -> F:
    """Add the options `MASK_OPTIONS` to a command; `masks_of` takes their values."""
    masks = click.option(
        "--masks",
        metavar="NAME",
        help="Masks of real images are in SPLIT_NAME, such as val_masks.  [default: as in training, else masks]",
    )
    ignored = click.option(
        "--ignore-index",
        type=IgnoredValue(),
        help="Value to ignore in the masks of real images; none: all values count.  [default: as in training]",
    )
    offset = click.option(
        "--class-offset",
        type=click.IntRange(0, 255),
        help="Value of the first of several classes in the masks of real images.  [default: as in training]",
    )
    threshold = click.option(
        "--mask-threshold",
        type=click.IntRange(1, 255),
        help="Value from which on a pixel is foreground in the masks of real images.  [default: as in training]",
    )
    colours = click.option(
        "--colours",
        type=Listed(str),
        help="Colours of the classes in the masks of real images: NAME=#RRGGBB,...  [default: as in training]",
    )
    return masks(ignored(offset(threshold(colours(command)))))


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--out",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    help="The .onnx file to write.  [default: beside CHECKPOINT]",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Number format of weights and values; fp16 is for GPUs, int8 needs --data.  [default: fp32]",
)
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    help="Device to write the file for. cpu makes wide networks faster on CPUs; GPUs refuse the file.  [default: any]",
)
@click.option(
    "--tune",
    is_flag=True,
    help="With --target cpu: choose the fastest form of each layer by timing it on this machine; close other programs.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of real images to test the file on, or a data set as for training; int8 is calibrated on it.",
)
@with_options_of_masks
@click.option("--keep", type=Listed(str), help="With fp16 or int8: layers to leave in fp32, for example ups.0,ups.2.")
@click.option(
    "--for",
    "int8_for",
    type=click.Choice(get_args(Int8For)),
    help="With int8: where the file will run; elsewhere it is slow or refused.  [default: tensorrt if it runs here, "
    "else cpu]",
)
@click.option(
    "--values",
    type=click.Choice(get_args(Values)),
    help="With int8, instead of --for: type of values between layers; s8 is for TensorRT, u8 for CPUs.",
)
@click.option(
    "--force", is_flag=True, help="Write an fp16 or int8 file even if it loses too much accuracy; its card says so."
)
@click.option(
    "--allow",
    type=click.Choice(get_args(Allowed)),
    help="Judge the file's answers in bf16 on --data too, and permit CPUs with bf16 to compute it so, by OpenVINO.",
)
@click.option(
    "--max-flipped",
    type=Percent(),
    help="With --allow: largest share of the pixels whose class may change against fp32, such as 0.05%.  "
    "[default: 0.01%, for int8 its own limits]",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Write the bare network: normalised float32 NCHW in, logits out. unet-predict refuses such a file.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Arrays input and output of the author's program, which tell how weights without a network are read.",
)
@with_network_options
@click.option(
    "--opset",
    type=int,
    help="ONNX opset version, 18 to 23. For CUDA at most 21: of later ones it cannot compute MaxPool.  [default: 20]",
)
@click.option(
    "--fixed-size",
    type=FixedSize(),
    help="Write a file for batches of this shape only, batch x height x width, for example 1x160x240, without "
    "arithmetic on sizes: for OpenCV 4 and converters, and for networks that cannot be traced with free sizes.",
)
@with_card_options
@click.option("--card", is_flag=True, help="Also write a model card for a model hub, in Markdown, beside the file.")
@click.option("--triton", type=click.Path(path_type=Path), help="Also add the model to this NVIDIA Triton repository.")
@click.option("--triton-name", help="With --triton: name of the model there.  [default: the card's]")
@click.option(
    "--web",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write a web page to this folder that runs the file in the browser.",
)
@click.option(
    "--onnxruntime-web",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --web: copy the files that the page needs from this folder of the npm package onnxruntime-web.",
)
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of exporting, test an exported file again: its form, golden sample and answers.",
)
@click.option(
    "--checkpoint",
    "checkpoint_of",
    type=click.Path(path_type=Path),
    help="With --check: the checkpoint that the file was exported from, to compare with.",
)
@max_pixels_option
@click.option("--device", help="With --check: auto, cpu, gpu (or N), cuda:N, tensorrt:N or openvino.  [default: cpu]")
def main(checkpoint: Path | None, check: Path | None, limits: LimitsByOption, **options: Any) -> None:
    """Write CHECKPOINT (model.pth) as one ONNX file, checked against PyTorch before it is written."""
    if (checkpoint is None) == (check is None):
        raise click.UsageError("Give either a CHECKPOINT to export, or --check FILE.")
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    if "data" in given:
        given["limits"] = limits
    elif limits != LimitsByOption():
        raise ConfigError("--max-pixels: goes with --data; leave it out")
    require_temporary_folder("PyTorch")
    try:
        if check is not None:
            _check(check, given)
        if checkpoint is not None:
            _export(checkpoint, given)
    except ModuleNotFoundError as error:  # PyTorch takes seconds to import, so --help does without
        exit_without(error, extra="export")
    except ProofError as error:
        if isinstance(error.card, ModelCard) and error.card.proof is not None:
            echo(proof_table(error.card))
        raise


def _export(checkpoint: Path, given: Mapping[str, Any]) -> None:
    """Export a checkpoint, with what --card, --triton and --web make of the file."""
    options = options_to_export(given)
    network = options.ends(network_options(given))
    require_weights(checkpoint)
    from export.exporter import export_loaded
    from unet_core.networks.checkpoint import open_checkpoint
    from unet_core.reporting.progress import Display

    display = Display()
    if "pairs" in given:
        from export.pairs import load_with_pairs

        loaded = load_with_pairs(checkpoint, given["pairs"], display, options.changes, weights=network.weights)
    else:
        loaded = open_checkpoint(checkpoint, network, options.changes)
    if options.data is not None:
        masks = {name: given[name] for name in MASK_OPTIONS if name in given}
        options = replace(options, **masks_of(checkpoint, given["data"], masks, display))
    with _room_for_extras(checkpoint, loaded.card, options, given):
        report = export_loaded(loaded, checkpoint, given.get("output"), options, display)
    for note in report.notes:
        echo(f"note: {note}", err=True)
    assert report.card.proof is not None
    echo(proof_table(report.card))
    if report.image_dice is not None:
        echo(f"image Dice of PyTorch's answers in {given['data']}: {report.image_dice:.4f}")
    verdict = verdict_line(report.card, f"{checkpoint.name} as {report.family}'s U-Net")
    echo(f"{report.path}: {report.size / 1e6:.1f} MB, {verdict} ({report.seconds:.0f} s)")
    _write_extras(report, given)


def _write_extras(report: "ExportReport", given: Mapping[str, Any]) -> None:
    """Write what --card, --triton and --web make of an exported file."""
    if "card" in given:
        from export.hub import write_model_card

        echo(f"model card: {write_model_card(report.path)}")
    if "triton" in given:
        from export.triton import write_repository

        folder = write_repository(report.path, given["triton"], name=given.get("triton_name"))
        if "triton_name" not in given and folder.name != report.card.name:
            echo(
                f"note: Triton refuses the name {report.card.name!r}, so the model is {folder.name} there; "
                "--triton-name gives another one",
                err=True,
            )
        echo(f"Triton: {folder}")
    if "web" in given:
        from export.web import missing_runtime, write_page

        page = write_page(report.path, given["web"], onnxruntime_web=given.get("onnxruntime_web"))
        command = f"python3 -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(given['web']))}"
        echo(f"web page: {page}; to see it: {command}")
        if missing := missing_runtime(given["web"]):
            echo(f"note: {missing}", err=True)


@contextmanager
def _room_for_extras(
    checkpoint: Path, card: ModelCard, options: ExportOptions, given: Mapping[str, Any]
) -> Iterator[None]:
    """Refuse --card, --triton and --web before the export if they could not be written after it."""
    if "card" in given:
        from export.exporter import default_path
        from export.hub import markdown_path

        prepare_target(markdown_path(given.get("output", default_path(checkpoint, options))))
    planned = replace(with_fixed_size(card, options.fixed_size), precision=options.precision, target=options.target)
    if "triton" in given:
        from export.triton import model_folder

        model_folder(planned, given["triton"], given.get("triton_name"))
    if "web" in given:
        from export.web import check_page

        check_page(planned, given["web"], given.get("onnxruntime_web"))
    with ExitStack() as made:
        for name in ("triton", "web"):
            if name in given:
                made.enter_context(new_folder(given[name]))
        yield


def masks_of(checkpoint: Path, data: Path, masks: Mapping[str, Any], display: "Display") -> dict[str, Any]:
    """Choose how masks are read: as given, else as in the run that left its settings beside the checkpoint.

    Returns the arguments `layout`, `ignore_index` and `skip_bad` of `export_onnx` and `load_samples`.
    """
    from unet_core.data.pairs import Layout
    from unet_core.evaluate import run_settings

    settings = run_settings(checkpoint, data, masks, display.note)
    return {**{name: settings.pop(name) for name in ("ignore_index", "skip_bad")}, "layout": Layout(**settings)}


def _check(file: Path, given: Mapping[str, Any]) -> None:
    """Check an exported file again and print what was found."""
    refuse_to_check(given)
    from export.verify import CheckReport, check_file
    from unet_core.reporting.progress import Display

    try:
        report = check_file(
            file,
            checkpoint=given.get("checkpoint_of"),
            data=given.get("data"),
            device=given.get("device", "cpu"),
            network=network_options(given),
            pairs=given.get("pairs"),
            limits=given.get("limits", LIMITS),
            display=Display(),
        )
    except (ProofError, ModelError, DeviceError) as failure:
        if not file.is_file() or (isinstance(failure, DeviceError) and "golden sample" not in str(failure)):
            raise  # nothing was checked
        if isinstance(failure, ProofError) and isinstance(failure.card, CheckReport) and failure.card.rows:
            echo(parity_table(failure.card.rows, failure.card.limits, failure.card.faults))
        end(f"FAILED: {one_line(str(failure))}", failure.exit_code)
    if report.rows:
        echo(parity_table(report.rows, report.limits, report.faults))
    echo(f"OK: {check_line(report)}")


if __name__ == "__main__":
    main()
