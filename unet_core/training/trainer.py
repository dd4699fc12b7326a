"""Trainer: epochs of steps, each with a validation at its end, saved so that a run can stop and resume anywhere."""

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runtime.card import ModelCard, Training
from runtime.errors import CheckpointError, ConfigError, DataError, NotFiniteError, UnetError
from unet_core.checkpoint import Checkpoint, initialise, producer, save_checkpoint, weights_sha256
from unet_core.config import TrainConfig
from unet_core.data.dataset import EpochBatches, TrainingSet, collate_arrays
from unet_core.data.pairs import fingerprint
from unet_core.data.records import Records
from unet_core.data.workers import batches_of, default_workers, quiet_worker, too_large_for_shared_memory
from unet_core.evaluation.best_epoch import VALIDATION_LOSS, epochs_without_progress, is_best
from unet_core.evaluation.metrics import Metrics, mean
from unet_core.evaluation.predictions import Prediction, checkpoint_predictions, compute_metrics
from unet_core.evaluation.worst_images import Worst
from unet_core.losses import loss_of_answer, make_loss
from unet_core.model import Segmenter, UNet
from unet_core.reporting.panels import PANELS
from unet_core.reporting.progress import Display, Forecast, epoch_line, progress_text
from unet_core.reporting.tables import card_figures, one_sided
from unet_core.reporting.tensorboard import TensorBoardWriter
from unet_core.training.auto_loss import choose_loss, start_from_share
from unet_core.training.class_weights import weights_line, weights_of_classes
from unet_core.training.distributed import Processes
from unet_core.training.interrupts import InterruptHandler
from unet_core.training.loss_monitor import LossMonitor, LossTrend
from unet_core.training.mixed_precision import MixedPrecision
from unet_core.training.moving_average import ModelEMA
from unet_core.training.optim import encoder_weights, lr_factor, make_optimizer, restore_optimizer, set_rate
from unet_core.training.run_directory import RunFolder
from unet_core.training.run_state import Expected, check_data, check_loss, check_run_state
from unet_core.training.starting_network import StartingNetwork, require_batches, starting_network

SAVE = 1
"""Message between processes that it is time to save; larger numbers are signals."""


class Trainer:
    """A training run: `fit` trains the epochs that are left and returns the path of the best weights.

    `history` has the figures of the finished epochs, `position` is the number of images that the current epoch has
    trained on, and `seconds` the time that took.

    Raises:
        ConfigError: the settings do not suit the device, the processes or the checkpoint to start from.
        CheckpointError, DataError: the checkpoint or the data are not those of the run to resume.
    """

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
        start: StartingNetwork | None = None,
    ) -> None:
        self.config, self.train, self.val = config, train, val
        self.processes, self.display = processes or Processes(), display or Display()
        self.device = device or torch.device("cpu")
        self.folder = RunFolder(Path(config.out), config)
        self.fingerprint = fingerprint(train.pairs, val.pairs)
        self.workers = default_workers() if config.workers is None else config.workers
        if config.batch_size < self.processes.count:
            raise ConfigError(f"--batch-size {config.batch_size}: expected {self.processes.count}, one per process")
        self.build(start or starting_network(config, resumed))
        self.history: list[dict[str, float]] = []
        self.position, self.monitor, self.seconds = 0, LossMonitor(), 0.0
        self.by_loss = val.only_label is not None  # then no metric tells a good epoch from a bad one
        self.one_sided: str | None = None  # a note if the best weights predict a class never or everywhere
        self.interrupts = InterruptHandler(speaks=self.processes.first)
        self.forecast: Forecast | None = None
        self.trend, self.from_start = LossTrend(), resumed is None
        if resumed is not None:
            self.restore(resumed)
        elif config.init_from and isinstance(self.network, UNet):
            note = initialise(self.network, config.init_from, config.classes)
            if note:
                self.display.note(note)
        for images in {len(train), len(train) - self.position}:
            require_batches(self.network, config, images, self.processes.count)
        # The average starts from the weights that training starts from, so it is made after they are loaded.
        self.ema = ModelEMA(self.network, config.ema) if config.ema else None
        if resumed is not None and self.ema is not None:
            self.ema.network.load_state_dict(dict(resumed.state_dict))
            self.ema.steps = int(resumed.extra["average_steps"])
        self.segmenter = Segmenter(self.ema.network if self.ema else self.network, self.card).to(self.device)

    def build(self, start: StartingNetwork) -> None:
        """Make the network, its card, and everything else that follows from the settings."""
        config = self.config
        if start.note:
            self.display.line(start.note)
        torch.manual_seed(config.seed)
        try:
            self.network = start.make().to(self.device)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            name = f"--widths {','.join(map(str, config.widths))}"
            if config.network != "unet":
                name = f"--encoder {config.encoder}"
            raise ConfigError(f"{name}: out of memory; use smaller ones") from error
        if self.device.type == "cuda" and config.fit != "native":
            torch.backends.cudnn.benchmark = True  # sizes repeat, so the search for the fastest kernels pays
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.card = ModelCard(
            name=self.folder.path.resolve().name or "unet",
            producer=producer(*start.made_by),
            architecture=config.architecture,
            input=start.described(self.train.decoder.input),  # its levels may follow from the images
            output=config.output,
            weights_sha256=weights_sha256(self.network.state_dict()),
        )
        self.optimizer = make_optimizer(self.network, config)
        self.precision = MixedPrecision(config.amp, self.device)
        self.class_weights: tuple[float, ...] | None = None
        self.use_loss(config.loss_name)
        self.batches = EpochBatches(
            len(self.train), config.batch_size, config.seed, self.processes.rank, self.processes.count
        )

    def use_loss(self, name: str) -> None:
        """Minimise this loss from now on, with the weights of classes if they are known."""
        self.loss_name = name
        self.loss = make_loss(name, len(self.config.classes), self.config.boundary_weight, self.class_weights)

    def choose_loss(self) -> None:
        """Choose the loss of a run that begins, and start its network from the share of foreground if that is rare."""
        config, share = self.config, self.processes.gather(self.train.foreground_share)[0]
        name = choose_loss(config, share)
        if name == config.loss_name or share is None:
            return
        self.use_loss(name)
        said = f"--loss auto: {name}, since {share:.2%} of the training pixels are foreground"
        if not config.init_from and self.class_weights is None:  # weighted, the shares of the labels are others
            for network in (self.network, *([self.ema.network] if self.ema else [])):
                start_from_share(network, share, self.train.decoder.labels.background or 0)
            said += "; the network starts from that share"
        self.display.line(said)

    def weigh_classes(self) -> None:
        """Find the weights of the classes, if the settings ask for them; the same images give the same weights."""
        kind = self.config.class_weights
        if kind == "none":
            return
        with self.processes.raise_on_all_ranks():
            if self.processes.first:
                with self.display.bar("counting pixels of classes", len(self.train)) as advance:
                    self.class_weights = weights_of_classes(kind, self.train, advance)
                self.display.line(weights_line(kind, self.class_weights, self.config.classes))
        self.class_weights = self.processes.gather(self.class_weights)[0]
        self.use_loss(self.loss_name)

    @cached_property
    def trained_network(self) -> Any:
        """The network that steps run: compiled if asked for, with gradients averaged over the processes."""
        network: Any = self.processes.parallel(self.network, self.device)
        return torch.compile(network) if self.config.compile else network

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint of this run was saved.

        All of it is checked before anything is restored.

        Raises:
            CheckpointError: the checkpoint holds another network or is damaged.
            DataError: the data have changed since.
        """
        last, extra = self.folder.last, checkpoint.extra
        if checkpoint.card.architecture != self.card.architecture:
            raise CheckpointError(f"{last}: holds another network than its config; start a new run")
        try:
            if (data := check_data(extra)) != self.fingerprint:
                changes = self.folder.changes(self.train.pairs, self.val.pairs)
                changes = changes or f"found {self.fingerprint}, expected {data}"
                raise DataError(
                    f"{self.config.data}: is not the data of the run in {self.folder.path} ({changes}); start a new run"
                )
            loss_name = check_loss(extra, self.config)
            check_run_state(
                extra,
                Expected(config=self.config, network=self.network, optimizer=self.optimizer, images=len(self.train)),
            )
        except CheckpointError as error:
            raise CheckpointError(f"{last}: is damaged ({error}); {self.folder.instead_of_last}") from error
        self.use_loss(loss_name)
        self.network.load_state_dict(extra["network"] or dict(checkpoint.state_dict))
        restore_optimizer(self.optimizer, extra["optimizer"], self.config)
        self.precision.restore(extra["precision"])
        self.history = [dict(row) for row in extra["history"]]
        self.position, self.seconds = extra["position"], float(extra["seconds"])
        self.one_sided = extra["one_sided"]
        self.monitor = LossMonitor.of_process(self.processes.rank, self.processes.count, extra["losses"])
        torch.set_rng_state(extra["random"]["cpu"])
        if len(extra["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(extra["random"]["cuda"])

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 1."""
        return len(self.history) + 1

    @property
    def ended(self) -> bool:
        """True if all epochs are trained, or `patience` epochs passed without a better one."""
        waited = epochs_without_progress(self.history)
        return len(self.history) >= self.config.epochs or 0 < self.config.patience <= waited

    def fit(self) -> Path:
        """Train, validate and save, epoch by epoch.

        Raises:
            NotFiniteError: the loss, a gradient or a weight is infinite or NaN.
            UnetError: a file cannot be read or written, or a process that loads images was killed.
            KeyboardInterrupt, SystemExit: a signal came (see `InterruptHandler`); everything is saved.
        """
        loader = self.make_loader()
        self.weigh_classes()
        if not self.history and not self.position:
            self.choose_loss()
        # The first process has seen all masks. A run from before there was a validation loss goes on without it.
        by_loss = self.by_loss and all(VALIDATION_LOSS in row for row in self.history)
        self.by_loss = bool(self.processes.largest(by_loss))
        try:
            with self.processes.raise_on_all_ranks():
                if self.processes.first:
                    left_out = [*self.train.left_out, *self.val.left_out]
                    self.folder.begin(self.train.pairs, self.val.pairs, left_out)
            writer = TensorBoardWriter(self.folder.tensorboard if self.processes.first else None, self.epoch)
            with self.interrupts.listening(), writer as self.tensorboard:
                while not self.ended:
                    if self.position < len(self.train):
                        self.train_epoch(loader)
                    self.end_epoch()
        except NotFiniteError as error:
            remedy = error.remedy + ("" if str(self.precision) == "fp32" else ", or with --amp off")
            raise NotFiniteError(f"{error}; {self.folder.what_is_kept} with {remedy}") from error
        except UnetError as error:
            raise type(error)(f"{error}; {self.folder.what_is_kept}") from error
        return self.folder.best

    def make_loader(self) -> DataLoader[Any]:
        """Make the loader of augmented batches, in the order of `batches`."""
        dataset = TrainingSet(
            self.train,
            seed=self.config.seed,
            augment=self.config.augment,
            foreground_share=self.config.foreground_share,
        )
        config = self.config
        own = -(-config.batch_size // self.processes.count)
        batch = own * config.height * config.width * (config.architecture.in_channels + 1)
        note = too_large_for_shared_memory(batch, self.workers)
        if note:
            self.display.note(note)
        return DataLoader(
            dataset,
            collate_fn=collate_arrays if note else None,
            batch_sampler=self.batches,
            num_workers=self.workers,
            worker_init_fn=quiet_worker,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # or it would draw from the run's own
            pin_memory=self.device.type == "cuda",
        )

    def train_epoch(self, loader: DataLoader[Any]) -> None:
        """Train on the rest of an epoch, from `position` on, and save when it is time or a signal came."""
        started = saved = time.perf_counter()
        before = self.seconds
        self.batches.epoch, self.batches.position = self.epoch, self.position
        self.network.train()
        self.freeze_encoder(self.epoch <= self.config.freeze_encoder)
        label = f"epoch {self.epoch}/{self.config.epochs}"
        if self.forecast is None:
            left = self.config.epochs - len(self.history) - self.position / len(self.train)
            self.forecast = Forecast(images=len(self.train), validated=len(self.val), epochs=left)
        batches = batches_of(loader)
        with self.display.bar(label, len(self.train), done=self.position) as advance:
            while self.position < len(self.train):
                images = self.step_on_all_ranks(batches, label)
                now = time.perf_counter()
                last = self.history[-1] if self.history else None
                validation = last["seconds"] - last["train_seconds"] if last else None
                self.tell_if_it_rises()
                if line := self.forecast.add(images, before + now - started - self.seconds, validation):
                    self.display.line(line)
                self.seconds = before + now - started
                part = self.position / len(self.train)
                loss = self.monitor.mean if self.monitor.seen else None
                text = progress_text(
                    self.history, part=part, seconds=self.seconds, epochs=self.config.epochs, loss=loss
                )
                advance(images, text)
                due = self.config.save_minutes and now - saved > 60 * self.config.save_minutes
                signal = self.interrupts.signal
                message = self.processes.largest(SAVE + signal if signal else SAVE if due else 0)
                if message:
                    self.check_finite()
                    self.save()
                    saved = time.perf_counter()
                if message > SAVE:
                    self.exit_on_all_ranks(message - SAVE)
        self.check_finite()
        self.tell_if_it_rises()

    def tell_if_it_rises(self) -> None:
        """Tell of a loss that rises from the first steps of the run, once."""
        if self.from_start and self.trend.look(self.monitor):
            self.display.note(self.trend.note(self.config.lr))

    def freeze_encoder(self, frozen: bool) -> None:
        """Keep the encoder's weights and BatchNorm statistics as they are in this epoch, or train them."""
        weights = encoder_weights(self.optimizer)
        if weights and frozen:
            self.network.get_submodule("encoder").eval()
        if any(weight.requires_grad == frozen for weight in weights):
            self.__dict__.pop("trained_network", None)  # it averages gradients of those that are trained
            for weight in weights:
                weight.requires_grad_(not frozen)

    def step_on_all_ranks(self, batches: Iterator[tuple[Tensor, Tensor]], label: str) -> int:
        """Take a step; a value that is not finite in one process ends all of them, which would wait for it."""
        failure: NotFiniteError | None = None
        images = 0
        try:
            images = self.step(batches, label)
            self.monitor.check()
        except NotFiniteError as error:
            failure = error
        if self.processes.largest(int(failure is not None)):  # a number is sent sooner than an object
            self.processes.agree(failure)
        return images

    def step(self, batches: Iterator[tuple[Tensor, Tensor]], label: str) -> int:
        """Take one step of the optimizer, over one batch or `accumulate` of them; returns the number of images."""
        config, start = self.config, self.position
        size = min(config.batch_size * config.accumulate, len(self.train) - start)
        while self.position < start + size:
            own, whole = self.batches.share(self.position)
            last = self.position + whole == start + size
            images, labels = next(batches)
            self.backward(images, labels, own * self.processes.count / size, last, own, label)
            self.position += whole
        middle = self.epoch - 1 + (start + size / 2) / len(self.train)
        set_rate(self.optimizer, config.lr * lr_factor(config, middle, self.history))
        stepped = self.precision.step(self.optimizer, self.network, config.clip_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and stepped:
            self.ema.update()
        return size

    def backward(self, images: Tensor, labels: Tensor, weight: float, last: bool, own: int, label: str) -> None:
        """Add the gradients of one batch, of which `own` images are this process's.

        `weight` is the batch's share of the step times the number of processes; `last` is True for the last batch of
        the step, after which the processes average their gradients.
        """
        position = self.position

        def where() -> str:
            batch = self.batches.order()[position : position + self.config.batch_size]
            own_part = batch[self.processes.rank :: self.processes.count]
            return f"{label}, {', '.join(self.train.pairs[index].label for index in own_part)}"

        several = self.processes.count > 1
        with self.trained_network.no_sync() if several and not last and not self.config.compile else nullcontext():
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            planes = self.segmenter.normalise(images)
            if not self.config.channels_last:
                planes = planes.contiguous()
            with self.precision.context():
                logits = self.trained_network(planes)
            loss = self.loss(logits.float(), labels)
            if own:
                self.monitor.add(loss, own, where)
            self.precision.backward(loss if weight == 1.0 else loss * weight)

    def check_finite(self) -> None:
        """Check the losses and the weights: an infinite gradient of a finite loss shows only in the weights.

        Raises:
            NotFiniteError: the loss or a weight is infinite or NaN.
        """
        with self.processes.raise_on_all_ranks():
            self.monitor.look()
            if not all(bool(torch.isfinite(value).all()) for value in self.network.state_dict().values()):
                raise NotFiniteError(f"epoch {self.epoch}: the weights became infinite or NaN")

    def exit_on_all_ranks(self, signal: int) -> None:
        """End all processes as the signal asks that one of them received."""
        self.processes.wait()
        self.interrupts.signal = signal
        self.interrupts.exit()

    def end_epoch(self) -> None:
        """Validate, add the epoch to the history, and write everything that follows from it."""
        started = time.perf_counter()
        metrics, worst, validation_loss = self.validate()
        sums = self.processes.gather((self.monitor.total, self.monitor.seen))
        total, seen = (sum(parts) for parts in zip(*sums, strict=True))
        row = {
            "epoch": self.epoch,
            "train_loss": total / max(seen, 1),
            **metrics.summary(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_seconds": self.seconds,
            "seconds": self.seconds + time.perf_counter() - started,
        }
        if validation_loss is not None:
            row[VALIDATION_LOSS] = validation_loss
        if self.precision.scaler.is_enabled():
            row["skipped_steps"] = self.precision.skipped - sum(past.get("skipped_steps", 0) for past in self.history)
        self.history.append(row)
        best = is_best(self.history)
        if best:
            self.one_sided = one_sided(metrics)
        self.position, self.monitor, self.seconds = 0, LossMonitor(), 0.0
        with self.processes.raise_on_all_ranks():
            if self.processes.first:
                if best:  # before the last checkpoint, whose history says that they are there
                    save_checkpoint(self.folder.best, self.segmenter.network.state_dict(), self.trained_card())
                self.save_last([(0.0, 0)] * self.processes.count)
                self.folder.write_history(self.history)
                self.tensorboard.scalars(row)
                for place, drawn in enumerate(self.folder.draw(worst, self.val, len(self.history)) if best else (), 1):
                    self.tensorboard.picture(f"worst/{place:02}", drawn, len(self.history))
        self.display.line(epoch_line(row, self.config.epochs, best))

    def validate(self) -> tuple[Metrics, Worst, float | None]:
        """Measure the validation images, each in one process.

        Returns:
            The metrics, the worst images, to draw them, and with `by_loss` the mean loss over the images.
        """
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
        losses: list[float] = []
        if self.by_loss:
            predictions = self.with_losses(predictions, losses)
        with closing(self.display.through(predictions, "validating", len(indices))) as shown:  # also after a signal
            metrics = compute_metrics(takewhile(lambda _: not self.interrupts.signal, shown), self.card, worst.add)
        if signal := self.processes.largest(self.interrupts.signal):
            self.save()
            self.exit_on_all_ranks(signal)
        found = self.processes.gather((self.processes.rank, metrics.state(), worst, losses))
        for rank, state, others, _ in found:
            if rank != self.processes.rank:
                metrics.merge(Metrics.from_state(self.card.output.classes, state))
                worst.merge(others)
        losses = [loss for *_, part in found for loss in part]
        return metrics, worst, mean(losses) if self.by_loss else None

    def with_losses(self, predictions: Iterator[Prediction], losses: list[float]) -> Iterator[Prediction]:
        """Pass predictions on, adding the loss of each to a list."""
        for index, probability, truth in predictions:
            losses.append(loss_of_answer(self.loss, probability, truth))
            yield index, probability, truth

    def trained_card(self) -> ModelCard:
        """Return the card of the weights as they are now."""
        return replace(
            self.card,
            weights_sha256=weights_sha256(self.segmenter.network.state_dict()),
            training=Training(
                epochs=len(self.history),
                data=self.fingerprint,
                metrics=card_figures(self.history[-1]) if self.history else {},
            ),
        )

    def save(self) -> None:
        """Save the last checkpoint within an epoch."""
        losses = self.processes.gather((self.monitor.total, self.monitor.seen))
        with self.processes.raise_on_all_ranks():
            if self.processes.first:
                self.save_last(losses)

    def save_last(self, losses: list[tuple[float, int]]) -> None:
        """Write everything that the run needs to continue exactly from here.

        `losses` are the sums and counts of all processes. Order and augmentation follow from the seed, so only
        PyTorch's random generators have a state.
        """
        save_checkpoint(
            self.folder.last,
            self.segmenter.network.state_dict(),
            self.trained_card(),
            network=dict(self.network.state_dict()) if self.ema is not None else None,
            average_steps=self.ema.steps if self.ema is not None else 0,
            optimizer=self.optimizer.state_dict(),
            precision=self.precision.state(),
            history=self.history,
            position=self.position,
            seconds=self.seconds,
            one_sided=self.one_sided,
            loss=self.loss_name,
            losses=losses,
            random={
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            data=self.fingerprint,
            config=asdict(self.config),
        )
