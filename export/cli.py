"""unet-export: the command line of `export.export_onnx` and `export.check_file`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from runtime.card import Fit, ModelCard, Precision, ProofRow, Target
from runtime.commands.console import Command, IgnoredValue, Listed, Size
from runtime.commands.entry import exit_without
from runtime.errors import ConfigError, ProofError
from runtime.support.files import new_folder, prepare

if TYPE_CHECKING:
    from unet_core.reporting.progress import Display

OF_CHECK = ("checkpoint_of", "device")
"""Options that --check alone has."""

OF_CARD = ("size", "mean", "std", "fit", "classes", "threshold")
"""Options that say what a checkpoint without a card does not."""

AFTERWARDS = ("card", "triton", "triton_name")
"""Options for what is made of the exported file."""

OF_KIND = ("precision", "target", "data", "raw", "keep", "values", "force", "tune")
"""Options that say what kind of file is written, and may contradict each other."""

OF_MASKS = ("masks", "ignore_index")
"""Options that say how masks are read."""

F = TypeVar("F", bound=Callable[..., None])


def with_options_of_masks(command: F) -> F:
    """Add `OF_MASKS` to a command, for `masks_of`."""
    masks = click.option("--masks", help="Of the data: masks are in SPLIT_MASKS/.  [default: as the run's, else masks]")
    ignored = click.option(
        "--ignore-index",
        type=IgnoredValue(),
        help="Of the data: value in the masks that does not count; none: all count.  [default: the run's]",
    )
    return masks(ignored(command))


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .onnx file.  [default: beside CHECKPOINT]")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Of the network.  [default: fp32]")
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    help="cpu: faster there, if wide, and only there.  [default: any]",
)
@click.option(
    "--tune",
    is_flag=True,
    help="With --target cpu: measure what is fastest here, while nothing else runs.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Real images to prove on, with masks where they are laid out as for training; int8 is calibrated on them.",
)
@with_options_of_masks
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
@click.option("--triton-name", help="Of the model there.  [default: the card's]")
@click.option("--check", type=click.Path(path_type=Path), metavar="FILE", help="Prove an exported file again instead.")
@click.option(
    "--checkpoint", "checkpoint_of", type=click.Path(path_type=Path), help="With --check: what it was exported from."
)
@click.option("--device", help="With --check: auto, cpu, cuda:N or tensorrt:N.  [default: cpu]")
def main(checkpoint: Path | None, check: Path | None, **options: Any) -> None:
    """Write CHECKPOINT (model.pth) as one ONNX file, checked against PyTorch before it is written."""
    if (checkpoint is None) == (check is None):
        raise click.UsageError("Give either a CHECKPOINT to export, or --check FILE.")
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
    from export.exporter import export_onnx
    from export.options import CardChanges
    from unet_core.reporting.progress import Display

    for name in OF_CHECK:
        if name in given:
            raise ConfigError(f"--{name.removesuffix('_of')}: goes with --check; leave it out")
    display = Display()
    of_card = {name: given[name] for name in OF_CARD if name in given}
    rest = {name: value for name, value in given.items() if name not in (*OF_CARD, *OF_MASKS, *AFTERWARDS, "output")}
    with _room_for_what_follows(checkpoint, given):
        report = export_onnx(
            checkpoint,
            given.get("output"),
            changes=CardChanges(**of_card),
            display=display,
            **_of_masks(checkpoint, given, display),
            **rest,
        )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    _show(report.card)
    click.echo(f"{report.path}: {report.size / 1e6:.1f} MB, {_verdict(report.card)} ({report.seconds:.0f} s)")
    if "card" in given:
        from export.hub import write_model_card

        click.echo(f"model card: {write_model_card(report.path)}")
    if "triton" in given:
        from export.triton import write_repository

        folder = write_repository(report.path, given["triton"], name=given.get("triton_name"))
        if "triton_name" not in given and folder.name != report.card.name:
            click.echo(
                f"note: Triton takes no model called {report.card.name!r}, so it is {folder.name} there; --triton-name "
                "gives another one",
                err=True,
            )
        click.echo(f"Triton: {folder}")


@contextmanager
def _room_for_what_follows(checkpoint: Path, given: Mapping[str, Any]) -> Iterator[None]:
    """Refuse --card and --triton before the export where they cannot be written after it."""
    if "triton_name" in given and "triton" not in given:
        raise ConfigError("--triton-name: goes with --triton; leave it out")
    if not given.keys() & {*AFTERWARDS}:
        yield
        return
    if given.get("raw"):
        raise ConfigError("--raw: has neither card nor golden sample for --card or --triton; leave it out")
    from export.exporter import check_options, default_path, kind_of
    from export.hub import markdown_path
    from export.triton import place_of
    from unet_core.checkpoint import load_checkpoint

    check_options(**{name: given[name] for name in OF_KIND if name in given})
    precision, target = given.get("precision", "fp32"), given.get("target", "any")
    card = replace(load_checkpoint(checkpoint).card, precision=precision, target=target)
    if "card" in given:
        kind = kind_of(precision, given.get("values"), target)
        prepare(markdown_path(given.get("output", default_path(checkpoint, kind))))
    if "triton" not in given:
        yield
        return
    place_of(card, given["triton"], given.get("triton_name"))
    with new_folder(given["triton"]):
        yield


def _of_masks(checkpoint: Path, given: Mapping[str, Any], display: "Display") -> dict[str, Any]:
    """Of `masks_of`, where masks are read at all."""
    masks = {name: given[name] for name in OF_MASKS if name in given}
    if "data" in given and given.get("precision", "fp32") != "fp32":
        return masks_of(checkpoint, given["data"], masks, display)
    if masks:
        raise ConfigError(
            f"--{min(masks).replace('_', '-')}: goes with --data and --precision fp16 or int8; leave it out"
        )
    return {}


def masks_of(checkpoint: Path, data: Path, masks: Mapping[str, Any], display: "Display") -> dict[str, Any]:
    """How masks are read: as it was given, else as in the run that left its settings beside the checkpoint.

    Returns the arguments `layout` and `ignore_index` of `export_onnx` and `load_samples`.
    """
    from unet_core.data.pairs import Layout
    from unet_core.evaluate import run_settings

    settings = run_settings(checkpoint, data, masks, display.note)
    return {"ignore_index": settings.pop("ignore_index"), "layout": Layout(**settings)}


def _check(file: Path, given: Mapping[str, Any]) -> None:
    from export.verify import check_file
    from unet_core.reporting.progress import Display

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
    from export.hub import allowed, lost

    text = f"{card.precision}, {lost(card, gate)}"
    if card.precision == "fp16" and gate.kept and gate.passed:
        text += f", with {', '.join(gate.kept)} in fp32"
    if gate.passed:
        return text
    limit = allowed(card, gate)
    return f"{text}, {'WHICH IS TOO MUCH: ' if limit else ''}it was forced{limit}"


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
