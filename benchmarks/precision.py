"""What each precision costs and brings, on real images: `python -m benchmarks.precision CHECKPOINT DATA`."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.environment import environment
from benchmarks.measuring.timing import Timing, busy_cores, disturbance, interleave, ratio
from benchmarks.reporting.report import framed
from export.cli import masks_of, with_options_of_masks
from export.exporter import ExportReport, export_onnx
from export.precision.int8 import Values
from export.proof import network_run, parity, worst
from export.samples import Samples, load_samples
from runtime.card import Gate, Parity, Precision
from runtime.commands.console import Command
from runtime.image import place, restore
from runtime.model_file.golden import NetworkFunction
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.result import mask_of
from runtime.support.files import make_folder, write_text
from unet_core.checkpoint import load_checkpoint
from unet_core.data.pairs import Layout
from unet_core.evaluation.metrics import Metrics
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

KINDS: Mapping[str, tuple[Precision, Values | None]] = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    "int8 s8": ("int8", "s8"),
    "int8 u8": ("int8", "u8"),
}
"""What is exported: precision and values, by the name in the table. On CUDA fp32 runs in TF32 too, under that name."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One export: seconds it took, bytes, gate; parity with PyTorch and image Dice on the device; milliseconds.

    `ratio` is how many times as long as fp32 it takes: median, and the ends of a 90 % interval.
    """

    seconds: float
    size: int
    gate: Gate | None
    parity: Parity
    image_dice: float | None
    timing: Timing
    ratio: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """All exports of a checkpoint, measured on the same images in the same run."""

    device: str
    images: int
    shape: tuple[int, ...]
    rounds: int
    rows: dict[str, PrecisionRow]
    disturbance: str | None
    environment: dict[str, object]

    def table(self) -> str:
        """The report as Markdown."""
        height, width = self.shape[1:3]
        lines = [
            f"{self.images} real images; batch 1 at {width}x{height} on {self.device}, {self.rounds} rounds in turns.",
            "",
            "| precision | export s | MB | max error | pixels flipped | image Dice | median ms | p90 | times fp32's |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in self.rows.items():
            dice = "" if row.image_dice is None else f"{row.image_dice:.4f}"
            middle, low, high = row.ratio
            failed = row.gate is not None and not row.gate.passed
            lines.append(
                f"| {name}{' (fails its gate)' if failed else ''} | {row.seconds:.0f} | {row.size / 1e6:.1f} "
                f"| {row.parity.max_abs_error:.1e} | {row.parity.flipped:.4%} | {dice} | {row.timing.median:.1f} "
                f"| {row.timing.p90:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
            )
        return framed([*lines, "", *self._notes()], self.disturbance, self.environment)

    def _notes(self) -> list[str]:
        """What the table does not show of fp16."""
        gate = self.rows["fp16"].gate
        if self.device != "cpu" or gate is None:
            return []
        dice = "" if gate.image_dice is None else f" and an image Dice of {gate.image_dice:.4f}"
        return [
            "fp16: a CPU computes the file in fp32, so error, flipped pixels, Dice and time of its row are no GPU's. "
            f"Its gate, which rounds as one, found {gate.flipped:.4%} of the pixels flipped against fp32{dice}.",
            "",
        ]


def measure_precisions(
    checkpoint: Path,
    data: Path,
    folder: Path,
    *,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    device: str = "cpu",
    rounds: int = 20,
    display: Display | None = None,
) -> PrecisionReport:
    """Export a checkpoint in every precision into a folder, also where a gate fails, and measure all of them.

    `layout` and `ignore_index` are of the masks in `data`; errors are those of `export_onnx` and `Predictor`.
    """
    display = display or Display(quiet=True)
    reports = {
        name: export_onnx(
            checkpoint,
            _path(folder, name),
            precision=precision,
            values=values,
            data=data,
            layout=layout,
            ignore_index=ignore_index,
            force=precision != "fp32",
            display=display,
        )
        for name, (precision, values) in KINDS.items()
    }
    exact = ProviderOptions(tf32=False)
    predictors = {name: Predictor(report.path, device, options=exact) for name, report in reports.items()}
    if predictors["fp32"].report.device.startswith("cuda"):
        reports["tf32"] = reports["fp32"]
        predictors["tf32"] = Predictor(reports["tf32"].path, device, options=ProviderOptions(tf32=True))
    card = reports["fp32"].card
    samples = load_samples(data, card, layout=layout, ignore_index=ignore_index, display=display)
    segmenter = Segmenter(load_checkpoint(checkpoint).network(), card).eval()
    compared = _compared(predictors, network_run(segmenter), samples)
    picture = samples.measured[0][0][None]
    busy_before = busy_cores()
    times = interleave({name: _call(predictor, picture) for name, predictor in predictors.items()}, rounds)
    return PrecisionReport(
        device=predictors["fp32"].report.device,
        images=len(samples.measured),
        shape=picture.shape,
        rounds=rounds,
        rows={name: _row(report, *compared[name], times[name], times["fp32"]) for name, report in reports.items()},
        disturbance=disturbance(busy_before, busy_cores()),
        environment=environment(reports["fp32"].path),
    )


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '.')}.onnx"


def _call(predictor: Predictor, picture: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: predictor.run(picture)


def _compared(
    predictors: Mapping[str, Predictor], eager: NetworkFunction, samples: Samples
) -> dict[str, tuple[Parity, float | None]]:
    """Each file's worst parity with PyTorch over all images, but the mean share of flipped pixels; and image Dice."""
    card = predictors["fp32"].card
    found: dict[str, list[Parity]] = {name: [] for name in predictors}
    metrics = {name: Metrics(card.output.classes) for name in predictors}
    for index in range(len(samples.measured)):
        picture, truth = samples.measured[index]
        expected = eager(picture[None])[0]
        fitted = place(picture, (truth.shape[0], truth.shape[1]), card.input)
        for name, predictor in predictors.items():
            answer = predictor.run(picture[None])[0]
            found[name].append(parity(answer, expected, card.output))
            metrics[name].add(mask_of(restore(answer, fitted), card.output), truth, index)
    return {
        name: (_summary(found[name]), metrics[name].image_dice if samples.labelled else None) for name in predictors
    }


def _summary(parities: Sequence[Parity]) -> Parity:
    return replace(worst(parities), flipped=float(np.mean([item.flipped for item in parities])))


def _row(
    report: ExportReport,
    figures: Parity,
    dice: float | None,
    times: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> PrecisionRow:
    assert report.card.proof is not None
    return PrecisionRow(
        seconds=report.seconds,
        size=report.size,
        gate=report.card.proof.gate,
        parity=figures,
        image_dice=dice,
        timing=Timing.of(times),
        ratio=ratio(times, reference),
    )


@click.command(cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Of ONNX Runtime; PyTorch runs on the CPU.")
@click.option("--rounds", type=click.IntRange(min=5), default=20, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the .onnx files, precision.json and .md.")
@with_options_of_masks
def main(checkpoint: Path, data: Path, device: str, rounds: int, out: Path | None, **of_masks: Any) -> None:
    """Export CHECKPOINT in every precision, with real images under DATA, and compare the files."""
    display = Display()
    with ExitStack() as stack:
        folder = make_folder(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        masks = masks_of(checkpoint, data, of_masks, display)
        report = measure_precisions(checkpoint, data, folder, **masks, device=device, rounds=rounds, display=display)
    click.echo(report.table())
    if out is not None:
        write_text(out / "precision.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "precision.md", report.table() + "\n")


if __name__ == "__main__":
    main()
