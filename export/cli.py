"""unet-export: the command line of `export.export_onnx` and `export.check_file`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from runtime.card import Fit, ModelCard, Precision, ProofRow
from runtime.console import Command, Listed, Size, exit_without
from runtime.errors import ConfigError, ProofError

if TYPE_CHECKING:
    from export.exporter import ExportReport
    from unet_core.display import Display

OF_CHECK = ("checkpoint_of", "device")
"""Options that --check alone has."""

OF_CARD = ("size", "mean", "std", "fit", "classes", "threshold")
"""Options that say what a checkpoint without a card does not."""

AFTERWARDS = ("card", "triton")
"""Options for what is made of the exported file."""

OF_MASKS = ("masks", "ignore_index")
"""Options that say how masks are read."""


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .onnx file.  [default: beside CHECKPOINT]")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Of the network.  [default: fp32]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Real images to prove on, with masks where they are laid out as for training; int8 is calibrated on them.",
)
@click.option("--masks", help="Of --data: masks are in SPLIT_MASKS/.  [default: as the run's, else masks]")
@click.option(
    "--ignore-index",
    type=click.IntRange(0, 255),
    help="Of --data: value in the masks that does not count.  [default: the run's]",
)
@click.option("--keep", type=Listed(str), help="Layers that stay in fp32, with fp16 and int8.")
@click.option(
    "--values",
    type=click.Choice(["s8", "u8"]),
    help="Of int8: s8 for TensorRT, u8 for CPUs.  [default: s8]",
)
@click.option("--force", is_flag=True, help="Write fp16 or int8 also where it fails its gate; the card says so.")
@click.option("--raw", is_flag=True, help="The bare network: normalised float32 planes in, logits out.")
@click.option("--opset", type=int, help="Of ONNX.  [default: 20]")
@click.option("--size", type=Size(), help="Of a checkpoint without a card: as trained.")
@click.option("--mean", type=Listed(float), help="Likewise, of values in 0..1.")
@click.option("--std", type=Listed(float), help="Likewise.")
@click.option("--fit", type=click.Choice(get_args(Fit)), help="Likewise: how images are brought to --size.")
@click.option("--classes", type=Listed(str), help="Likewise.")
@click.option("--threshold", type=float, help="Probability from which a pixel is of the one class.")
@click.option("--card", is_flag=True, help="Also write a model card for a hub beside the file, in Markdown.")
@click.option("--triton", type=click.Path(path_type=Path), help="Also add the model to this NVIDIA Triton repository.")
@click.option("--check", type=click.Path(path_type=Path), metavar="FILE", help="Prove an exported file again instead.")
@click.option(
    "--checkpoint", "checkpoint_of", type=click.Path(path_type=Path), help="With --check: what it was exported from."
)
@click.option("--device", help="With --check: auto, cpu, cuda:N or tensorrt:N.  [default: cpu]")
def main(checkpoint: Path | None, check: Path | None, **options: Any) -> None:
    """Write CHECKPOINT (model.pth) as one ONNX file, checked against PyTorch before it is written."""
    if (checkpoint is None) == (check is None):
        raise click.UsageError("Give a CHECKPOINT to export, or --check FILE.")
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    try:
        if check is not None:
            _check(check, given)
        if checkpoint is not None:
            _export(checkpoint, given)
    except ModuleNotFoundError as error:  # PyTorch takes seconds to import, so it is not for --help
        exit_without(error, extra="export")
    except ProofError as error:
        _show(error.card)
        raise


def _export(checkpoint: Path, given: Mapping[str, Any]) -> None:
    from export.changes import CardChanges
    from export.exporter import export_onnx
    from unet_core.display import Display

    for name in OF_CHECK:
        if name in given:
            raise ConfigError(f"--{name.removesuffix('_of')}: goes with --check; leave it out")
    display = Display()
    of_card = {name: given[name] for name in OF_CARD if name in given}
    rest = {name: value for name, value in given.items() if name not in (*OF_CARD, *OF_MASKS, *AFTERWARDS, "output")}
    if given.get("raw") and given.keys() & {*AFTERWARDS}:
        raise ConfigError("--raw: has neither card nor golden sample for --card or --triton; leave it out")
    report = export_onnx(
        checkpoint,
        given.get("output"),
        changes=CardChanges(**of_card),
        display=display,
        **_of_masks(checkpoint, given, display),
        **rest,
    )
    for note in _notes(checkpoint, report):
        click.echo(f"note: {note}", err=True)
    _show(report.card)
    click.echo(f"{report.path}: {report.size / 1e6:.1f} MB, {_verdict(report.card)} ({report.seconds:.0f} s)")
    if "card" in given:
        from export.hub import write_model_card

        click.echo(f"model card: {write_model_card(report.path)}")
    if "triton" in given:
        from export.triton import write_repository

        click.echo(f"Triton: {write_repository(report.path, given['triton'])}")


def _of_masks(checkpoint: Path, given: Mapping[str, Any], display: "Display") -> dict[str, Any]:
    """How masks are read: as it was given, else as in the run that left its settings beside the checkpoint."""
    from unet_core.evaluate import run_settings
    from unet_core.pairs import Layout

    masks = {name: given[name] for name in OF_MASKS if name in given}
    if "data" not in given or given.get("precision", "fp32") == "fp32":
        if masks:
            raise ConfigError(
                f"--{min(masks).replace('_', '-')}: goes with --data and --precision fp16 or int8; leave it out"
            )
        return {}
    settings = run_settings(checkpoint, given["data"], masks, display.note)
    return {"ignore_index": settings.pop("ignore_index"), "layout": Layout(**settings)}


def _notes(checkpoint: Path, report: "ExportReport") -> list[str]:
    notes = list(report.notes)
    if report.card_is_assumed:
        height, width = report.card.input.size
        notes.insert(
            0,
            f"{checkpoint} is {report.family}'s and has no card; assumed: trained at {width}x{height}, mean "
            f"{_joined(report.card.input.mean)}, std {_joined(report.card.input.std)} of values in 0..1, classes "
            f"{', '.join(report.card.output.classes)} (--size, --mean, --std, --classes)",
        )
    return notes


def _joined(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _check(file: Path, given: Mapping[str, Any]) -> None:
    from export.checker import check_file
    from unet_core.display import Display

    strange = given.keys() - {*OF_CHECK, "data"}
    if strange:
        raise ConfigError(f"--{min(strange).replace('_', '-')}: has no meaning with --check; leave it out")
    report = check_file(
        file,
        checkpoint=given.get("checkpoint_of"),
        data=given.get("data"),
        device=given.get("device", "cpu"),
        display=Display(),
    )
    if report.rows:
        click.echo(table(report.rows))
    found = []
    if report.rows and report.card.precision == "fp32":
        found.append(f"equals {report.reference} within {report.max_abs_error:.1e}")
    elif report.rows:
        found.append(f"is off by at most {report.max_abs_error:.1e} from {report.reference}, as its card allows")
    if report.golden_error is not None:
        found.append(f"golden sample off by {report.golden_error:.1e}")
    gate = report.card.proof.gate if report.card.proof else None
    if gate is not None and not gate.passed:
        found.append("FAILED ITS GATE when it was exported")
    click.echo(f"{file}: {', '.join(found)}, on {report.device}")


def _show(found: object) -> None:
    """The figures of a card or of a check, in columns."""
    rows = getattr(getattr(found, "proof", found), "rows", ())
    if rows:
        click.echo(table(rows))


def _verdict(card: ModelCard) -> str:
    assert card.proof is not None
    gate = card.proof.gate
    if gate is None:
        return f"equals PyTorch within {card.proof.max_abs_error:.1e} (limit {card.proof.tolerance:g})"
    pictures = f"{gate.count} {'real' if gate.images == 'data' else 'synthetic'} images"
    text = f"{card.precision}, flips {gate.flipped:.4%} of the pixels of {pictures}"
    if gate.image_dice is not None:
        text += f", image Dice {gate.image_dice:.4f} (fp32 {gate.image_dice_fp32:.4f})"
    if card.precision == "fp16" and gate.kept:
        text += f", with {', '.join(gate.kept)} in fp32"
    return text + ("" if gate.passed else ", WHICH IS TOO MUCH: it was forced")


def table(rows: tuple[ProofRow, ...]) -> str:
    """The parity figures of each checked shape in columns."""
    lines = ["batch x height x width    images      max error   pixels flipped   mask IoU   flip distance"]
    for row in rows:
        shape, figures = "x".join(map(str, row.shape)), row.parity
        lines.append(
            f"{shape:<25} {row.images:<10} {figures.max_abs_error:10.1e}   {figures.flipped:14.4%}   "
            f"{figures.iou:8.6f}   {figures.flip_distance:13.1e}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
