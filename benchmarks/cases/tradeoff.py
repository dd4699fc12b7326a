"""Accuracy against speed: networks of several widths trained on one data set, each exported in several precisions.

Every network is trained in a process of its own, with the same settings and seed, until its epochs or its time are
over. Then all files are evaluated on the same validation images, and alternate while they are timed.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases.precisions import EXPORTS
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.subprocesses import environment_variables, exit_reason, python_command
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from export.exporter import export_onnx
from runtime.devices import availability
from runtime.devices.availability import candidates
from runtime.errors import DeviceError, ProofError, one_line
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.config import TrainConfig
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display
from unet_core.training.run_directory import BEST

PART, OURS = "trade-off", "unet-deploy"
BASES = (8, 16, 32)
"""Channels of the first level; each further one of the `DEPTH` levels has twice as many as the one above it."""

DEPTH = 4

CPU_KINDS = ("fp32", "fp16", "int8 u8")
GPU_KINDS = ("fp32", "fp16", "int8 s8")
"""Exports by their names in `EXPORTS`. A CPU computes fp16 in fp32, so its loss shows only in the export's gate."""

TRAIN_SCRIPT = """
import json, sys
from unet_core.config import TrainConfig
from unet_core.settings_file import from_stored
from unet_core.train import train
train(TrainConfig(**from_stored(json.loads(sys.argv[1]))))
"""


@dataclass(frozen=True, kw_only=True)
class EvaluatedFile:
    """An exported file, its settings, and its figures on the validation images."""

    path: Path
    settings: Settings
    image_dice: float
    facts: Settings


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network: the checkpoint of its best epoch, its complete epochs, and the seconds that they took."""

    checkpoint: Path
    epochs: int
    seconds: float


def measure(
    config: TrainConfig,
    folder: Path,
    *,
    bases: Sequence[int] = (),
    kinds: Sequence[str] | None = None,
    limit_s: float = 1800.0,
    device: str = "cpu",
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure image Dice on the validation images at their original size, and milliseconds of one trained-size image.

    Args:
        config: settings of all trainings; widths and `out` are replaced.
        folder: folder for the runs and the .onnx files, `base-N/`.
        bases: channels of the first level of each network; by default `BASES`.
        kinds: names in `EXPORTS`; by default those that suit the device.
        limit_s: seconds that each training may take; it is stopped then, and its best complete epoch counts.
        device: device of the exported files.
        threads: threads of training, evaluation and timing.
        rounds: rounds of the timing.
        budget_s: seconds for the timing.
        display: shows progress; nothing is drawn while times are taken.

    Raises:
        DataError, DeviceError, OutputError: the errors of `train`, `Predictor` and `export_onnx`.
    """
    reason = availability.unavailable_reason(candidates(device)[-1])
    if reason:  # before hours of training
        return [Skipped(part=PART, contestant=OURS, settings={"device": device}, reason=reason)]
    display = display or Display(quiet=True)
    kinds = kinds or (CPU_KINDS if device == "cpu" else GPU_KINDS)
    files: list[EvaluatedFile] = []
    found: list[Measurement | Skipped] = []

    def skip(settings: Settings, error: Exception) -> None:
        found.append(Skipped(part=PART, contestant=OURS, settings=settings, reason=one_line(str(error))))

    with pinned(threads):
        for base in bases or BASES:
            own = replace(config, widths=widths_of(base), out=str(folder / f"base-{base}"))
            common: Settings = {
                "epochs": own.epochs,
                "seed": own.seed,
                "batch": 1,
                "height": own.height,
                "width": own.width,
                "device": device,
                "threads": threads,
            }
            wanted: list[Settings] = [{"base": base, "precision": kind, **common} for kind in kinds]
            try:
                trained = train_within(own, limit_s, display)
            except DeviceError as error:
                for settings in wanted:
                    skip(settings, error)
                continue
            for settings in wanted:
                try:
                    files.append(export_and_evaluate(own, trained, settings, display))
                except ProofError as error:
                    skip(settings, error)
        display.note(f"trade-off: {rounds} rounds of {len(files)} files, alternating")
        times = time_files(files, device, threads, rounds, budget_s)
    for file, milliseconds in zip(files, times, strict=True):
        named: dict[str, Any] = {"part": PART, "settings": file.settings, "facts": file.facts}
        found += measurements_of({OURS: milliseconds}, unit="ms", group=PART, **named)
        found += measurements_of({OURS: np.array([file.image_dice])}, unit="Dice", **named)
    return found


def widths_of(base: int) -> tuple[int, ...]:
    """Return the channels of each level."""
    return tuple(base * 2**level for level in range(DEPTH))


def train_within(config: TrainConfig, limit_s: float, display: Display) -> Trained:
    """Train in a process of its own, which is terminated after so many seconds.

    The trainer's line about each epoch is shown beside the progress bar.

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
            process.terminate()  # the process saves its run, and `Popen` waits for it
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
    """Count the complete epochs of a run, by its `metrics.csv`."""
    with open(run / "metrics.csv", newline="") as file:
        return len(list(csv.DictReader(file)))


def export_and_evaluate(config: TrainConfig, trained: Trained, settings: Settings, display: Display) -> EvaluatedFile:
    """Export a checkpoint, even if a gate fails, and evaluate the file on the validation images.

    Raises:
        ProofError: the file's answers differ from the network's, or are not finite.
    """
    kind = str(settings["precision"])
    precision, values = EXPORTS[kind]
    report = export_onnx(
        trained.checkpoint,
        trained.checkpoint.with_name(f"{kind.replace(' ', '.')}.onnx"),
        precision=precision,
        values=values,
        data=config.data,
        layout=config.layout,
        ignore_index=config.ignore_index,
        force=precision != "fp32",
        display=display,
    )
    pairs = find_pairs(config.data, "val", config.layout)
    device = str(settings["device"])
    metrics = evaluate(
        report.path,
        pairs,
        device=device,
        ignore_index=config.ignore_index,
        class_offset=config.class_offset,
        display=display,
    )
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
    return EvaluatedFile(path=report.path, settings=settings, image_dice=metrics.image_dice, facts=facts)


def time_files(
    files: Sequence[EvaluatedFile], device: str, threads: int, rounds: int, budget_s: float | None
) -> list[NDArray[np.float64]]:
    """Time one image of the trained size with each file, alternating; returns milliseconds float64 [rounds]."""
    with ExitStack() as stack:
        calls = {}
        for index, file in enumerate(files):
            predictor = stack.enter_context(Predictor(file.path, device, threads))
            batch = synthetic_image(*predictor.card.input.size, predictor.card.architecture.in_channels, 0)[None]
            calls[str(index)] = partial(predictor.run, batch)
        return list(interleave(calls, rounds, budget_s=budget_s).values())
