"""The price and the gain of each precision, on real images: `python -m benchmarks.precision CHECKPOINT DATA`."""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.cli import masks_of, with_options_of_masks
from export.options import MASK_OPTIONS
from runtime.commands.console import Command, echo
from runtime.commands.entry import exit_without
from unet_core.model_options import card_changes, network_options, with_card_options, with_network_options

if TYPE_CHECKING:
    from benchmarks.cases.precisions import PrecisionReport


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--device", default="cpu", show_default=True, help="Device of the exported files; PyTorch answers on the CPU."
)
@click.option("--rounds", type=click.IntRange(min=5), default=20, show_default=True, help="Rounds of each file.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for the .onnx files, precision.json and .md."
)
@with_options_of_masks
@with_network_options
@with_card_options
def main(checkpoint: Path, data: Path, device: str, rounds: int, out: Path | None, **given: Any) -> None:
    """Export CHECKPOINT in every precision, with real images under DATA, and compare the files."""
    try:
        from benchmarks.cases.precisions import measure_precisions
        from unet_core.reporting.progress import Display
    except ModuleNotFoundError as error:  # here, since importing PyTorch takes seconds that --help does not need
        exit_without(error, extra="export")
    from runtime.support.files import make_folder, write_text

    display = Display()
    mask_options = {name: given.pop(name) for name in MASK_OPTIONS}
    named = {name: value for name, value in given.items() if value is not None and value != ()}
    network, changes = network_options(named), card_changes(named)
    with ExitStack() as stack:
        folder = make_folder(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        masks = masks_of(checkpoint, data, mask_options, display)
        report = measure_precisions(
            checkpoint,
            data,
            folder,
            **masks,
            network=network,
            changes=changes,
            device=device,
            rounds=rounds,
            display=display,
        )
    echo(markdown(report))
    if out is not None:
        write_text(out / "precision.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "precision.md", markdown(report) + "\n")


def markdown(report: "PrecisionReport") -> str:
    """Write the report as Markdown: a row for each file."""
    height, width = report.shape[1:3]
    lines = [f"**Not a measurement**: {report.disturbance}.", ""] if report.disturbance else []
    lines += [
        f"{report.images} real images; batch 1 at {width}x{height} on {report.device}, {report.rounds} rounds, "
        "in which the files alternate.",
        "",
        "| precision | export s | MB | max error | pixels flipped | image Dice | median ms | p90 | times fp32's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in report.rows.items():
        dice = "" if row.image_dice is None else f"{row.image_dice:.4f}"
        middle, low, high = row.ratio
        failed = row.gate is not None and not row.gate.passed
        lines.append(
            f"| {name}{' (fails its gate)' if failed else ''} | {row.seconds:.0f} | {row.size / 1e6:.1f} "
            f"| {row.parity.max_abs_error:.1e} | {row.parity.flipped:.4%} | {dice} | {row.timing.median:.1f} "
            f"| {row.timing.p90:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    lines.append("")
    gate = report.rows["fp16"].gate if report.device == "cpu" else None
    if gate is not None:
        dice = "" if gate.image_dice is None else f" and an image Dice of {gate.image_dice:.4f}"
        lines += [
            "fp16: a CPU computes the file in fp32, so error, flipped pixels, Dice and time of its row are not a "
            f"GPU's. Its gate, which rounds as a GPU does, found {gate.flipped:.4%} of the pixels flipped against "
            f"fp32{dice}.",
            "",
        ]
    versions = report.environment["versions"]
    assert isinstance(versions, dict)
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, f"{report.environment['cpu']}, {report.environment['cores']} cores; {installed}"])


if __name__ == "__main__":
    main()
