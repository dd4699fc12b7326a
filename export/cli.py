"""unet-export: the command line of `export.export_onnx`."""

from pathlib import Path

import click

from runtime.card import Proof
from runtime.console import Command, exit_without


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .onnx file.  [default: beside CHECKPOINT]")
def main(checkpoint: Path, output: Path | None) -> None:
    """Write CHECKPOINT (model.pth) as one ONNX file, checked against PyTorch before it is written."""
    try:
        from export.exporter import export_onnx  # PyTorch takes seconds to import; --help does not need it
    except ModuleNotFoundError as error:
        exit_without(error, extra="export")

    report = export_onnx(checkpoint, output)
    if report.card_is_assumed:
        card, (height, width) = report.card, report.card.input.size
        click.echo(
            f"note: {checkpoint} is {report.family}'s and has no card; assumed: trained at {width}x{height}, values "
            f"divided by 255, classes {', '.join(card.output.classes)}",
            err=True,
        )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    assert report.card.proof is not None
    click.echo(table(report.card.proof))
    click.echo(
        f"{report.path}: {report.size / 1e6:.1f} MB, equals PyTorch within {report.card.proof.max_abs_error:.1e} "
        f"({report.seconds:.0f} s)"
    )


def table(proof: Proof) -> str:
    """The parity figures of each checked shape in columns."""
    lines = ["batch x height x width   max error   pixels flipped   mask IoU"]
    for row in proof.rows:
        shape = "x".join(map(str, row.shape))
        figures = row.parity
        lines.append(f"{shape:<24} {figures.max_abs_error:9.1e}   {figures.flipped:13.4%}   {figures.iou:8.6f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
