"""A training from its settings to its best weights: checkpoint, data, the lines that it prints first and last."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runtime.card import Levels, UNetConfig
from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import Checkpoint, architecture_of, load_checkpoint
from unet_core.config import TrainConfig, fixed_settings, flag, setting_text
from unet_core.data.cache import Cache, decode_all, faults_of, open_cache, pending
from unet_core.data.faults import files_left_out, refuse, shared_images, surplus_masks, unpaired
from unet_core.data.levels import FOUND, levels_line
from unet_core.data.pairs import find_splits, has_validation
from unet_core.data.records import TRIED, TRIED_TO_SKIP, Records, SampleDecoder, refuse_hopeless
from unet_core.data.skipping import Found, leave_out, note_of_left_out
from unet_core.data.stored_values import few_levels, find_levels
from unet_core.data.validation_split import doubtful_split, split_summary
from unet_core.evaluation.torch_device import torch_device
from unet_core.model_options import as_argument, channels_setting
from unet_core.reporting.progress import Display
from unet_core.reporting.tables import final_table
from unet_core.settings_file import from_stored
from unet_core.training.advice import advice_on_one_sided, explained_errors, settings_without_effect
from unet_core.training.auto_loss import advice_on_loss
from unet_core.training.bad_pairs import Sets, refuse_or_leave_out
from unet_core.training.data_notes import check_masks, missing_classes, unused_channels
from unet_core.training.distributed import Processes, join
from unet_core.training.run_directory import FILES, LAST, instead_of_last, locked_folder, refuse_used_folder
from unet_core.training.starting_network import StartingNetwork, starting_network
from unet_core.training.trainer import Trainer


def run_training(config: TrainConfig, *, resume: bool = False, processes: Processes | None = None) -> Path:
    """Train as `unet_core.train.train` describes, which is the public name of this function."""
    processes = processes or join()
    try:
        with ExitStack() as stack, explained_errors(config):
            with processes.raise_on_all_ranks():
                stack.enter_context(locked_folder(Path(config.out), processes))
                checkpoint = checkpoint_to_resume(config) if resume else None
                if not resume:
                    refuse_used_folder(Path(config.out))
                device = torch_device(processes.device_name(config.device))
                records = find_records(config, checkpoint, writes=processes.first)
                start = starting_network(config, checkpoint)
                for one in records:  # a letterbox's bars have the network's mean, as when it predicts
                    one.decoder = replace(one.decoder, input=start.described(one.decoder.input))
                # Whatever a trainer refuses is refused here, before images are decoded, which may take an hour. Which
                # data a resumed run had is known only then if faulty pairs are left out.
                if checkpoint is None or not config.skip_bad:
                    make_trainer(config, records, processes, Display(quiet=True), device, checkpoint, start)
            display = Display(quiet=not processes.first)
            load_records(config, records, processes, display, checkpoint)
            with processes.raise_on_all_ranks():
                trainer = make_trainer(config, records, processes, display, device, checkpoint, start)
            for note in settings_without_effect(config, len(trainer.train)):
                display.note(note)
            display.line(start_line(trainer))
            best = trainer.fit()
            display.line(final_table(trainer.history, config))
            if trainer.one_sided:
                advice = advice_on_loss(config, trainer.train.foreground_share) or advice_on_one_sided(
                    replace(config, loss=trainer.loss_name), len(trainer.train), trainer.history, trainer.trend.rises
                )
                display.note(f"{trainer.one_sided}, by the best weights too; {advice}")
            return best
    finally:
        processes.leave()


def make_trainer(
    config: TrainConfig,
    records: tuple[Records, Records],
    processes: Processes,
    display: Display,
    device: torch.device,
    checkpoint: Checkpoint | None,
    start: StartingNetwork,
) -> Trainer:
    """Make the trainer of a run that begins, or that continues from a checkpoint.

    Raises:
        ConfigError, CheckpointError, DataError: as `Trainer`; or all epochs are trained already.
    """
    trainer = Trainer(
        config, *records, processes=processes, display=display, device=device, resumed=checkpoint, start=start
    )
    trainer.folder.refuse_links()
    if processes.first:
        # The run may have been killed after it wrote the checkpoint and before it wrote these.
        trainer.folder.write_history(trainer.history)
    if trainer.ended:
        raise ConfigError(
            f"{trainer.folder.last}: {epochs_text(len(trainer.history))} trained already; ask for more "
            f"with --epochs{' and --patience' * (config.patience > 0)}"
        )
    return trainer


def checkpoint_to_resume(config: TrainConfig) -> Checkpoint:
    """Load the last checkpoint of the run in `config.out`.

    Raises:
        CheckpointError: there is no such run, or it was made by another version.
        ConfigError: a setting that cannot change differs from the run's.
    """
    checkpoint, stored = load_run(Path(config.out))
    for name in fixed_settings():
        found, expected = getattr(config, name), stored[name]
        if found != expected:
            found, expected = (setting_text(value) for value in (found, expected))
            raise ConfigError(f"{flag(name)} {found}: the run in {config.out} has {expected}; leave it out")
    return checkpoint


def load_run(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Load the last checkpoint in the folder of a run, and the run's settings from it.

    Raises:
        CheckpointError: there is none, it cannot be loaded, or it belongs to no run or a run of another version.
    """
    path = folder / LAST
    if not os.path.isdir(folder):  # noqa: PTH112 - unlike Path.is_dir it takes any name
        raise CheckpointError(f"{folder}: no such folder; expected the --out of the run to resume")
    if not os.path.exists(path):  # noqa: PTH110
        raise CheckpointError(f"{path}: this run has no checkpoint yet; start it without --resume")
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {instead_of_last(folder)}") from error
    stored = checkpoint.extra.get("config")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: does not hold a run to resume; start one without --resume")
    try:
        return checkpoint, from_stored(stored)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; start a new run, with --init-from {path}") from error


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder; raises as `load_run`."""
    return load_run(folder)[1]


def settings_of_network(checkpoint: str) -> dict[str, Any]:
    """Return the settings that make a network for a checkpoint's weights; raises as `architecture_of`."""
    found = architecture_of(checkpoint)
    channels = channels_setting(found.in_channels)
    if isinstance(found, UNetConfig):
        return {"widths": found.widths, "up": found.up, "channels": channels}
    options = tuple(as_argument(name, value) for name, value in found.options.items())
    return {"network": f"smp.{found.name}", "encoder": found.encoder, "network_arg": options, "channels": channels}


def find_records(config: TrainConfig, resumed: Checkpoint | None = None, *, writes: bool = True) -> Sets:
    """Find the training and the validation data; nothing is decoded. A run that is resumed keeps its card's levels.

    `writes`: this process is the one that writes files.

    Raises:
        DataError: a folder is missing, or an image has no mask, several, or another image's, unless these are left out.
    """
    train_pairs, val_pairs = find_splits(config.data, config.layout)
    whole = config.validate_at == "original"
    spec = config.input if resumed is None else replace(config.input, levels=resumed.card.input.levels)
    decoder = SampleDecoder(input=spec, labels=config.labels, limits=config.limits)
    sets = (
        Records(train_pairs, replace(decoder, draft=True)),
        Records(val_pairs, replace(decoder, truth_at_original=whole)),
    )
    refuse_or_leave_out(config, sets, [unpaired(records.pairs) for records in sets], writes=writes)
    return sets


def load_records(
    config: TrainConfig,
    sets: Sets,
    processes: Processes,
    display: Display,
    resumed: Checkpoint | None = None,
) -> None:
    """Decode the training and the validation data, or take them from the cache.

    The first process decodes for all; on other machines, which may not see its disk, the first process there. Unless
    a run is `resumed`, the levels are found first if the images tell them.

    Raises:
        DataError: an image or a mask cannot be used, or no training mask has any foreground.
    """
    layout = config.layout
    bad: Found = ({}, {})
    with processes.raise_on_all_ranks():
        cache = open_cache(config.cache_dir, config.cache_gb)
        levels = sets[0].decoder.input.levels
        if processes.first and resumed is None and config.levels in FOUND:
            levels = choose_levels(config, sets[0], cache, display)
    levels = processes.gather(levels)[0]
    with processes.raise_on_all_ranks():
        for records in sets:
            records.decoder = replace(records.decoder, input=replace(records.decoder.input, levels=levels))
        missing = pending(sets, cache)
        if processes.first:
            bad = decode_first(config, sets, cache, missing, display)
    bad = processes.gather(bad)[0]
    with processes.raise_on_all_ranks():
        if not processes.first and processes.local_rank == 0:
            found = decode_missing(config, sets, cache, pending(sets, cache), display)
            for one, elsewhere in zip(found, bad, strict=True):
                for index in elsewhere:
                    one.pop(index, None)
            refuse(faults_of(sets, found), sum(map(len, sets)))
    if processes.local_rank:
        pending(sets, cache)
    if not processes.first:
        leave_out(sets, bad)
    train_pairs, val_pairs = (records.pairs for records in sets)
    if not has_validation(config.data):
        display.line(split_summary(train_pairs, val_pairs, layout))
        if doubt := doubtful_split(train_pairs, val_pairs, layout):
            display.note(doubt)


def decode_first(config: TrainConfig, sets: Sets, cache: Cache | None, missing: int, display: Display) -> Found:
    """Decode the data in the first process, with notes on it; returns the faults, of which none are left in `sets`.

    Raises:
        DataError: as `load_records`.
    """
    layout = config.layout
    for note in (surplus_masks(config.data, layout), files_left_out(config.data, layout)):
        if note:
            display.note(note)
    bad = decode_missing(config, sets, cache, missing, display)
    refuse_or_leave_out(config, sets, bad, writes=True)
    if left_out := note_of_left_out(sets, f", {Path(config.out) / FILES} lists them"):
        display.note(left_out)
    for note in (
        shared_images(*(records.pairs for records in sets)),
        *check_masks(*sets, config, f"{Path(config.data) / 'train'}_{config.masks}"),
        *missing_classes(*sets),
        few_levels(sets[0], config.levels),
        unused_channels(sets[0].pairs, sets[0].decoder.input, config.limits),
    ):
        if note:
            display.note(note)
    return bad


def choose_levels(config: TrainConfig, train: Records, cache: Cache | None, display: Display) -> Levels | None:
    """Return the levels that the training images show, and print them."""
    with display.bar("looking at values", len(train)) as advance:
        levels = find_levels(train.pairs, config.levels, config.limits, cache, advance, config.input_channels)
    if levels is not None:
        display.line(levels_line(levels, config.levels))
    return levels


def decode_missing(
    config: TrainConfig, sets: Sets, cache: Cache | None, missing: int, display: Display
) -> list[dict[int, str]]:
    """Decode the images that the cache does not hold, with a progress bar; returns the faults as `decode_all`."""
    for records in sets:
        refuse_hopeless(records, TRIED_TO_SKIP if config.skip_bad else TRIED)
    with display.bar("decoding images", missing) as advance:
        found = decode_all(sets, cache, advance, display.note)
    stored = sum(records.stored for records in sets)
    if missing and cache is not None and stored:
        kept = "1 decoded image is" if stored == 1 else f"{stored} decoded images are"
        display.line(f"{kept} kept in {cache.folder} for the next epochs and runs")
    return found


def start_line(trainer: Trainer) -> str:
    """Describe the run that starts or resumes, in one line."""
    config, images = trainer.config, len(trainer.train)
    task = f"training {epochs_text(config.epochs)}"
    if trainer.history or trainer.position:
        task = f"resuming epoch {trainer.epoch} of {config.epochs}"
        if trainer.position == images:
            task += " at its validation"
        elif trainer.position:
            task += f" at image {trainer.position + 1} of {images}"
    processes = f", {trainer.processes.count} processes" if trainer.processes.count > 1 else ""
    size = f"{'crops of ' * (config.fit == 'native')}{config.width}x{config.height}"
    if not isinstance(config.architecture, UNetConfig):
        size += f", {config.architecture.summary}"
    weights = sum(weight.numel() for weight in trainer.network.parameters())
    return (
        f"{task} on {trainer.device} ({trainer.precision}{processes}): {images} training and {len(trainer.val)} "
        f"validation images, {size}, {weights:,} weights" + "; torch.compile delays the first steps" * config.compile
    )


def epochs_text(count: int) -> str:
    """Write a number of epochs."""
    return f"{count} epoch{'s' * (count != 1)}"
