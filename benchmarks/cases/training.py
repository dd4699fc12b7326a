"""Speed of training: loading images, whole epochs, and the trainer's step against a bare PyTorch loop.

*loading*: images per second from the decoded cache, without and with augmentation. *epochs*: the first pass over the
images, which decodes and caches them, against a later one, and against decoding each time. *step*: the trainer's step
against a bare PyTorch loop with the same network on the same images; on CUDA also mixed precision, memory layout and
compilation.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.measuring.rounds import interleave, is_trial
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.card import ModelCard, UNetConfig
from runtime.errors import ConfigError
from unet_core.config import TrainConfig
from unet_core.data.cache import check_and_cache, open_cache, pending
from unet_core.data.dataset import EpochBatches, TrainingSet
from unet_core.data.labels import IGNORED
from unet_core.data.pairs import find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.data.workers import default_workers, quiet_worker
from unet_core.evaluation.torch_device import torch_device
from unet_core.model import UNet
from unet_core.reporting.progress import Display
from unet_core.training.trainer import Trainer

PART = "training"

IMAGES_TIMED = 512
"""Least number of images of one timed pass through the loader."""

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

Batch = tuple[Tensor, Tensor]
"""Images uint8 [batch, height, width, channels], labels uint8 [batch, height, width]."""


def measure(
    config: TrainConfig, *, threads: int, rounds: int = 10, display: Display | None = None
) -> list[Measurement | Skipped]:
    """Measure loading and whole epochs (once each) in images per second, and steps in milliseconds.

    Args:
        config: settings of the training, for example from `config_like`; its `out`, `cache_dir` and `amp` are
            replaced.
        threads: threads of each process that computes; a process that loads takes one.
        rounds: rounds of loading and of the steps.
        display: shows what is being measured; nothing is drawn while times are taken.

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
            amp="off",  # as in the bare loop; on CUDA mixed precisions are contestants
        )
        display.note("training: an epoch that decodes, and epochs from the cache")
        records, epochs = time_epochs(config)
        display.note(f"training: {rounds} rounds of loading, contestants alternating")
        loading = time_loading(records, config, rounds)
        display.note(f"training: {rounds} rounds of steps, contestants alternating")
        steps = interleave(step_contestants(records, config, device), rounds)
    settings: Settings = {
        "batch": config.batch_size,
        "height": config.height,
        "width": config.width,
        "widths": ",".join(map(str, config.widths)),
        "device": str(device),
        "threads": threads,
    }
    found: list[Measurement | Skipped] = [
        *measurements_of(loading, part=PART, settings=settings, unit="images/s", group="loading"),
        *measurements_of(epochs, part=PART, settings=settings, unit="images/s"),
        *measurements_of(steps, part=PART, settings=settings, unit="ms", group="steps"),
    ]
    if device.type != "cuda":
        reason = "need a CUDA device, by --device cuda"
        found.append(Skipped(part=PART, contestant=f"{VARIANT}all", settings=settings, reason=reason))
    return found


def config_like(card: ModelCard, data: Path, **settings: Any) -> TrainConfig:
    """Make the settings of a training on `data` whose network is like the card's; others as given, or their defaults.

    Raises:
        ConfigError: no training has such settings, for example a size that is no multiple of the stride.
    """
    if not isinstance(card.architecture, UNetConfig):
        raise ConfigError(f"training: takes U-Nets of this library, and the model is a {card.architecture.summary}")
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


def time_epochs(config: TrainConfig) -> tuple[Records, dict[str, NDArray[np.float64]]]:
    """Time decoding all images, an epoch from the cache and an epoch that decodes, once each since decoding is slow.

    Returns:
        The cached records, and images per second [1] by contestant.
    """
    pairs = find_pairs(config.data, "train")
    decoder = SampleDecoder(input=config.input, labels=config.labels, draft=True)
    records = Records(pairs, decoder)
    cache = open_cache(config.cache_dir, 1000.0)
    started = time.perf_counter()
    pending((records,), cache)
    check_and_cache((records,), cache, lambda _: None, lambda _: None)
    times = {"before the first epoch: decoded and kept": time.perf_counter() - started}
    workers = default_workers() if config.workers is None else config.workers
    sources = {"every epoch: from the cache": records, "every epoch: without a cache": Records(pairs, decoder)}
    for name, source in sources.items():
        loader = loader_of(TrainingSet(source, seed=0, augment="off"), config.batch_size, workers)
        exhaust(loader, 1)  # starts the processes
        started = time.perf_counter()
        exhaust(loader, 1)
        times[f"{name}, {workers} workers"] = time.perf_counter() - started
    return records, {name: np.array([len(pairs) / seconds]) for name, seconds in times.items()}


def time_loading(records: Records, config: TrainConfig, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Time passes through the loader, whose processes run already; returns images per second [rounds]."""
    passes = 1 if is_trial() else -(-IMAGES_TIMED // len(records))
    contestants: dict[str, Callable[[], object]] = {}
    for augment in AUGMENTATIONS:
        for workers in dict.fromkeys((0, default_workers())):
            dataset = TrainingSet(records, seed=0, augment=augment)  # type: ignore[arg-type]
            name = "no augmentation" if augment == "off" else f"{augment} augmentation"
            loader = loader_of(dataset, config.batch_size, workers)
            contestants[f"from the cache, {name}, {workers} workers"] = partial(exhaust, loader, passes)
    times = interleave(contestants, rounds)
    return {name: 1e3 * passes * len(records) / values for name, values in times.items()}


def loader_of(dataset: TrainingSet, batch_size: int, workers: int) -> DataLoader[Any]:
    """Make the loader of one epoch's batches, with the trainer's settings."""
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, 0),
        num_workers=workers,
        worker_init_fn=quiet_worker,
        persistent_workers=workers > 0,
    )


def exhaust(loader: DataLoader[Any], passes: int) -> None:
    """Load all batches, several times over."""
    for _ in range(passes):
        for _ in loader:
            pass


def step_contestants(records: Records, config: TrainConfig, device: torch.device) -> dict[str, Callable[[], object]]:
    """Make the steps of a bare loop and of the trainer on the same four batches; on CUDA of all variants too."""
    loader = loader_of(TrainingSet(records, seed=0), config.batch_size, 0)
    batches = [batch for batch, _ in zip(loader, range(4), strict=False)]
    contestants: dict[str, Callable[[], object]] = {
        BARE: bare_step(batches, config, device),
        "trainer": trainer_step(records, batches, config, device),
        "trainer, moving average": trainer_step(records, batches, replace(config, ema=0.99), device),
    }
    if device.type == "cuda":
        for name, settings in GPU_VARIANTS.items():
            contestants[name] = trainer_step(records, batches, replace(config, **settings), device)
    return contestants


def bare_step(batches: list[Batch], config: TrainConfig, device: torch.device) -> Callable[[], object]:
    """Make a step as one writes it without a library, on images that are floats already: forward, loss, backward."""
    assert isinstance(config.architecture, UNetConfig)  # `settings_for` takes no other network
    network = UNet(config.architecture).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    ready = cycle([(images.permute(0, 3, 1, 2).float() / 255, labels) for images, labels in batches])

    def step() -> None:
        images, labels = (part.to(device) for part in next(ready))
        logits = network(images)  # [batch, classes, height, width]
        if logits.shape[1] == 1:
            loss = functional.binary_cross_entropy_with_logits(logits, labels[:, None].float())
        else:
            loss = functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # to show it, as every loop does

    return step


def trainer_step(
    records: Records, batches: list[Batch], config: TrainConfig, device: torch.device
) -> Callable[[], object]:
    """Make a step of the trainer, which looks at its losses after each of them."""
    trainer = Trainer(config, records, records, device=device, display=Display(quiet=True))
    trainer.network.train()
    ready: Iterator[Batch] = cycle(batches)

    def step() -> None:
        trainer.position = 0
        trainer.step(ready, "")
        trainer.monitor.look()

    return step
