"""The networks of other packages in the documentation, exported in every way: `python -m benchmarks.networks DATA`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.commands.console import Command, echo
from runtime.commands.entry import exit_without

if TYPE_CHECKING:
    from benchmarks.cases.networks import MeasuredNetwork, NetworkExport


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--steps", type=click.IntRange(min=0), default=60, show_default=True, help="Steps of training before the exports."
)
@click.option("--only", multiple=True, metavar="NAME", help="Name of a network to measure; may be repeated.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="File for the table, in Markdown.")
def main(data: Path, steps: int, only: tuple[str, ...], out: Path | None) -> None:
    """Train networks of other packages on DATA (masks of one class) for some steps, and export them in every way.

    Run it in the folder of the repository, with the development packages installed.
    """
    try:
        from benchmarks.cases.networks import NETWORKS, measure
        from unet_core.reporting.progress import Display
    except ModuleNotFoundError as error:  # here, since importing PyTorch takes seconds that --help does not need
        exit_without(error, extra="export")
    from benchmarks.measuring.environment import machine
    from runtime.errors import ConfigError
    from runtime.support.files import write_text

    for name in set(only) - NETWORKS.keys():
        raise ConfigError(f"--only {name}: no such network; expected one of {'; '.join(NETWORKS)}")
    found = dict(measure(data, steps, only or tuple(NETWORKS), Display()))
    text = markdown(found, machine()["versions"])
    echo(text)
    if out is not None:
        write_text(out, f"{text}\n", follow=True)


def markdown(found: Mapping[str, "MeasuredNetwork"], versions: Mapping[str, str]) -> str:
    """Write measured networks as a Markdown table, and the versions they were measured with."""
    lines = [
        "| network | package | sizes | smallest | MB | max error | fp16 | int8, u8 | for CPUs |",
        "|---|---|---|---|---:|---:|---|---|---|",
    ]
    for name, measured in found.items():
        exports = measured.exports
        card = exports["fp32"].card
        cells = [f"`{name}`", f"{measured.network.package} {measured.version}"]
        if card is None:
            cells += ["", "", "", exports["fp32"].refusal, "", "", ""]
        else:
            assert card.proof is not None
            stride, (height, width) = card.input.stride, card.input.min_size
            sizes = f"any, padded to multiples of {stride}" if card.input.padded else f"multiples of {stride}"
            cells += ["any" if stride == 1 else sizes, f"{width}x{height}", f"{exports['fp32'].size / 1e6:.1f}"]
            cells += [f"{card.proof.max_abs_error:.1e} of {card.proof.tolerance:.1e}"]
            cells += [gate_cell(exports["fp16"]), gate_cell(exports["int8, u8"]), error_cell(exports["for CPUs"])]
        lines.append(f"| {' | '.join(cells)} |")
    measured_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, "", measured_with])


def gate_cell(export: "NetworkExport") -> str:
    """Write what a file below fp32 lost in its gate, or why there is none."""
    if export.card is None:
        return export.refusal
    proof = export.card.proof
    assert proof is not None
    assert proof.gate is not None
    gate = proof.gate
    kept = f", {len(gate.kept)} layer{'s' * (len(gate.kept) > 1)} in fp32" if gate.kept else ""
    dice = "" if gate.image_dice is None else f", Dice {gate.image_dice:.4f} of {gate.image_dice_fp32:.4f}"
    return f"{gate.flipped:.4%}{dice}{kept}"


def error_cell(export: "NetworkExport") -> str:
    """Write how far a file's answers are from PyTorch's, or why there is none."""
    if export.card is None:
        return export.refusal
    assert export.card.proof is not None
    return f"{export.card.proof.max_abs_error:.1e}"


if __name__ == "__main__":
    main()
