"""Training: `python -m unet_core.train DATA --out DIR`."""

import csv
import io
import json
import math
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from runtime.card import MAX_SIDE, InputSpec, ModelCard, OutputSpec, Training, UNetConfig
from runtime.console import Command, progress_hidden
from runtime.errors import CheckpointError, ConfigError, DataError, ModelError, UnetError
from runtime.files import make_folder, new_folder, write_text
from unet_core.checkpoint import Checkpoint, input_spec, load_checkpoint, producer, save_checkpoint, weights_sha256
from unet_core.data import EpochSampler, Pair, TrainingSet, batches_of, checked_pairs, fingerprint, quiet_worker
from unet_core.evaluate import checkpoint_predictions, default_workers, measure, torch_device
from unet_core.losses import LOSSES
from unet_core.metrics import BinaryMetrics
from unet_core.model import Segmenter, UNet
from unet_core.pictures import save_curves, save_panel

LAST = "my_checkpoint.pth.tar"
BEST = "model.pth"
PANELS = 8
"""Validation images that are drawn whenever an epoch is the best, evenly spread over the set."""

Panel = tuple[Pair, NDArray[np.uint8], NDArray[np.uint8]]
"""A pair, the predicted mask and the truth, both 0 or 1 [height, width]."""

BOUNDS = {"batch_size": (1, 2**20), "epochs": (1, 10**6), "workers": (0, 1024), "seed": (0, 2**63 - 1)}

FIXED_BY_A_RUN = ("height", "width", "widths", "loss", "seed", "class_name")
"""Settings that a resumed run cannot change: another value would make it another run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a run. Sizes are pixels; `height` and `width` must be multiples of 2 ** len(widths).

    Raises:
        ConfigError: a setting is out of its bounds.
    """

    data: str
    out: str
    lr: float = 1e-4
    batch_size: int = 16
    epochs: int = 3
    height: int = InputSpec.size[0]
    width: int = InputSpec.size[1]
    widths: tuple[int, ...] = UNetConfig.widths
    loss: str = "bce"
    class_name: str = OutputSpec.classes[0]
    workers: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1e3:
            raise ConfigError(f"--lr {self.lr}: expected a learning rate above 0 and below 1000")
        if self.loss not in LOSSES:
            raise ConfigError(f"--loss {self.loss}: expected one of {', '.join(LOSSES)}")
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise ConfigError(f"{flag}: expected {low} to {high}")
        try:
            stride = self.architecture.stride
        except ModelError as error:
            raise ConfigError(f"--widths {','.join(map(str, self.widths))}: {error}") from error
        for name in ("height", "width"):
            side = getattr(self, name)
            if side < 2 * stride or side % stride or side > MAX_SIDE:
                near = max(2, round(min(side, MAX_SIDE) / stride)) * stride
                raise ConfigError(
                    f"--{name} {side}: expected a multiple of {stride} for {len(self.widths)} widths, such as {near}"
                )

    @property
    def architecture(self) -> UNetConfig:
        """The network that these settings ask for."""
        return UNetConfig(widths=self.widths)


class Run:
    """One training run: `fit` goes through the epochs that are left and returns the path of the best weights."""

    def __init__(self, config: TrainConfig, resumed: Checkpoint | None = None) -> None:
        self.config = config
        self.folder = Path(config.out)
        self.device = torch_device(config.device)
        with new_folder(self.folder):
            self.pairs, self.validation_pairs = checked_pairs(config.data)
        self.fingerprint = fingerprint(self.pairs, self.validation_pairs)
        torch.manual_seed(config.seed)
        try:
            self.network = UNet(config.architecture)
        except RuntimeError as error:  # the allocator's
            raise ConfigError(
                f"--widths {config.widths}: too large for this machine's memory; use smaller ones"
            ) from error
        self.card = self._first_card()
        self.segmenter = Segmenter(self.network, self.card).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr)
        self.history: list[dict[str, float]] = []
        if resumed is not None:
            self._restore(resumed)

    def fit(self) -> Path:
        """Train, validate and save, epoch by epoch.

        Raises:
            UnetError: the loss is not finite, or a file cannot be written.
        """
        make_folder(self.folder / "saved_images")
        write_text(self.folder / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")
        loader, sampler = self._loader()
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            started = time.perf_counter()
            sampler.epoch = epoch
            loss = self._train_epoch(loader, epoch)
            metrics, panels = self._validate()
            row = {"epoch": epoch, "train_loss": loss, **metrics.summary(), "seconds": time.perf_counter() - started}
            best = row["pixel_dice"] > max((past["pixel_dice"] for past in self.history), default=-1.0)
            self.history.append(row)
            self._save(metrics, panels, best)
            click.echo(_summary(row, self.config.epochs, best))
        return self.folder / BEST

    def _first_card(self) -> ModelCard:
        return ModelCard(
            name=self.folder.resolve().name or "unet",
            producer=producer(),
            architecture=self.config.architecture,
            input=input_spec(self.config.architecture, (self.config.height, self.config.width)),
            output=OutputSpec(classes=(self.config.class_name,)),
            weights_sha256=weights_sha256(self.network.state_dict()),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.card.architecture != self.card.architecture:
            raise CheckpointError(f"{self.folder / LAST}: holds another network than its config; start a new run")
        if checkpoint.card.training is None or checkpoint.card.training.data != self.fingerprint:
            seen = checkpoint.card.training.data if checkpoint.card.training else "none"
            raise DataError(
                f"{self.config.data}: is not the data of the run in {self.folder} (found {self.fingerprint}, "
                f"expected {seen}); start a new run"
            )
        try:
            self.network.load_state_dict(dict(checkpoint.state_dict))
            self.optimizer.load_state_dict(checkpoint.extra["optimizer"])
            self.history = [dict(row) for row in checkpoint.extra["history"]]
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.folder / LAST}: is damaged ({error}); start a new run") from error
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr

    def _loader(self) -> tuple[DataLoader[Any], EpochSampler]:
        sampler = EpochSampler(len(self.pairs), self.config.seed)
        loader = DataLoader(
            TrainingSet(self.pairs, self.card.input, self.config.seed),
            self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            worker_init_fn=quiet_worker,
            persistent_workers=self.config.workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        return loader, sampler

    def _train_epoch(self, loader: DataLoader[Any], epoch: int) -> float:
        """One pass over the training images; returns the mean loss of an image."""
        loss_of = LOSSES[self.config.loss]
        self.segmenter.train()
        total, seen = 0.0, 0
        label = f"epoch {epoch}/{self.config.epochs}"
        with tqdm(total=len(self.pairs), desc=label, unit="image", disable=progress_hidden(), leave=False) as bar:
            for images, targets in batches_of(loader):
                images = images.to(self.device, non_blocking=True)
                targets = targets.to(self.device, non_blocking=True)
                loss = loss_of(self.network(self.segmenter.normalise(images)), targets)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                value = loss.item()
                if not math.isfinite(value):
                    raise UnetError(f"{label}: the loss became {value}; lower --lr (finished epochs are kept)")
                self.optimizer.step()
                total, seen = total + value * len(images), seen + len(images)
                bar.update(len(images))
                bar.set_postfix(loss=f"{total / seen:.4f}")
        return total / seen

    def _validate(self) -> tuple[BinaryMetrics, list[Panel]]:
        """Metrics over the validation images, and the masks of a few of them to draw."""
        chosen = self.validation_pairs[:: -(-len(self.validation_pairs) // PANELS)]
        panels: list[Panel] = []

        def keep(*panel: Any) -> None:
            if panel[0] in chosen:
                panels.append(panel)

        predictions = checkpoint_predictions(
            self.segmenter,
            self.card,
            self.validation_pairs,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
        )
        bar = tqdm(predictions, "validating", len(self.validation_pairs), disable=progress_hidden(), leave=False)
        return measure(iter(bar), self.card, keep), panels

    def _save(self, metrics: BinaryMetrics, panels: Sequence[Panel], best: bool) -> None:
        weights = self.network.state_dict()
        card = replace(
            self.card,
            weights_sha256=weights_sha256(weights),
            training=Training(epochs=len(self.history), data=self.fingerprint, metrics=metrics.summary()),
        )
        if best:  # before LAST, whose history says that it is there
            save_checkpoint(self.folder / BEST, weights, card)
            for panel in panels:
                save_panel(self.folder / "saved_images" / f"{panel[0].name}.png", *panel)
        save_checkpoint(
            self.folder / LAST,
            weights,
            card,
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            config=asdict(self.config),
        )
        write_text(self.folder / "metrics.csv", _table(self.history))
        save_curves(self.folder / "curves.png", self.history)


def _table(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _summary(row: Mapping[str, float], epochs: int, best: bool) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['accuracy']:.4f}  "
        f"image Dice {row['image_dice']:.4f}  pixel Dice {row['pixel_dice']:.4f}  IoU {row['iou']:.4f}  "
        f"{row['seconds']:.1f} s" + ("  best" if best else "")
    )


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train a U-Net as configured, and return the path of its best weights (`model.pth`).

    With `resume`, the run in `config.out` goes on until `config.epochs` have been trained.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError, OutputError: before the first epoch, where possible.
    """
    last = Path(config.out) / LAST
    if not resume and os.path.exists(last):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise DataError(f"{last}: this folder holds a run already; continue it with --resume or choose another --out")
    checkpoint = _last_checkpoint(last) if resume else None
    if checkpoint is not None:
        _refuse_changes(config, stored_config(checkpoint, last))
    run = Run(config, checkpoint)
    left = config.epochs - len(run.history)
    if left <= 0:
        raise ConfigError(f"{last}: {len(run.history)} epochs are trained already; ask for more with --epochs")
    click.echo(
        f"training {left} epoch{'s' * (left > 1)} on {run.device}: "
        f"{len(run.pairs)} images, {len(run.validation_pairs)} to validate, "
        f"{config.width}x{config.height}, {sum(weight.numel() for weight in run.network.parameters()):,} weights"
    )
    return run.fit()


def resumed_config(config: TrainConfig, given: set[str]) -> TrainConfig:
    """The settings of the run in `config.out`, with those in `given` taken from `config`.

    Raises:
        CheckpointError: there is no run to go on with.
    """
    last = Path(config.out) / LAST
    stored = stored_config(_last_checkpoint(last), last)
    kept = {name: value for name, value in stored.items() if name not in given | {"data", "out"}}
    return replace(config, **kept)


def _last_checkpoint(path: Path) -> Checkpoint:
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise CheckpointError(f"{path}: no epoch of this run is finished; start it without --resume")
    return load_checkpoint(path)


def stored_config(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to.

    Raises:
        CheckpointError: it belongs to none.
    """
    stored = checkpoint.extra.get("config")
    if not isinstance(stored, dict) or set(stored) != {field.name for field in fields(TrainConfig)}:
        raise CheckpointError(f"{path}: holds no run to go on with; start one without --resume")
    return stored | {"widths": tuple(stored["widths"])}


def _refuse_changes(config: TrainConfig, stored: Mapping[str, Any]) -> None:
    for name in FIXED_BY_A_RUN:
        if getattr(config, name) != stored[name]:
            flag = f"--{name.replace('_', '-')} {getattr(config, name)}"
            raise ConfigError(f"{flag}: the run in {config.out} has {stored[name]}; leave it out")


class Widths(click.ParamType[tuple[int, ...]]):
    """Channels of each level, from the top: "64,128,256,512"."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r}: expected numbers with commas, such as 64,128,256,512", param, ctx)
        return tuple(map(int, parts))


@click.command(cls=Command)
@click.argument("data", type=click.Path())
@click.option("--out", type=click.Path(), required=True, help="Folder of the run.")
@click.option("--lr", type=float, default=TrainConfig.lr, show_default=True, help="Learning rate of Adam.")
@click.option("--batch-size", type=int, default=TrainConfig.batch_size, show_default=True)
@click.option("--epochs", type=int, default=TrainConfig.epochs, show_default=True)
@click.option("--height", type=int, default=TrainConfig.height, show_default=True, help="Images are resized to this.")
@click.option("--width", type=int, default=TrainConfig.width, show_default=True)
@click.option(
    "--widths",
    type=Widths(),
    default=",".join(map(str, TrainConfig.widths)),
    show_default=True,
    help="Channels of each level.",
)
@click.option("--loss", type=click.Choice(list(LOSSES)), default=TrainConfig.loss, show_default=True)
@click.option("--class-name", default=TrainConfig.class_name, show_default=True, help="What the masks show.")
@click.option(
    "--workers",
    type=int,
    default=default_workers,
    show_default="CPU cores, at most 8",
    help="Processes that load images.",
)
@click.option("--seed", type=int, default=TrainConfig.seed, show_default=True)
@click.option("--device", default=TrainConfig.device, show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; settings not given are the run's own.")
@click.pass_context
def main(ctx: click.Context, /, resume: bool, **settings: Any) -> None:
    """Train a U-Net on DATA: train_images/, train_masks/, val_images/ and val_masks/, X.jpg with X_mask.gif."""
    config = TrainConfig(**settings)
    if resume:
        given = {name for name in settings if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE}
        config = resumed_config(config, given)
    try:
        best = train(config, resume=resume)
    except KeyboardInterrupt:
        if (Path(config.out) / LAST).exists():
            again = f"python -m unet_core.train {shlex.quote(config.data)} --out {shlex.quote(config.out)} --resume"
            click.echo(f"stopped; finished epochs are kept, go on with: {again}", err=True)
        else:
            click.echo("stopped before an epoch was finished; start again without --resume", err=True)
        raise
    training = load_checkpoint(best).card.training
    if training is not None and training.metrics["pixel_dice"] == 0:
        click.echo(
            "note: even the best weights find no foreground; train longer, or with a smaller --batch-size", err=True
        )
    click.echo(f"best weights: {best}    curves: {best.parent / 'curves.png'}    next: unet-export {best}")


if __name__ == "__main__":
    main()
