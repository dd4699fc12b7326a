"""Latency of the network of 31 million weights on the GPU: `unet-bench`, and one image with CUDA graphs."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.models import export_finding
from benchmarks.gpu_run.processes import StepContext, last_line, variables
from benchmarks.gpu_run.sessions import TIMING_S, Model
from benchmarks.measuring.rounds import MIN_ROUNDS, interleave
from benchmarks.reporting.tables import settings_text
from benchmarks.results import FILE_NAME, Results
from runtime.card import Precision

BENCHES: Mapping[str, tuple[str, float]] = {"bench": ("240x160,960x640", 0.6), "bench-large": ("1918x1280", 1.0)}
"""Folders of unet-bench's results, each with its sizes (width x height) and its share of the time that is left.

A run of unet-bench that is ended by force loses its latencies, so the largest size has its own.
"""

BATCHES, ARITHMETICS = "1,4", "tf32,fp16"
CONTESTANTS = ("PyTorch eager, channels_last", "ONNX Runtime", "unet-deploy")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

SINGLE = (1, 160, 240)
"""The one image whose time is compared with its floor, (batch, height, width)."""

FLOORS: tuple[tuple[Precision, str, float], ...] = (("fp32", "tf32", 1.0), ("fp16", "fp16", 0.5))
"""Files of which a floor is computed, the arithmetic of their peak, and the size of a value over that of float32."""

EXIT_S, LEAST_S, BUDGET = 5.0, 30.0, 0.7
"""Seconds kept at the end of the step; the least that unet-bench needs; its --budget as a share of its limit.

The budget is for timing: loading contestants and the reference's answers come on top.
"""


def measure(context: StepContext) -> Iterator[Finding]:
    """Export the network that step training has trained, and measure it beside PyTorch."""
    trained = context.out / "runs" / "full" / "model.pth"
    small = context.checkpoint or context.out / "small" / "model.pth"
    checkpoint = trained if trained.exists() and context.checkpoint is None else small
    if checkpoint != trained:
        text = f"{checkpoint.name} of {checkpoint.parent.name}, not the one of step training"
        yield Finding.measured("network", {}, text)
    paths = {precision: context.model(f"full-{precision}") for precision in PRECISIONS}
    for precision, path in paths.items():
        yield export_finding(checkpoint, path, precision, context.out / "few_images")
    files = {precision: path for precision, path in paths.items() if path.exists()}
    for folder, (sizes, share) in BENCHES.items() if "fp32" in files else ():
        limit_s = share * context.left - EXIT_S
        if limit_s < LEAST_S:
            yield Finding.skipped(f"unet-bench, {sizes}", f"{limit_s:.0f} s are left, and it needs {LEAST_S:.0f} s")
            continue
        yield from benched(context, files, checkpoint, context.out / folder, sizes, limit_s)


def floors(context: StepContext) -> Iterator[Finding]:
    """Time one image of step speed's files with CUDA graphs, in a process without PyTorch."""
    path = context.out / next(iter(BENCHES)) / FILE_NAME
    if not path.exists():
        yield Finding.skipped("floor", "needs the peaks that step speed measures, which are not there; see that step")
        return
    paths = {precision: context.model(f"full-{precision}") for precision in PRECISIONS}
    yield from floor_findings({name: path for name, path in paths.items() if path.exists()}, Results.read(path))


def benched(
    context: StepContext, files: Mapping[Precision, Path], checkpoint: Path, folder: Path, sizes: str, limit_s: float
) -> Iterator[Finding]:
    """Run unet-bench for at most `limit_s` seconds, and tell of its peaks and latencies."""
    command = [sys.executable, "-P", "-m", "benchmarks", str(files["fp32"]), "--checkpoint", str(checkpoint)]
    command += ["--quick", "--device", "cuda", "--part", "peak", "--part", "latency", "--out", str(folder)]
    command += ["--size", sizes, "--batch", BATCHES, "--precision", ARITHMETICS, "--budget", f"{BUDGET * limit_s:.0f}"]
    command += [word for name in CONTESTANTS for word in ("--contestant", name)]
    command += ["--also", str(files["fp16"])] if "fp16" in files else []
    log = context.out / "steps" / f"{folder.name}.log"
    environment = variables(for_pytorch=True, is_stand_in=context.is_stand_in)
    with open(log, "wb") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=limit_s, check=False)
            reason = f"ended with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"took longer than {limit_s:.0f} s"
    yield Finding.verdict(f"unet-bench, {sizes}", not reason, f"{reason}: {last_line(log)}" if reason else "")
    if (folder / FILE_NAME).exists():
        yield from latency_findings(Results.read(folder))


def latency_findings(results: Results) -> Iterator[Finding]:
    """Tell of the GPU's peaks, of each contestant's median, and of what was skipped."""
    for one in results.of("peak"):
        if str(one.settings.get("device")).startswith("cuda"):
            subject = f"peak, {one.contestant} {one.settings.get('precision', '')}".strip()
            yield Finding.measured(subject, {one.unit: max(one.values)})
    for one in results.of("latency"):
        figures: dict[str, Scalar] = {
            "precision": one.settings["precision"],
            "size": f"{one.settings['width']}x{one.settings['height']}",
            "batch": one.settings["batch"],
            "median_ms": one.median,
        }
        figures |= {name: one.facts.get(name) for name in ("peak_share", "max_abs_error")}
        yield Finding.measured(f"latency, {one.contestant}", figures)
    for skipped in results.skipped:
        subject = f"{skipped.part}, {skipped.contestant}, {settings_text(skipped.settings)}"
        yield Finding.skipped(subject, skipped.reason)


def floor_findings(files: Mapping[Precision, Path], results: Results) -> Iterator[Finding]:
    """Time one image with CUDA graphs, and compare it with the floor that the card's measured peaks set."""
    for precision, arithmetic, width in FLOORS:
        rate, copy = peak(results, "matrix product", arithmetic), peak(results, "copy of memory", None)
        if precision not in files or not rate or not copy:
            continue
        model = Model.read(files[precision])
        image, session = model.images(SINGLE), model.open(cuda_graphs=True)
        times = interleave({"graph": partial(session.run, image)}, 4 * MIN_ROUNDS, budget_s=TIMING_S)
        session.close()
        floor, median = floor_ms(files["fp32"], rate, copy, width), float(np.median(times["graph"]))
        figures = {"median_ms": median, "floor_ms": floor, "times_floor": median / floor}
        yield Finding.measured(f"floor, {precision}", figures, "one image of 240x160 with CUDA graphs")


def floor_ms(path: Path, gflop_per_s: float, gb_per_s: float, width: float) -> float:
    """Return the least milliseconds of one image on a card with these peaks.

    Layers follow one another, and each takes as long as its operations or its bytes take, whichever is longer. Only
    convolutions count, since what is between them can be computed with them. `width` is the size of a value over that
    of float32.
    """
    from benchmarks.measuring.graph_cost import count_work

    work = count_work(path, *SINGLE)
    layers = [node for node in work.nodes if node.operator in ("Conv", "ConvTranspose")]
    seconds = sum(max(node.gflop / gflop_per_s, width * node.mb_moved / 1e3 / gb_per_s) for node in layers)
    return 1e3 * max(seconds, width * work.weights_mb / 1e3 / gb_per_s)


def peak(results: Results, contestant: str, precision: str | None) -> float | None:
    """Return the best value of a peak on the GPU; None if it was not measured."""
    found = [
        max(one.values)
        for one in results.of("peak")
        if one.contestant == contestant
        and one.settings.get("precision") == precision
        and str(one.settings.get("device")).startswith("cuda")
    ]
    return max(found, default=None)
