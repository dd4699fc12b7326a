"""The price and the gain of each precision, on real images: `python -m benchmarks.precision CHECKPOINT DATA`."""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from export.cli import masks_of, with_options_of_masks
from runtime.commands.console import Command
from runtime.commands.entry import exit_without


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--device", default="cpu", show_default=True, help="Device of the exported files; PyTorch answers on the CPU."
)
@click.option("--rounds", type=click.IntRange(min=5), default=20, show_default=True, help="Rounds of each file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the .onnx files, precision.json and .md.")
@with_options_of_masks
def main(checkpoint: Path, data: Path, device: str, rounds: int, out: Path | None, **mask_options: Any) -> None:
    """Export CHECKPOINT in every precision, with real images under DATA, and compare the files."""
    try:
        from benchmarks.cases.precisions import measure_precisions
        from unet_core.reporting.progress import Display
    except ModuleNotFoundError as error:  # here, since importing PyTorch takes seconds that --help does not need
        exit_without(error, extra="bench")
    from runtime.support.files import make_folder, write_text

    display = Display()
    with ExitStack() as stack:
        folder = make_folder(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        masks = masks_of(checkpoint, data, mask_options, display)
        report = measure_precisions(checkpoint, data, folder, **masks, device=device, rounds=rounds, display=display)
    click.echo(report.markdown())
    if out is not None:
        write_text(out / "precision.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "precision.md", report.markdown() + "\n")


if __name__ == "__main__":
    main()
