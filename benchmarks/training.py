"""How fast training is, part by part: `python -m benchmarks.training DATA`.

*loading*: pictures per second from the decoded cache, without and with augmentation. *epochs*: the first look at the
pictures, which decodes and keeps them, against a later one, and against decoding each time. *step*: the trainer's step
against a bare PyTorch loop with the same network on the same pictures; on CUDA also mixed precision, memory layout and
compilation.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.measuring.environment import machine
from benchmarks.measuring.timing import busy_cores, disturbance, interleave, pinned
from benchmarks.reporting.report import markdown
from benchmarks.results import Measurement, Results, Settings, Skipped
from runtime.card import ModelCard
from runtime.commands.console import Command, Listed, Size
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_folder, write_text
from unet_core.config import TrainConfig
from unet_core.data.cache import open_cache, pending, prepare
from unet_core.data.dataset import EpochBatches, TrainingSet, quiet_worker
from unet_core.data.labels import IGNORED
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.predictions import default_workers, torch_device
from unet_core.model import UNet
from unet_core.reporting.progress import Display
from unet_core.training.trainer import Trainer

ONE_PASS = 512
"""Pictures of one timed pass through the loader, at least."""

AUGMENTATIONS = ("off", "basic", "strong")

BARE = "bare PyTorch loop"
VARIANT = "on CUDA: "

GPU_VARIANTS: dict[str, dict[str, Any]] = {
    f"{VARIANT}fp32 (TF32 convolutions)": {"amp": "off", "channels_last": False},
    f"{VARIANT}fp32, channels_last": {"amp": "off"},
    f"{VARIANT}fp16": {"amp": "fp16", "channels_last": False},
    f"{VARIANT}fp16, channels_last": {"amp": "fp16"},
    f"{VARIANT}bf16": {"amp": "bf16", "channels_last": False},
    f"{VARIANT}bf16, channels_last": {"amp": "bf16"},
    f"{VARIANT}fp32, compiled": {"amp": "off", "channels_last": False, "compile": True},
    f"{VARIANT}bf16, channels_last, compiled": {"amp": "bf16", "compile": True},
}


def measure(
    config: TrainConfig, *, threads: int, rounds: int = 10, display: Display | None = None
) -> list[Measurement | Skipped]:
    """Measure all parts with the settings of a run; its `out` and `cache_dir` are not touched.

    Images per second of loading, and of epochs, once each; milliseconds of a step.

    Args:
        config: of the run; `config_like` makes one from a model's card.
        threads: of each process that computes; one that loads takes one.
        rounds: of loading and of the steps.
        display: where it is said what is being measured; nothing is drawn while a clock runs.

    Raises:
        DataError: the data cannot be used.
    """
    display = display or Display(quiet=True)
    device = torch_device(config.device)
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        config = replace(
            config,
            out=str(Path(folder) / "run"),
            cache_dir=str(Path(folder) / "cache"),
            tensorboard=False,
            amp="off",  # as the bare loop; on CUDA mixed precisions are contestants
        )
        display.note("training: an epoch that decodes, and epochs from the cache")
        records, epochs = _epochs(config)
        display.note(f"training: {rounds} rounds of loading in turns")
        loading = _loading(records, config, rounds)
        display.note(f"training: {rounds} rounds of steps in turns")
        steps = interleave(_contestants(records, config, device), rounds)
    settings = _settings(config, str(device), threads)
    found: list[Measurement | Skipped] = [
        _measurement(name, settings, "images/s", values, group="loading") for name, values in loading.items()
    ]
    found += [_measurement(name, settings, "images/s", np.array([speed])) for name, speed in epochs.items()]
    found += [_measurement(name, settings, "ms", values, group="steps") for name, values in steps.items()]
    if device.type != "cuda":
        reason = "need a CUDA device, by --device cuda"
        found.append(Skipped(part="training", contestant=f"{VARIANT}all", settings=settings, reason=reason))
    return found


def config_like(card: ModelCard, data: Path, **settings: Any) -> TrainConfig:
    """The settings of a run on `data` that trains a network like the card's; others as given, or their defaults.

    Raises:
        ConfigError: no run has such settings, as with a size that is no multiple of the stride.
    """
    height, width = card.input.size
    of_card: dict[str, Any] = {
        "classes": card.output.classes,
        "channels": card.input.channels,
        "height": height,
        "width": width,
        "fit": card.input.fit,
        "widths": card.architecture.widths,
        "up": card.architecture.up,
    }
    return TrainConfig(**{"data": str(data), "out": "unused", **of_card, **settings})


def _settings(config: TrainConfig, device: str, threads: int) -> Settings:
    return {
        "batch": config.batch_size,
        "height": config.height,
        "width": config.width,
        "widths": ",".join(map(str, config.widths)),
        "device": device,
        "threads": threads,
    }


def _measurement(name: str, settings: Settings, unit: str, values: NDArray[np.float64], group: str = "") -> Measurement:
    return Measurement(
        part="training",
        contestant=name,
        settings=settings,
        unit=unit,
        values=tuple(values.tolist()),
        group=group,
    )


def _epochs(config: TrainConfig) -> tuple[Records, dict[str, float]]:
    """Decoding all pictures once, an epoch from the cache, and one that decodes; once each, decoding being slow."""
    pairs = find_pairs(config.data, "train")
    decoder = SampleDecoder(input=config.input, labels=config.labels, draft=True)
    records = Records(pairs, decoder)
    cache = open_cache(config.cache_dir, 1000.0)
    started = time.perf_counter()
    pending((records,), cache)
    prepare((records,), cache, lambda _: None, lambda _: None)
    first = time.perf_counter() - started
    workers = default_workers() if config.workers is None else config.workers
    times = {"before the first epoch: decoded and kept": first}
    sets = {"every epoch: from the cache": records, "every epoch: without a cache": Records(pairs, decoder)}
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


def _loading(records: Records, config: TrainConfig, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Pictures per second through the loader [rounds]: passes in turns, its processes being started already."""
    passes = -(-ONE_PASS // len(records))
    contestants: dict[str, Callable[[], object]] = {}
    for augment in AUGMENTATIONS:
        for workers in dict.fromkeys((0, default_workers())):
            dataset = TrainingSet(records, seed=0, augment=augment)  # type: ignore[arg-type]
            loader = _loader(dataset, config.batch_size, workers)
            shown = "no augmentation" if augment == "off" else f"{augment} augmentation"
            contestants[f"from the cache, {shown}, {workers} workers"] = _passes(loader, passes)
    times = interleave(contestants, rounds)
    return {name: 1e3 * passes * len(records) / values for name, values in times.items()}


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
    ready = cycle([(images.permute(0, 3, 1, 2).float() / 255, labels) for images, labels in batches])

    def step() -> None:
        images, labels = (part.to(device) for part in next(ready))
        loss = _loss(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # to show it, as every loop does

    return step


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [batch, classes, height, width] and uint8 labels [batch, height, width]."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits, labels[:, None].float())
    return functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED)


def _trainer(
    records: Records, batches: list[tuple[Tensor, Tensor]], config: TrainConfig, device: torch.device
) -> Callable[[], object]:
    run = Trainer(config, records, records, device=device, display=Display(quiet=True))
    run.network.train()
    ready: Iterator[tuple[Tensor, Tensor]] = cycle(batches)

    def step() -> None:
        run.position = 0
        run.step(ready, "")
        run.monitor.look()

    return step


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--size", type=Size(), default="240x160", show_default=True, help="Pictures are brought to this.")
@click.option("--widths", type=Listed(int), default=(16, 32, 64, 128), help="Channels of each level.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(min=5), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of PyTorch.  [default: the cores this process may use]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json and training.md.")
def main(
    data: Path,
    size: tuple[int, int],
    widths: tuple[int, ...],
    batch_size: int,
    rounds: int,
    threads: int | None,
    device: str,
    out: Path | None,
) -> None:
    """Measure loading, decoding and training steps on the training pictures of DATA (masks of one class)."""
    if out is not None:
        make_folder(out)
    config = TrainConfig(
        data=str(data),
        out="unused",
        height=size[0],
        width=size[1],
        widths=widths,
        batch_size=batch_size,
        device=device,
    )
    threads = threads or available_threads()
    busy_before = busy_cores()
    found = measure(config, threads=threads, rounds=rounds, display=Display())
    results = Results(
        environment=machine(),
        method={"rounds": rounds, "threads": threads},
        disturbance=disturbance(busy_before, busy_cores()),
        measurements=tuple(one for one in found if isinstance(one, Measurement)),
        skipped=tuple(one for one in found if isinstance(one, Skipped)),
    )
    click.echo(markdown(results))
    if out is not None:
        results.write(out)
        write_text(out / "training.md", markdown(results))


if __name__ == "__main__":
    main()
