"""How fast training is, part by part: `python -m benchmarks.training DATA`.

*loading*: pictures per second from the decoded cache, without and with augmentation. *epochs*: the first look at the
pictures, which decodes and keeps them, against a later one, and against decoding each time. *step*: the trainer's step
against a bare PyTorch loop with the same network on the same pictures; on CUDA also mixed precision, memory layout and
compilation, each against plain fp32.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.environment import machine
from benchmarks.report import framed
from benchmarks.timing import Timing, busy_cores, disturbance, interleave, ratio
from runtime.console import Command, Size
from runtime.files import make_folder, write_text
from unet_core.cache import open_cache, pending, prepare
from unet_core.config import TrainConfig
from unet_core.data import EpochBatches, TrainingSet, quiet_worker
from unet_core.display import Display
from unet_core.model import UNet
from unet_core.pairs import find_pairs
from unet_core.records import Recipe, Records
from unet_core.run import Run
from unet_core.validation import default_workers, torch_device

ONE_PASS = 512
"""Pictures of one timed pass through the loader, at least."""

AUGMENTATIONS = ("off", "basic", "strong")

BARE = "bare PyTorch loop"
VARIANT = "on CUDA: "
PLAIN = f"{VARIANT}fp32 (TF32 convolutions)"

GPU_VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"amp": "off", "channels_last": False},
    f"{VARIANT}fp32, channels_last": {"amp": "off"},
    f"{VARIANT}fp16": {"amp": "fp16", "channels_last": False},
    f"{VARIANT}fp16, channels_last": {"amp": "fp16"},
    f"{VARIANT}bf16": {"amp": "bf16", "channels_last": False},
    f"{VARIANT}bf16, channels_last": {"amp": "bf16"},
    f"{VARIANT}fp32, compiled": {"amp": "off", "channels_last": False, "compile": True},
    f"{VARIANT}bf16, channels_last, compiled": {"amp": "bf16", "compile": True},
}


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """`loading` and `epochs` in pictures per second; `steps` in ms, `ratios` against `_reference`."""

    size: tuple[int, int]
    batch_size: int
    widths: tuple[int, ...]
    device: str
    loading: dict[str, float]
    epochs: dict[str, float]
    steps: dict[str, Timing]
    ratios: dict[str, tuple[float, float, float]]
    disturbance: str | None
    environment: dict[str, object]

    def table(self) -> str:
        """The report as Markdown."""
        height, width = self.size
        lines = [
            f"{width}x{height}, batches of {self.batch_size}, widths {','.join(map(str, self.widths))}, {self.device}.",
            "",
            f"| {'pictures':<42} | per second |",
            f"|{'-' * 44}|-----------:|",
        ]
        lines += [f"| {name:<42} | {value:10.0f} |" for name, value in (self.loading | self.epochs).items()]
        lines += [
            "",
            f"| {'step':<42} | median ms |    p90 | times as long as | ratio, 90 % interval    |",
            f"|{'-' * 44}|----------:|-------:|------------------|------------------------:|",
        ]
        for name, timing in self.steps.items():
            middle, low, high = self.ratios[name]
            shown = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            against = "the bare loop" if _reference(name) == BARE else "fp32 on CUDA"
            lines.append(f"| {name:<42} | {timing.median:9.1f} | {timing.p90:6.1f} | {against:<16} | {shown:>23} |")
        return framed([*lines, ""], self.disturbance, self.environment)


def measure_training(config: TrainConfig, rounds: int = 10) -> TrainingReport:
    """Measure all parts with the settings of a run; its `out` and `cache_dir` are not touched.

    Raises:
        DataError: the data cannot be used.
    """
    busy_before = busy_cores()
    device = torch_device(config.device)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            config, out=str(Path(folder) / "run"), cache_dir=str(Path(folder) / "cache"), tensorboard=False
        )
        records, epochs = _epochs(config)
        loading = _loading(records, config, rounds)
        steps = interleave(_contestants(records, config, device), rounds)
    return TrainingReport(
        size=(config.height, config.width),
        batch_size=config.batch_size,
        widths=config.widths,
        device=str(device),
        loading=loading,
        epochs=epochs,
        steps={name: Timing.of(values) for name, values in steps.items()},
        ratios={name: ratio(values, steps[_reference(name)]) for name, values in steps.items()},
        disturbance=disturbance(busy_before, busy_cores()),
        environment=machine() | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
    )


def _reference(name: str) -> str:
    """Variants on a GPU are compared with the trainer in plain fp32, the others with the bare loop."""
    return PLAIN if name.startswith(VARIANT) else BARE


def _epochs(config: TrainConfig) -> tuple[Records, dict[str, float]]:
    """Decoding all pictures once, an epoch from the cache, and one that decodes; once each, decoding being slow."""
    pairs = find_pairs(config.data, "train")
    recipe = Recipe(input=config.input, labels=config.labels, draft=True)
    records = Records(pairs, recipe)
    cache = open_cache(config.cache_dir, 1000.0)
    started = time.perf_counter()
    pending((records,), cache)
    prepare((records,), cache, lambda _: None, lambda _: None)
    first = time.perf_counter() - started
    workers = default_workers() if config.workers is None else config.workers
    times = {"before the first epoch: decoded and kept": first}
    sets = {"every epoch: from the cache": records, "every epoch: without a cache": Records(pairs, recipe)}
    for name, these in sets.items():
        dataset = TrainingSet(these, seed=0, augment="off")
        batches = _passes(_loader(dataset, config.batch_size, workers), 1)
        batches()  # starts the processes
        started = time.perf_counter()
        batches()
        times[f"{name}, {workers} workers"] = time.perf_counter() - started
    return records, {name: len(pairs) / seconds for name, seconds in times.items()}


def _loader(dataset: TrainingSet, batch_size: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, 0),
        num_workers=workers,
        worker_init_fn=quiet_worker,
        persistent_workers=workers > 0,
    )


def _loading(records: Records, config: TrainConfig, rounds: int) -> dict[str, float]:
    """Pictures per second through the loader: medians of passes in turns, its processes being started already."""
    passes = -(-ONE_PASS // len(records))
    contestants: dict[str, Callable[[], object]] = {}
    for augment in AUGMENTATIONS:
        for workers in dict.fromkeys((0, default_workers())):
            dataset = TrainingSet(records, seed=0, augment=augment)  # type: ignore[arg-type]
            loader = _loader(dataset, config.batch_size, workers)
            shown = "no augmentation" if augment == "off" else f"{augment} augmentation"
            contestants[f"from the cache, {shown}, {workers} workers"] = _passes(loader, passes)
    times = interleave(contestants, rounds)
    return {name: passes * len(records) / float(np.median(values)) * 1e3 for name, values in times.items()}


def _passes(loader: DataLoader[Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            for _ in loader:
                pass

    return run


def _contestants(records: Records, config: TrainConfig, device: torch.device) -> dict[str, Callable[[], object]]:
    """A bare loop and the trainer on the same batches; on CUDA the variants of the trainer too."""
    batches = [
        batch for batch, _ in zip(_loader(TrainingSet(records, seed=0), config.batch_size, 0), range(4), strict=False)
    ]
    contestants: dict[str, Callable[[], object]] = {
        BARE: _bare(batches, config, device),
        "trainer": _trainer(records, batches, config, device),
        "trainer, moving average": _trainer(records, batches, replace(config, ema=0.99), device),
    }
    if device.type == "cuda":
        for name, settings in GPU_VARIANTS.items():
            contestants[name] = _trainer(records, batches, replace(config, **settings), device)
    return contestants


def _bare(batches: list[tuple[Tensor, Tensor]], config: TrainConfig, device: torch.device) -> Callable[[], object]:
    """What one writes without any library: pictures that are floats already, forward, loss, backward, step."""
    network = UNet(config.architecture).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    ready = cycle([(images.permute(0, 3, 1, 2).float() / 255, labels[:, None].float()) for images, labels in batches])

    def step() -> None:
        images, targets = (part.to(device) for part in next(ready))
        loss = functional.binary_cross_entropy_with_logits(network(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # to show it, as every loop does

    return step


def _trainer(
    records: Records, batches: list[tuple[Tensor, Tensor]], config: TrainConfig, device: torch.device
) -> Callable[[], object]:
    run = Run(config, records, records, device=device, display=Display(quiet=True))
    run.network.train()
    ready: Iterator[tuple[Tensor, Tensor]] = cycle(batches)

    def step() -> None:
        run.position = 0
        run.step(ready, "")
        run.watch.look()

    return step


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--size", type=Size(), default="240x160", show_default=True, help="Pictures are brought to this.")
@click.option("--widths", default="16,32,64,128", show_default=True, help="Channels of each level.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(min=5), default=10, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for training.json and training.md.")
def main(
    data: Path, size: tuple[int, int], widths: str, batch_size: int, rounds: int, device: str, out: Path | None
) -> None:
    """Measure loading, decoding and training steps on the training pictures of DATA (masks of one class)."""
    if out is not None:
        make_folder(out)
    config = TrainConfig(
        data=str(data),
        out="unused",
        height=size[0],
        width=size[1],
        widths=tuple(int(width) for width in widths.split(",")),
        batch_size=batch_size,
        device=device,
        amp="off",
    )
    report = measure_training(config, rounds)
    click.echo(report.table())
    if out is not None:
        write_text(out / "training.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "training.md", report.table() + "\n")


if __name__ == "__main__":
    main()
