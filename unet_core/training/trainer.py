"""One training run: epochs of steps and a validation after each, saved so that it can stop and go on anywhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runtime.card import ModelCard, Training
from runtime.errors import CheckpointError, ConfigError, DataError, NotFiniteError, UnetError
from unet_core.checkpoint import Checkpoint, initialise, producer, save_checkpoint, weights_sha256
from unet_core.config import TrainConfig
from unet_core.data.dataset import EpochBatches, TrainingSet, batches_of, quiet_worker
from unet_core.data.pairs import fingerprint
from unet_core.data.records import Records
from unet_core.evaluation.metrics import Metrics
from unet_core.evaluation.predictions import Worst, checkpoint_predictions, default_workers, measure
from unet_core.losses import make_loss
from unet_core.model import Segmenter, UNet
from unet_core.reporting.progress import Display
from unet_core.reporting.tables import card_figures, epoch_line, one_sided
from unet_core.reporting.tensorboard import TensorBoardWriter
from unet_core.training.distributed import Processes
from unet_core.training.interrupts import InterruptHandler
from unet_core.training.loss_monitor import LossMonitor
from unet_core.training.optim import ModelEMA, Precision, epochs_without_progress, is_best, lr_factor, make_optimizer
from unet_core.training.resume_state import random_state, set_random_state, with_settings
from unet_core.training.run_directory import PANELS, RunFolder

SAVE = 1
"""What a process says to the others when it is time to save; larger numbers are signals."""


class Trainer:
    """One training run: `fit` goes through what is left and returns the path of the best weights."""

    def __init__(
        self,
        config: TrainConfig,
        train: Records,
        val: Records,
        *,
        processes: Processes | None = None,
        display: Display | None = None,
        device: torch.device | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        self.config, self.train, self.val = config, train, val
        self.processes, self.display = processes or Processes(), display or Display()
        self.device = device or torch.device("cpu")
        self.folder = RunFolder(Path(config.out), config)
        self.fingerprint = fingerprint(train.pairs, val.pairs)
        self.workers = default_workers() if config.workers is None else config.workers
        if config.batch_size < self.processes.count:
            raise ConfigError(f"--batch-size {config.batch_size}: expected {self.processes.count}, one per process")
        self._build()
        self.history: list[dict[str, float]] = []
        self.position, self.watch, self.seconds = 0, LossMonitor(), 0.0
        self.one_sided: str | None = None  # what the best weights never answer, or always
        self.stop = InterruptHandler(speaks=self.processes.first)
        if resumed is not None:
            self._restore(resumed)
        elif config.init_from:
            note = initialise(self.network, config.init_from, config.classes)
            if note:
                self.display.note(note)
        # After the weights are what they will be: the average starts from them.
        self.average = ModelEMA(self.network, config.ema) if config.ema else None
        if resumed is not None and self.average is not None:
            self.average.network.load_state_dict(dict(resumed.state_dict))
            self.average.steps = int(resumed.extra["average_steps"])
        self.segmenter = Segmenter(self.average.network if self.average else self.network, self.card).to(self.device)

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        try:
            self.network = UNet(config.architecture).to(self.device)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise ConfigError(
                f"--widths {','.join(map(str, config.widths))}: too large for this machine's memory; use smaller ones"
            ) from error
        if self.device.type == "cuda" and config.fit != "native":
            torch.backends.cudnn.benchmark = True  # sizes repeat, so the search for the fastest kernels pays
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.card = ModelCard(
            name=self.folder.path.resolve().name or "unet",
            producer=producer(),
            architecture=config.architecture,
            input=config.input,
            output=config.output,
            weights_sha256=weights_sha256(self.network.state_dict()),
        )
        self.optimizer = make_optimizer(self.network, config)
        self.precision = Precision(config.amp, self.device)
        self.loss = make_loss(config.loss_name, len(config.classes), config.boundary_weight)
        self.batches = EpochBatches(
            len(self.train), config.batch_size, config.seed, self.processes.rank, self.processes.count
        )

    @cached_property
    def stepped(self) -> Any:
        """The network as the steps call it: compiled, and with gradients averaged over the processes."""
        network: Any = self.processes.parallel(self.network, self.device)
        return torch.compile(network) if self.config.compile else network

    def _restore(self, checkpoint: Checkpoint) -> None:
        last, extra = self.folder.last, checkpoint.extra
        if checkpoint.card.architecture != self.card.architecture:
            raise CheckpointError(f"{last}: holds another network than its config; start a new run")
        try:
            if extra["data"] != self.fingerprint:
                changes = self.folder.changes(self.train.pairs, self.val.pairs)
                changes = changes or f"found {self.fingerprint}, expected {extra['data']}"
                raise DataError(
                    f"{self.config.data}: is not the data of the run in {self.folder.path} ({changes}); start a new run"
                )
            self.network.load_state_dict(extra["network"] or dict(checkpoint.state_dict))
            self.optimizer.load_state_dict(with_settings(extra["optimizer"], self.optimizer))
            self.precision.restore(extra["precision"])
            self.history = [dict(row) for row in extra["history"]]
            self.position, self.seconds = int(extra["position"]), float(extra["seconds"])
            self.one_sided = extra["one_sided"]
            self.watch = LossMonitor.of_process(self.processes.rank, self.processes.count, extra["losses"])
            set_random_state(extra["random"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{last}: is damaged ({error}); start a new run") from error

    @property
    def epoch(self) -> int:
        """The epoch that is being trained, from 1."""
        return len(self.history) + 1

    @property
    def ended(self) -> bool:
        """All epochs are trained, or nothing got better for long enough."""
        waited = epochs_without_progress(self.history)
        return len(self.history) >= self.config.epochs or 0 < self.config.patience <= waited

    def fit(self) -> Path:
        """Train, validate and save, epoch by epoch.

        Raises:
            NotFiniteError: the loss, a gradient or a weight is infinite or NaN.
            UnetError: a file cannot be read or written, or a process that loads images was killed.
            KeyboardInterrupt, SystemExit: a signal came (see `InterruptHandler`); everything is saved.
        """
        loader = self._loader()
        try:
            with self.processes.raise_on_all_ranks():
                if self.processes.first:
                    self.folder.begin(self.train.pairs, self.val.pairs)
            board = TensorBoardWriter(self.folder.tensorboard if self.processes.first else None, self.epoch)
            with self.stop.listening(), board as self.board:
                while not self.ended:
                    self._fit_epoch(loader)
        except NotFiniteError as error:
            remedy = error.remedy + ("" if str(self.precision) == "fp32" else ", or with --amp off")
            raise NotFiniteError(f"{error}; {self.folder.what_is_kept} with {remedy}") from error
        except UnetError as error:
            raise type(error)(f"{error}; {self.folder.what_is_kept}") from error
        return self.folder.best

    def _loader(self) -> DataLoader[Any]:
        dataset = TrainingSet(
            self.train,
            seed=self.config.seed,
            augment=self.config.augment,
            foreground_share=self.config.foreground_share,
        )
        return DataLoader(
            dataset,
            batch_sampler=self.batches,
            num_workers=self.workers,
            worker_init_fn=quiet_worker,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # or it would draw from the run's own
            pin_memory=self.device.type == "cuda",
        )

    def _fit_epoch(self, loader: DataLoader[Any]) -> None:
        if self.position < len(self.train):
            self._train_epoch(loader)
        trained = time.perf_counter()
        metrics, worst = self._validate()
        totals = [sum(parts) for parts in zip(*self.processes.gather((self.watch.total, self.watch.seen)), strict=True)]
        validated = time.perf_counter() - trained
        row = {
            "epoch": self.epoch,
            "train_loss": totals[0] / max(totals[1], 1),
            **metrics.summary(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_seconds": self.seconds,
            "seconds": self.seconds + validated,
        }
        if self.precision.scaler.is_enabled():
            row["skipped_steps"] = self.precision.skipped - sum(past.get("skipped_steps", 0) for past in self.history)
        self.history.append(row)
        if is_best(self.history):
            self.one_sided = one_sided(metrics)
        self.position, self.watch, self.seconds = 0, LossMonitor(), 0.0
        self._write_epoch(row, worst)
        self.display.line(epoch_line(row, self.config.epochs, is_best(self.history)))

    def _train_epoch(self, loader: DataLoader[Any]) -> None:
        """The rest of an epoch, from `position` on."""
        started = saved = time.perf_counter()
        before = self.seconds
        self.batches.epoch, self.batches.position = self.epoch, self.position
        self.network.train()
        label = f"epoch {self.epoch}/{self.config.epochs}"
        batches = batches_of(loader)
        with self.display.bar(label, len(self.train), done=self.position) as advance:
            while self.position < len(self.train):
                done = self._step_together(batches, label)
                now = time.perf_counter()
                self.seconds = before + now - started
                advance(done, self._figures())
                due = self.config.save_minutes and now - saved > 60 * self.config.save_minutes
                signal = self.stop.signal
                asked = self.processes.largest(SAVE + signal if signal else SAVE if due else 0)
                if asked:
                    self._check()
                    self._save()
                    saved = time.perf_counter()
                if asked > SAVE:
                    self._leave(asked - SAVE)
        self._check()

    def _figures(self) -> str:
        loss = f"  loss {self.watch.mean:.4f}" if self.watch.seen else ""
        past = f"  Dice {self.history[-1]['pixel_dice']:.4f}" if self.history else ""
        share = self.epoch - 1 + self.position / len(self.train)
        spent = sum(row["seconds"] for row in self.history) + self.seconds
        left = timedelta(seconds=round(spent / share * (self.config.epochs - share)))
        return f"ends in {left}{loss}{past}"

    def step(self, batches: Iterator[tuple[Tensor, Tensor]], label: str) -> int:
        """One step of the optimizer, over one batch or `accumulate` of them; returns the number of images."""
        config, start = self.config, self.position
        size = min(config.batch_size * config.accumulate, len(self.train) - start)
        while self.position < start + size:
            own, whole = self.batches.share(self.position)
            last = self.position + whole == start + size
            images, labels = next(batches)
            self._backward(images, labels, own * self.processes.count / size, last, own, label)
            self.position += whole
        middle = self.epoch - 1 + (start + size / 2) / len(self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(config, middle, self.history)
        stepped = self.precision.step(self.optimizer, self.network, config.clip_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None and stepped:
            self.average.update()
        return size

    def _backward(self, images: Tensor, labels: Tensor, weight: float, last: bool, own: int, label: str) -> None:
        """Add the gradients of one batch, `weight` being its share of the step times the number of processes."""
        several = self.processes.count > 1
        with self.stepped.no_sync() if several and not last and not self.config.compile else nullcontext():
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            planes = self.segmenter.normalise(images)
            if not self.config.channels_last:
                planes = planes.contiguous()
            with self.precision.context():
                logits = self.stepped(planes)
            loss = self.loss(logits.float(), labels)
            if own:
                self.watch.add(loss, own, partial(self._where, label, self.position))
            self.precision.backward(loss if weight == 1.0 else loss * weight)

    def _where(self, label: str, position: int) -> str:
        """Epoch and file names of this process's part of the batch at a position."""
        batch = self.batches.order()[position : position + self.config.batch_size]
        names = [self.train.pairs[index].image.name for index in batch[self.processes.rank :: self.processes.count]]
        return f"{label}, {', '.join(names)}"

    def _validate(self) -> tuple[Metrics, Worst]:
        """Metrics over the validation images, each seen by one process, and the worst of them to draw."""
        self.processes.share(self.segmenter.network)
        indices = range(self.processes.rank, len(self.val), self.processes.count)
        worst = Worst(PANELS)
        predictions = checkpoint_predictions(
            self.segmenter,
            self.card,
            self.val,
            indices,
            batch_size=max(1, self.config.batch_size // self.processes.count),
            workers=self.workers,
        )
        shown = self._until_stopped(self.display.through(predictions, "validating", len(indices)))
        metrics = measure(shown, self.card, worst.add)
        if asked := self.processes.largest(self.stop.signal):
            self._save()
            self._leave(asked)
        for state in self.processes.gather((self.processes.rank, metrics.state(), worst)):
            if state[0] != self.processes.rank:
                metrics.merge(Metrics.from_state(self.card.output.classes, state[1]))
                worst.merge(state[2])
        return metrics, worst

    def _until_stopped(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            if self.stop.signal:
                return
            yield item

    def _check(self) -> None:
        """Before weights are saved or validated: an infinite gradient of a finite loss shows in the weights only.

        Raises:
            NotFiniteError: the loss or a weight is infinite or NaN.
        """
        with self.processes.raise_on_all_ranks():
            self.watch.look()
            if not all(bool(torch.isfinite(value).all()) for value in self.network.state_dict().values()):
                raise NotFiniteError(f"epoch {self.epoch}: the weights became infinite or NaN")

    def _step_together(self, batches: Iterator[tuple[Tensor, Tensor]], label: str) -> int:
        """A step; what is not finite in one process ends all of them, which would wait for it."""
        failure: NotFiniteError | None = None
        done = 0
        try:
            done = self.step(batches, label)
            self.watch.check()
        except NotFiniteError as error:
            failure = error
        if self.processes.largest(int(failure is not None)):  # a number is sooner told than an object
            self.processes.agree(failure)
        return done

    def _leave(self, number: int) -> None:
        """End all processes as the signal asks that one of them got."""
        self.processes.wait()
        self.stop.signal = number
        self.stop.leave()

    def _write_epoch(self, row: Mapping[str, float], worst: Worst) -> None:
        """The best weights first: the checkpoint's history says that they are there."""
        best = is_best(self.history)
        losses = self.processes.gather((self.watch.total, self.watch.seen))
        with self.processes.raise_on_all_ranks():
            if not self.processes.first:
                return
            if best:
                save_checkpoint(self.folder.best, self.segmenter.network.state_dict(), self._trained_card())
            self._save_last(losses)
            self.folder.write_history(self.history)
            self.board.scalars(row)
            for place, drawn in enumerate(self.folder.draw(worst, self.val, len(self.history)) if best else (), 1):
                self.board.picture(f"worst/{place:02}", drawn, len(self.history))

    def _trained_card(self) -> ModelCard:
        return replace(
            self.card,
            weights_sha256=weights_sha256(self.segmenter.network.state_dict()),
            training=Training(
                epochs=len(self.history),
                data=self.fingerprint,
                metrics=card_figures(self.history[-1]) if self.history else {},
            ),
        )

    def _save(self) -> None:
        """Save within an epoch."""
        losses = self.processes.gather((self.watch.total, self.watch.seen))
        with self.processes.raise_on_all_ranks():
            if self.processes.first:
                self._save_last(losses)

    def _save_last(self, losses: list[tuple[float, int]]) -> None:
        """Everything that the run needs to go on exactly from here; `losses` are those of all processes."""
        save_checkpoint(
            self.folder.last,
            self.segmenter.network.state_dict(),
            self._trained_card(),
            network=self.network.state_dict() if self.average is not None else None,
            average_steps=self.average.steps if self.average is not None else 0,
            optimizer=self.optimizer.state_dict(),
            precision=self.precision.state(),
            history=self.history,
            position=self.position,
            seconds=self.seconds,
            one_sided=self.one_sided,
            losses=losses,
            random=random_state(),
            data=self.fingerprint,
            config=asdict(self.config),
        )
