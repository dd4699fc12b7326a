"""PyTorch against ONNX Runtime on the same input, in turns: `python -m benchmarks.latency`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.report import framed
from benchmarks.timing import Timing, busy_cores, disturbance, interleave, ratio
from export.proof import network_run
from runtime.console import Command, Size
from runtime.errors import ProofError
from runtime.files import make_folder, write_text
from runtime.golden import TOLERANCE, synthetic_image
from runtime.predictor import Predictor
from runtime.providers import available_threads
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter

EAGER = "PyTorch eager, CPU"


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """`timings` in ms a batch by contestant; `ratio` PyTorch's time over ONNX Runtime's: median and 90 % interval."""

    shape: tuple[int, ...]
    threads: int
    rounds: int
    timings: dict[str, Timing]
    ratio: tuple[float, float, float]
    max_abs_error: float
    disturbance: str | None
    environment: dict[str, object]

    def table(self) -> str:
        """The report as Markdown."""
        batch, height, width, _ = self.shape
        lines = [
            f"Batch {batch}, {width}x{height}, {self.threads} threads, {self.rounds} rounds in turns; milliseconds.",
            "",
            f"| {'':<28} | median |    p90 |    p99 |",
            f"|{'-' * 30}|-------:|-------:|-------:|",
        ]
        for name, timing in self.timings.items():
            lines.append(f"| {name:<28} | {timing.median:6.1f} | {timing.p90:6.1f} | {timing.p99:6.1f} |")
        lines += [
            "",
            "PyTorch takes {:.2f} times as long (90 % interval {:.2f} to {:.2f}).".format(*self.ratio),
            f"Both answers agree within {self.max_abs_error:.1e}.",
        ]
        return framed(lines, self.disturbance, self.environment)


def measure_latency(
    model: Path,
    checkpoint: Path,
    *,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    rounds: int = 30,
    threads: int | None = None,
    device: str = "cpu",
) -> LatencyReport:
    """Time the exported graph and the PyTorch network it came from: uint8 images in, probabilities out.

    Raises:
        ProofError: the two do not give the same answer, so comparing their speed would mean nothing.
    """
    threads = threads or available_threads()
    busy_before = busy_cores()
    predictor = Predictor(model, device, threads)
    loaded = load_checkpoint(checkpoint)
    eager = network_run(Segmenter(loaded.network(), loaded.card).eval())
    channels = predictor.card.architecture.in_channels
    images = np.stack([synthetic_image(*(size or predictor.card.input.size), channels, seed) for seed in range(batch)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        error = float(np.abs(predictor.run(images) - eager(images)).max())
        if not error <= TOLERANCE[predictor.report.device.partition(":")[0]]:
            raise ProofError(f"{model} and {checkpoint}: their answers differ by {error:.2g}; are they the same model?")
        runtime_name = f"ONNX Runtime, {predictor.report.device}"
        contestants = {EAGER: lambda: eager(images), runtime_name: lambda: predictor.run(images)}
        times = interleave(contestants, rounds)
    finally:
        torch.set_num_threads(before)
    return LatencyReport(
        shape=images.shape,
        threads=threads,
        rounds=rounds,
        timings={name: Timing.of(values) for name, values in times.items()},
        ratio=ratio(times[EAGER], times[runtime_name]),
        max_abs_error=error,
        disturbance=disturbance(busy_before, busy_cores()),
        environment=environment(model),
    )


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What MODEL was exported from.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--size", type=Size(), help="Of the images.  [default: as trained]")
@click.option("--rounds", type=click.IntRange(min=5), default=30, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="For both.  [default: the cores this process may use]")
@click.option("--device", default="cpu", show_default=True, help="Of ONNX Runtime; PyTorch runs on the CPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for latency.json and latency.md.")
def main(
    model: Path,
    checkpoint: Path,
    batch: int,
    size: tuple[int, int] | None,
    rounds: int,
    threads: int | None,
    device: str,
    out: Path | None,
) -> None:
    """Time MODEL (.onnx) against its checkpoint in PyTorch, in turns."""
    if out is not None:
        make_folder(out)
    report = measure_latency(model, checkpoint, batch=batch, size=size, rounds=rounds, threads=threads, device=device)
    click.echo(report.table())
    if out is not None:
        write_text(out / "latency.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "latency.md", report.table() + "\n")


if __name__ == "__main__":
    main()
