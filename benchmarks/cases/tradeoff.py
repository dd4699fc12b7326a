"""Accuracy against speed: networks of several widths trained on one data set, each exported in several precisions.

Every network is trained in a process of its own, with the same settings and seed, until its epochs or its time are
over; then all files are measured on the same validation images, and timed in turns.
"""

import csv
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.subprocesses import environment_variables, exit_reason, python_command
from benchmarks.measuring.timing import interleave, pinned
from benchmarks.precision import KINDS
from benchmarks.results import Measurement, Settings, Skipped
from export.exporter import export_onnx
from runtime.devices import availability
from runtime.devices.availability import candidates
from runtime.errors import DeviceError, ProofError, one_line
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.config import TrainConfig
from unet_core.data.pairs import Layout, find_pairs
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display
from unet_core.training.run_directory import BEST

OURS = "unet-deploy"
BASES = (8, 16, 32, 64)
"""Channels of the first level; each of the `LEVELS` has twice those of the one above it."""

LEVELS = 4

CPU_KINDS = ("fp32", "fp16", "int8 u8")
GPU_KINDS = ("fp32", "fp16", "int8 s8")
"""Names in `KINDS`. A CPU computes fp16 in fp32, so what that costs is in the gate of the export alone."""

TRAIN_SCRIPT = """
import json, sys
from unet_core.config import TrainConfig, from_stored
from unet_core.train import train
train(TrainConfig(**from_stored(json.loads(sys.argv[1]))))
"""


@dataclass(frozen=True, kw_only=True)
class File:
    """An exported file, what was asked for, and what was found on the validation images."""

    path: Path
    settings: Settings
    image_dice: float
    facts: Settings


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that was trained as far as its time went: the best epoch's weights, complete epochs, seconds."""

    checkpoint: Path
    epochs: int
    seconds: float


def measure(
    config: TrainConfig,
    folder: Path,
    *,
    bases: Sequence[int] = BASES,
    kinds: Sequence[str] | None = None,
    limit_s: float = 1800.0,
    device: str = "cpu",
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Image Dice on the validation images at their original size, and milliseconds of one image as trained.

    Args:
        config: of all trainings, but for its widths and `out`.
        folder: for the runs and the .onnx files, `base-N/`.
        bases: see `BASES`.
        kinds: names in `KINDS`; by default those that suit the device.
        limit_s: seconds that each training may take; it is stopped then, and its best complete epoch counts.
        device: of the exported files.
        threads: of training, evaluation and timing.
        rounds, budget_s: of the timing.
        display: where progress is shown; nothing is drawn while a clock runs.

    Raises:
        DataError, DeviceError, OutputError: see `train`, `Predictor` and `export_onnx`.
    """
    reason = availability.unavailable_reason(candidates(device)[-1])
    if reason:  # before hours of training
        return [Skipped(part="trade-off", contestant=OURS, settings={"device": device}, reason=reason)]
    display = display or Display(quiet=True)
    kinds = kinds or (CPU_KINDS if device == "cpu" else GPU_KINDS)
    files: list[File] = []
    found: list[Measurement | Skipped] = []
    with pinned(threads):
        for base in bases:
            own = replace(config, widths=widths_of(base), out=str(folder / f"base-{base}"))
            wanted = [_settings(own, base, kind, device, threads) for kind in kinds]
            try:
                trained = train_within(own, limit_s, display)
            except DeviceError as error:
                found += [_skipped(settings, error) for settings in wanted]
                continue
            for settings in wanted:
                try:
                    files.append(_file(own, trained, settings, display))
                except ProofError as error:
                    found.append(_skipped(settings, error))
        display.note(f"trade-off: {rounds} rounds of {len(files)} files in turns")
        times = _times(files, device, threads, rounds, budget_s)
    for file, values in zip(files, times, strict=True):
        found.append(_measurement(file, "ms", values.tolist(), group="trade-off"))
        found.append(_measurement(file, "Dice", [file.image_dice]))
    return found


def widths_of(base: int) -> tuple[int, ...]:
    """Channels of each level."""
    return tuple(base * 2**level for level in range(LEVELS))


def train_within(config: TrainConfig, limit_s: float, display: Display) -> Trained:
    """Train in a process of its own, which is told to stop after so many seconds.

    What the trainer says of each epoch is shown beside the bar.

    Raises:
        DeviceError: the process failed, or completed no epoch in time.
    """
    started = time.perf_counter()
    label = f"training widths {','.join(map(str, config.widths))}"
    with (
        display.bar(label, config.epochs, unit="epoch") as advance,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            python_command(TRAIN_SCRIPT, json.dumps(asdict(config))),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment_variables(),
        ) as process,
    ):
        limit = threading.Timer(limit_s, process.terminate)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                advance(int(line.startswith("epoch")), line.strip())
            code = process.wait()
        except BaseException:
            process.terminate()  # it saves, and is waited for
            raise
        finally:
            limit.cancel()
        errors.seek(0)
        reason = exit_reason(code, errors.read()) if code else ""
    seconds = time.perf_counter() - started
    checkpoint = Path(config.out) / BEST
    stopped = seconds >= limit_s
    if not stopped and code:
        raise DeviceError(f"training in a process of its own: {reason}")
    if not checkpoint.exists():
        raise DeviceError(f"training: no epoch was complete after {limit_s:.0f} s; give it more time, or fewer images")
    return Trained(checkpoint=checkpoint, epochs=epochs_in(Path(config.out)), seconds=seconds)


def epochs_in(run: Path) -> int:
    """Complete epochs of a run, by its `metrics.csv`."""
    with open(run / "metrics.csv", newline="") as file:
        return len(list(csv.DictReader(file)))


def _file(config: TrainConfig, trained: Trained, settings: Settings, display: Display) -> File:
    """Export, also where a gate fails, and measure on the validation images.

    Raises:
        ProofError: the file does not answer as the network, or with numbers.
    """
    layout = Layout(masks=config.masks, val_share=config.val_share, group=config.group)
    kind = str(settings["precision"])
    precision, values = KINDS[kind]
    report = export_onnx(
        trained.checkpoint,
        trained.checkpoint.with_name(f"{kind.replace(' ', '.')}.onnx"),
        precision=precision,
        values=values,
        data=config.data,
        layout=layout,
        ignore_index=config.ignore_index,
        force=precision != "fp32",
        display=display,
    )
    pairs = find_pairs(config.data, "val", layout)
    device = str(settings["device"])
    metrics = evaluate(report.path, pairs, device=device, ignore_index=config.ignore_index, display=display)
    facts: dict[str, str | int | float | bool] = {
        "epochs": trained.epochs,
        "trained_s": trained.seconds,
        "images": len(pairs),
        "pixel_dice": metrics.pixel_dice,
        "file_mb": report.size / 1e6,
    }
    gate = report.card.proof.gate if report.card.proof else None
    if gate is not None:
        facts["gate_passed"] = gate.passed
        facts |= {} if gate.image_dice is None else {"gate_image_dice": gate.image_dice}
    return File(path=report.path, settings=settings, image_dice=metrics.image_dice, facts=facts)


def _times(
    files: Sequence[File], device: str, threads: int, rounds: int, budget_s: float | None
) -> list[NDArray[np.float64]]:
    """Milliseconds float64 [rounds] of one image as trained, all files in turns."""
    with ExitStack() as stack:
        calls = {}
        for index, file in enumerate(files):
            predictor = stack.enter_context(Predictor(file.path, device, threads))
            batch = synthetic_image(*predictor.card.input.size, predictor.card.architecture.in_channels, 0)[None]
            calls[str(index)] = partial(predictor.run, batch)
        return list(interleave(calls, rounds, budget_s=budget_s).values())


def _settings(config: TrainConfig, base: int, kind: str, device: str, threads: int) -> Settings:
    return {
        "base": base,
        "precision": kind,
        "epochs": config.epochs,
        "seed": config.seed,
        "batch": 1,
        "height": config.height,
        "width": config.width,
        "device": device,
        "threads": threads,
    }


def _skipped(settings: Settings, error: Exception) -> Skipped:
    return Skipped(part="trade-off", contestant=OURS, settings=settings, reason=one_line(str(error)))


def _measurement(file: File, unit: str, values: Sequence[float], group: str = "") -> Measurement:
    return Measurement(
        part="trade-off",
        contestant=OURS,
        settings=file.settings,
        unit=unit,
        values=tuple(values),
        group=group,
        facts=file.facts,
    )
