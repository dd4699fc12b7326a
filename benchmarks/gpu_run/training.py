"""Training on the GPU: the ways that users train, and CamVid's eleven classes with the time that is left."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.models import SMALL, rows_of
from benchmarks.gpu_run.processes import StepContext, last_line, variables
from runtime.errors import DeviceError

FULL_WIDTHS = "64,128,256,512"
"""The default network: 31 million weights."""

CPU_GAP = 0.02
"""Largest difference of the first epoch's training loss in fp32 on the GPU and on the CPU."""

COMMON = (
    *("--widths", ",".join(map(str, SMALL["widths"])), "--batch-size", str(SMALL["batch_size"])),
    *("--lr", str(SMALL["lr"]), "--loss", str(SMALL["loss"]), "--no-tensorboard", "--device", "cuda"),
)
"""Options of every variant of `python -m unet_core.train` that is not resumed."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train: its name, the folder of its run in `out`/runs, its epochs, its options beside `COMMON`."""

    name: str
    folder: str
    epochs: int
    options: tuple[str, ...]


VARIANTS = (
    Variant(name="fp32", folder="fp32", epochs=1, options=("--amp", "off")),
    Variant(
        name="fp16, accumulated, clipped, moving average",
        folder="fp16",
        epochs=2,
        options=("--amp", "fp16", "--accumulate", "2", "--clip-norm", "1", "--ema", "0.99"),
    ),
    Variant(name="the same, resumed", folder="fp16", epochs=3, options=("--resume",)),
    Variant(name="31 million weights", folder="full", epochs=2, options=("--widths", FULL_WIDTHS, "--lr", "3e-4")),
    Variant(name="bf16, compiled", folder="compiled", epochs=2, options=("--amp", "bf16", "--compile")),
)

CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
CAMVID = (
    *("--masks", "classes", "--ignore-index", "11", "--classes", CLASSES, "--widths", FULL_WIDTHS),
    *("--height", "368", "--width", "480", "--batch-size", "8", "--loss", "ce+dice", "--augment", "strong"),
    *("--optimizer", "adamw", "--lr", "1e-3", "--weight-decay", "0.01", "--schedule", "cosine"),
    *("--warmup-epochs", "1", "--ema", "0.99", "--no-tensorboard", "--device", "cuda"),
)
"""Options for CamVid's labels, of which 11 is unlabelled; its images are 480x360."""

CAMVID_FOLDERS = ("train_images", "train_classes", "val_images", "val_classes")
FIVE_MINUTES, MARGIN_S, LEAST_S = 300.0, 15.0, 15.0
"""Seconds: of CamVid's training, kept for what follows it, and the fewest in which a training is begun."""

PROBE_EPOCHS, MOST_EPOCHS = 3, 300


def variants(context: StepContext) -> Iterator[Finding]:
    """Train in each way, each in a process of its own; one that fails does not end the others."""
    data = context.out / "data"
    if not data.is_dir():
        yield Finding.skipped("training", "needs the data set of step models, which is not there; see that step")
        return
    for variant in VARIANTS:
        if context.left < LEAST_S:
            yield Finding.skipped(variant.name, f"{context.left:.0f} s are left, and it needs {LEAST_S:.0f} s")
            continue
        options = variant.options if "--resume" in variant.options else (*COMMON, *variant.options)
        try:
            seconds = train_for(context, variant.folder, data, options, variant.epochs, context.left - 2)
            yield variant_finding(context, variant, seconds)
        except (DeviceError, OSError, LookupError, ValueError) as error:
            yield Finding.failure(variant.name, error)


def variant_finding(context: StepContext, variant: Variant, seconds: float) -> Finding:
    """Look at a training's figures: all epochs are there; in fp32 the loss is the CPU's."""
    row = rows_of(context.out / "runs" / variant.folder)[-1]
    figures: dict[str, Scalar] = {name: row[name] for name in ("epoch", "train_loss", "image_dice", "train_seconds")}
    figures["whole_s"] = round(seconds, 1)
    if row["epoch"] != variant.epochs:
        text = f"{row['epoch']:.0f} epochs were trained, expected {variant.epochs}"
        return Finding.verdict(variant.name, False, text, figures)
    on_cpu = context.out / "small"
    if variant.name != "fp32" or not (on_cpu / "metrics.csv").exists():
        return Finding.verdict(variant.name, True, "", figures)
    loss = rows_of(on_cpu)[0]["train_loss"]
    gap = abs(row["train_loss"] - loss)
    text = f"the first epoch's loss is {gap:.2g} off the CPU's {loss:.4f}, expected at most {CPU_GAP}"
    return Finding.verdict(variant.name, gap <= CPU_GAP, text, figures)


def train_for(
    context: StepContext, folder: str, data: Path, options: tuple[str, ...], epochs: int, limit_s: float
) -> float:
    """Train in a process of its own for at most `limit_s` seconds; return the seconds that it took.

    At the limit the process is told to stop, finishes its step and saves; what it reached can be read then.

    Raises:
        DeviceError: it failed, or took too long.
    """
    run, log = context.out / "runs" / folder, context.out / "steps" / f"training-{folder}.log"
    command = [sys.executable, "-P", "-m", "unet_core.train", str(data), "--out", str(run), *options]
    command += ["--epochs", str(epochs), "--cache-dir", str(context.out / "cache")]
    environment = variables(for_pytorch=True, is_stand_in=context.is_stand_in)
    if "--resume" not in options:
        shutil.rmtree(run, ignore_errors=True)  # of an earlier run of this step
    started = time.monotonic()
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            code = process.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(MARGIN_S)
            process.kill()
            raise DeviceError(f"took longer than {limit_s:.0f} s; last output: {last_line(log)}") from None
    if code:
        raise DeviceError(f"ended with status {code}: {last_line(log)}")
    return time.monotonic() - started


def camvid(context: StepContext) -> Iterator[Finding]:
    """Measure the time of an epoch, then train for as many epochs as fit into five minutes, or into what is left."""
    data = context.data
    assert data is not None
    missing = next((name for name in CAMVID_FOLDERS if not (data / name).is_dir()), None)
    if missing is not None:
        yield Finding.skipped("CamVid", f"{data}: has no folder {missing}; expected CamVid's images and labels")
        return
    train_for(context, "camvid-probe", data, CAMVID, PROBE_EPOCHS, context.left - MARGIN_S)
    rows = rows_of(context.out / "runs" / "camvid-probe")[1:]
    of_epoch = min(row["seconds"] for row in rows)
    images = len(list((data / "train_images").iterdir()))
    speed = {"epoch_s": of_epoch, "images/s": images / min(row["train_seconds"] for row in rows)}
    yield Finding.measured("an epoch", speed)
    seconds = min(FIVE_MINUTES, context.left - 2 * MARGIN_S)
    if seconds < LEAST_S:
        yield Finding.skipped("CamVid", f"{seconds:.0f} s are left to train in, and it needs {LEAST_S:.0f} s")
        return
    epochs = max(1, min(MOST_EPOCHS, int((seconds - MARGIN_S) / of_epoch)))
    with suppress(DeviceError):  # what it reached until its limit counts
        train_for(context, "camvid", data, CAMVID, epochs, seconds)
    run = context.out / "runs" / "camvid"
    rows = rows_of(run) if (run / "metrics.csv").exists() else []
    if not rows:
        yield Finding.verdict("CamVid", False, f"no epoch was done within {seconds:.0f} s; see training-camvid.log")
        return
    best = max(rows, key=lambda row: row["pixel_dice"])
    figures = {"mean_iou": best["iou"], **{name: best[name] for name in ("accuracy", "pixel_dice", "epoch")}}
    figures["trained_s"] = round(sum(row["seconds"] for row in rows), 1)
    text = f"best of {len(rows)} epochs of {epochs}, by pixel Dice, at the images' own size"
    yield Finding.measured("CamVid, eleven classes, 31 million weights, 480x368", figures, text)
