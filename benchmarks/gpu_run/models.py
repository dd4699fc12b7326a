"""A small network, trained on the CPU so that it does not depend on the GPU, and its files in each precision."""

import csv
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.processes import StepContext
from runtime.card import Precision
from runtime.errors import UnetError

CARS, VAL_CARS, SIZE = 4, 1, (320, 480)
"""The procedural data set: 48 images to train on and 16 to validate on, (height, width)."""

FEW = 4
"""Number of pictures on which the network of 31 million weights is judged below fp32, which takes long on a CPU."""

SMALL: Mapping[str, Any] = {
    "widths": (8, 16, 32, 64),
    "epochs": 10,
    "batch_size": 4,
    "lr": 2e-3,
    "loss": "bce+dice",
    "amp": "off",
    "tensorboard": False,
}
"""Settings of the small network's training; it learns the cars, so its masks have edges that rounding may move."""


def make(context: StepContext) -> Iterator[Finding]:
    """Draw the data set, train or take the checkpoint that was given, and export it in each precision."""
    from unet_core.turntable import make_dataset

    data = context.out / "data"
    training, validation = make_dataset(data, cars=CARS, val_cars=VAL_CARS, size=SIZE)
    few = context.out / "few_images"
    few.mkdir(exist_ok=True)
    for path in sorted((data / "val_images").iterdir())[:FEW]:
        shutil.copy(path, few)
    yield Finding.measured("data set", {"training_images": training, "validation_images": validation})
    checkpoint = context.checkpoint
    if checkpoint is None:
        checkpoint = train_small(data, context.out / "small", context.out / "cache")
        yield Finding.measured("training on the CPU", rows_of(checkpoint.parent)[-1])
    masked = data if context.checkpoint is None else data / "val_images"  # another network's classes are not the car
    for precision in get_args(Precision):
        yield export_finding(checkpoint, context.model(precision), precision, masked)


def export_finding(checkpoint: Path, path: Path, precision: Precision, data: Path) -> Finding:
    """Export a checkpoint in a precision, even if its gate fails."""
    from export.exporter import export_onnx

    path.parent.mkdir(exist_ok=True)
    below = precision != "fp32"
    subject = f"export, {path.stem}"
    try:
        report = export_onnx(
            checkpoint,
            path,
            precision=precision,
            force=below,
            data=data if below else None,
            int8_for="tensorrt" if precision == "int8" else None,
        )
    except UnetError as error:
        return Finding.failure(subject, error)
    figures: dict[str, Scalar] = {"seconds": round(report.seconds, 1), "mb": round(report.size / 1e6, 2)}
    gate = report.card.proof.gate if report.card.proof is not None else None
    if gate is not None:
        figures |= {"gate_flipped": gate.flipped, "gate_passed": gate.passed}
    return Finding.verdict(subject, True, figures=figures)


def train_small(data: Path, out: Path, cache: Path) -> Path:
    """Train the small network on the CPU, and return the path of its best weights."""
    from unet_core.config import TrainConfig
    from unet_core.train import train

    shutil.rmtree(out, ignore_errors=True)  # of an earlier run of this step
    settings = {**SMALL, "data": str(data), "out": str(out), "cache_dir": str(cache), "device": "cpu"}
    return train(TrainConfig(**settings))


def rows_of(run: Path) -> list[dict[str, float]]:
    """Return the figures of each epoch of a training, from its metrics.csv."""
    with open(run / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
