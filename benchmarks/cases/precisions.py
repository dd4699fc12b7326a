"""The price and the gain of each precision on real images: parity, image Dice, size and latency of every export."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring.environment import busy_cores, disturbance, environment
from benchmarks.measuring.intervals import ratio
from benchmarks.measuring.rounds import Timing, interleave
from export.exporter import export_onnx
from export.options import Values
from export.proof import network_run, parity, worst
from export.samples import Samples, load_samples
from runtime.card import Gate, Parity, Precision
from runtime.image import place, restore
from runtime.model_file.golden import NetworkFunction
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.result import mask_of
from unet_core.data.pairs import Layout
from unet_core.evaluation.metrics import Metrics
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint_of
from unet_core.reporting.progress import Display

EXPORTS: Mapping[str, tuple[Precision, Values | None]] = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    "int8 s8": ("int8", "s8"),
    "int8 u8": ("int8", "u8"),
}
"""Precision and values of each export, by its name in the table. On CUDA, fp32 is measured a second time in TF32."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """The figures of one export.

    Attributes:
        seconds: duration of the export.
        size: bytes of the file.
        gate: the gate that it had to pass; None for fp32.
        parity: the worst parity with PyTorch over all images, with the mean share of flipped pixels.
        image_dice: image Dice on the device; None for images without masks.
        timing: milliseconds of one image.
        ratio: time over that of fp32: median, and the ends of a 90 % interval.
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


def measure_precisions(
    checkpoint: Path,
    data: Path,
    folder: Path,
    *,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    skip_bad: bool = False,
    network: NetworkOptions | None = None,
    changes: CardChanges | None = None,
    device: str = "cpu",
    rounds: int = 20,
    display: Display | None = None,
) -> PrecisionReport:
    """Export a checkpoint in every precision into a folder, even if a gate fails, and measure all files.

    `layout` and `ignore_index` say how the masks in `data` are read; `skip_bad`, `network` and `changes` are those of
    `export_onnx`.

    Raises:
        UnetError: the errors of `export_onnx` and `Predictor`.
    """
    display = display or Display(quiet=True)
    reports = {
        name: export_onnx(
            checkpoint,
            folder / f"{name.replace(' ', '.')}.onnx",
            precision=precision,
            values=values,
            data=data,
            layout=layout,
            ignore_index=ignore_index,
            skip_bad=skip_bad,
            network=network,
            changes=changes,
            force=precision != "fp32",
            display=display,
        )
        for name, (precision, values) in EXPORTS.items()
    }
    exact = ProviderOptions(tf32=False)
    predictors = {name: Predictor(report.path, device, options=exact) for name, report in reports.items()}
    if predictors["fp32"].report.device.startswith("cuda"):
        reports["tf32"] = reports["fp32"]
        predictors["tf32"] = Predictor(reports["tf32"].path, device, options=ProviderOptions(tf32=True))
    card = reports["fp32"].card
    samples = load_samples(data, card, layout=layout, ignore_index=ignore_index, skip_bad=skip_bad, display=display)
    loaded = open_checkpoint_of(card, reports["fp32"].path, checkpoint, network or NetworkOptions())
    segmenter = Segmenter(loaded.network(), card).eval()
    parities, dices = answers_of(predictors, network_run(segmenter), samples)
    batch = samples.measured[0][0][None]  # [1, height, width, channels]
    busy_before = busy_cores()
    times = interleave({name: partial(predictor.run, batch) for name, predictor in predictors.items()}, rounds)
    rows = {}
    for name, report in reports.items():
        assert report.card.proof is not None
        rows[name] = PrecisionRow(
            seconds=report.seconds,
            size=report.size,
            gate=report.card.proof.gate,
            parity=parities[name],
            image_dice=dices[name],
            timing=Timing.of(times[name]),
            ratio=ratio(times[name], times["fp32"]),
        )
    return PrecisionReport(
        device=predictors["fp32"].report.device,
        images=len(samples.measured),
        shape=batch.shape,
        rounds=rounds,
        rows=rows,
        disturbance=disturbance(busy_before, busy_cores()),
        environment=environment(reports["fp32"].path),
    )


def answers_of(
    predictors: Mapping[str, Predictor], eager: NetworkFunction, samples: Samples
) -> tuple[dict[str, Parity], dict[str, float | None]]:
    """Compare each file's answers with those of PyTorch and with the masks.

    Returns:
        By file, the worst parity over all images, with the mean share of flipped pixels; and image Dice, or None for
        images without masks.
    """
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
            if samples.labelled:
                metrics[name].add(mask_of(restore(answer, fitted), card.output), truth, index)
    parities = {
        name: replace(worst(each), flipped=float(np.mean([one.flipped for one in each])))
        for name, each in found.items()
    }
    return parities, {name: metrics[name].image_dice if samples.labelled else None for name in predictors}
