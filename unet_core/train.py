"""Training: `python -m unet_core.train DATA --out DIR`."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import click
import torch
from filelock import FileLock, Timeout

from runtime.card import CHANNEL_COUNT
from runtime.commands.console import Command, Listed
from runtime.commands.entry import INTERRUPTED
from runtime.errors import CheckpointError, ConfigError, DataError, UnetError
from runtime.support.files import new_folder
from unet_core.checkpoint import Checkpoint, architecture_of, load_checkpoint
from unet_core.config import (
    LOSSES,
    TrainConfig,
    choices_of,
    flag,
    from_stored,
    hint_of,
    kind_of,
    make_config,
    of_run,
    read_settings,
)
from unet_core.data.cache import Cache, open_cache, pending, prepare
from unet_core.data.pairs import Layout, find_splits, group_of, has_validation, shared_images, surplus_masks
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.predictions import torch_device
from unet_core.reporting.progress import Display
from unet_core.reporting.tables import final_table
from unet_core.training.advice import settings_without_effect
from unet_core.training.distributed import Processes, join
from unet_core.training.run_directory import BEST, LAST, RunFolder
from unet_core.training.trainer import Trainer

LOCK = ".lock"


def train(config: TrainConfig, *, resume: bool = False, processes: Processes | None = None) -> Path:
    """Train a U-Net as configured, and return the path of its best weights (`model.pth`).

    With `resume`, the run in `config.out` goes on, from within an epoch if it was stopped there, until `config.epochs`
    have been trained. Started by `torchrun`, every process calls this, perhaps with what `join` gave it.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError, OutputError: before the first epoch, where possible.
        NotFiniteError: the loss, a gradient or a weight became infinite or NaN.
        UnetError: the device's memory is too small, or a process that loads images was killed.
        KeyboardInterrupt, SystemExit: SIGINT, or SIGTERM or SIGHUP came; the step was finished and everything is saved.
        SystemExit: with several processes, in all but the first, when the first one raises one of the errors above.
    """
    processes = processes or join()
    try:
        with ExitStack() as stack, _explained(config):
            with processes.raise_on_all_ranks():
                stack.enter_context(_claimed(Path(config.out), processes))
                checkpoint = _checkpoint_of(config, resume)
            return _train(config, checkpoint, processes)
    finally:
        processes.leave()


def _train(config: TrainConfig, checkpoint: Checkpoint | None, processes: Processes) -> Path:
    display = Display(quiet=not processes.first)
    records = _records(config, processes, display)
    with processes.raise_on_all_ranks():
        device = torch_device(processes.device_name(config.device))
        run = Trainer(config, *records, processes=processes, display=display, device=device, resumed=checkpoint)
        if processes.first:
            run.folder.write_history(run.history)  # a kill may have come between the checkpoint and these
        if run.ended:
            raise ConfigError(
                f"{run.folder.last}: {_epochs(len(run.history))} trained already; ask for more with --epochs"
                + (" and --patience" if config.patience else "")
            )
    for note in settings_without_effect(config, len(run.train)):
        display.note(note)
    display.line(_what_begins(run))
    best = run.fit()
    display.line(final_table(run.history, config))
    if run.one_sided:
        display.note(f"{run.one_sided}, by the best weights too; train longer, or with a smaller --batch-size")
    return best


def _what_begins(run: Trainer) -> str:
    config, weights = run.config, sum(weight.numel() for weight in run.network.parameters())
    what = f"training {_epochs(config.epochs)}"
    if run.history or run.position:
        within = f", image {run.position + 1} of {len(run.train)}" if run.position else ""
        within = ", its validation" if run.position == len(run.train) else within
        what = f"going on with epoch {run.epoch} of {config.epochs}{within},"
    processes = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    size = f"{config.width}x{config.height}"
    size = f"crops of {size}" if config.fit == "native" else size
    text = f"{what} on {run.device} ({run.precision}{processes}): {len(run.train)} images, {len(run.val)} to validate, "
    text += f"{size}, {weights:,} weights"
    return text + ("; the first steps wait for torch.compile" if config.compile else "")


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


@contextmanager
def _claimed(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other trainers out of a run's folder; a folder that was not there before goes if nothing comes of it."""
    if not processes.first:
        yield
        return
    with new_folder(folder):
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(f"{folder}: another trainer is at work in this folder; choose another --out") from error
        try:
            yield
        except BaseException:
            if not any(path.name != LOCK for path in folder.iterdir()):
                with suppress(OSError):
                    (folder / LOCK).unlink()
            raise
        finally:
            lock.release()


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    """Say what to do about errors of PyTorch that a user can mend."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = f"--batch-size {config.batch_size // 2} --accumulate {2 * config.accumulate}"
        less = half if config.batch_size > 1 else "thinner --widths, or a smaller --height and --width"
        raise UnetError(
            f"--batch-size {config.batch_size}: the device's memory is too small; give {less}, or --amp auto"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UnetError(
            f"--compile: PyTorch cannot compile here ({' '.join(str(error).split())[:200]}); leave it out"
        ) from error


def _checkpoint_of(config: TrainConfig, resume: bool) -> Checkpoint | None:
    last = Path(config.out) / LAST
    if resume:
        checkpoint = _last_checkpoint(last)
        _refuse_changes(config, stored_config(checkpoint, last))
        return checkpoint
    if os.path.exists(last):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise DataError(f"{last}: this folder holds a run already; continue it with --resume or choose another --out")
    best = last.with_name(BEST)
    if os.path.exists(best):  # noqa: PTH110
        raise DataError(f"{best}: this folder holds a model already; choose another --out, or move it away")
    return None


def _records(config: TrainConfig, processes: Processes, display: Display) -> tuple[Records, Records]:
    """Find and decode the data, or take them from the cache.

    The first process decodes for all; on other machines, which may not see its disk, the first one there.
    """
    layout = Layout(masks=config.masks, val_share=config.val_share, group=config.group)
    with processes.raise_on_all_ranks():
        train_pairs, val_pairs = find_splits(config.data, layout)
        whole = config.validate_at == "original"
        train_set = Records(train_pairs, SampleDecoder(input=config.input, labels=config.labels, draft=True))
        val_set = Records(val_pairs, SampleDecoder(input=config.input, labels=config.labels, truth_at_original=whole))
        sets, cache = (train_set, val_set), open_cache(config.cache_dir, config.cache_gb)
        left = pending(sets, cache)
        if processes.first:
            if surplus := surplus_masks(config.data, layout):
                display.note(surplus)
            _prepare(sets, cache, left, display)
            if shared := shared_images(train_pairs, val_pairs):
                display.note(shared)
            if not train_set.has_foreground:
                where = Path(config.data) / f"train_{config.masks}"
                raise DataError(f"{where}: no mask has any foreground, so there is nothing to learn")
    with processes.raise_on_all_ranks():
        if not processes.first and processes.local_rank == 0:
            _prepare(sets, cache, pending(sets, cache), display)
    if processes.local_rank:
        pending(sets, cache)
    if not has_validation(config.data):
        groups = {group_of(pair.name, layout.group) for pair in val_pairs}
        display.line(
            f"to validate: {len(val_pairs)} of {len(train_pairs) + len(val_pairs)} images, "
            f"{len(groups)} group{'s' * (len(groups) > 1)} split off"
        )
    return train_set, val_set


def _prepare(sets: Sequence[Records], cache: Cache | None, left: int, display: Display) -> None:
    with display.bar("decoding images", left) as advance:
        prepare(sets, cache, advance, display.note)
    stored = sum(records.stored for records in sets)
    if left and cache is not None and stored:
        kept = "1 decoded image is" if stored == 1 else f"{stored} decoded images are"
        display.line(f"{kept} kept in {cache.folder} for the next epochs and runs")


def _last_checkpoint(path: Path) -> Checkpoint:
    if not os.path.isdir(path.parent):  # noqa: PTH112 - unlike Path.is_dir it takes any name
        raise CheckpointError(f"{path.parent}: no such folder; expected the --out of the run that is to go on")
    if not os.path.exists(path):  # noqa: PTH110
        raise CheckpointError(f"{path}: nothing of this run is saved; start it without --resume")
    return load_checkpoint(path)


def stored_config(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to.

    Raises:
        CheckpointError: it belongs to none, or to one of another version.
    """
    stored = checkpoint.extra.get("config")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: holds no run to go on with; start one without --resume")
    try:
        return from_stored(stored)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; start a new run, with --init-from {path}") from error


def _refuse_changes(config: TrainConfig, stored: Mapping[str, Any]) -> None:
    for name in of_run():
        if getattr(config, name) != stored[name]:
            found, expected = (_written(value) for value in (getattr(config, name), stored[name]))
            raise ConfigError(f"{flag(name)} {found}: the run in {config.out} has {expected}; leave it out")


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class SettingsCommand(Command):
    """A command with a flag for every setting, listed by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        of_setting = {item.name: item.metadata["section"] for item in fields(TrainConfig)}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(of_setting.get(param.name or "", "other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title.capitalize()):
                formatter.write_dl(records)


def _options() -> list[click.Parameter]:
    """An option for every setting; unset ones are None, so that flags win over a file and both over a stored run."""
    options: list[click.Parameter] = [click.Argument(["data"], type=click.Path(), required=False)]
    for item in fields(TrainConfig):
        if item.name == "data":
            continue
        hint = hint_of(item.name)
        kind, _ = kind_of(hint)
        choices = LOSSES if item.name == "loss" else choices_of(hint)
        shown = item.metadata["help"]
        if item.default is not MISSING and item.default not in (None, ""):
            shown += f"  [default: {_shown(item.default)}]"
        declared = f"{flag(item.name)}/--no-{item.name.replace('_', '-')}" if kind is bool else flag(item.name)
        type_: Any = click.Choice(choices) if choices else kind
        if kind is tuple:
            type_ = Listed(get_args(hint)[0])
        options.append(click.Option([declared], type=type_, default=None, help=shown))
    return options


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else _written(value)


@click.command(cls=SettingsCommand, params=_options())
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings; flags win over it.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; settings not given are the run's own.")
def main(file: Path | None, resume: bool, **flags: Any) -> None:
    """Train a U-Net on DATA: train_images/, train_masks/, val_images/ and val_masks/, X.jpg with X_mask.gif.

    Without val_images/, whole groups of the training images are kept back to validate on. Several GPUs:
    torchrun --nproc-per-node N -m unet_core.train ...
    """
    processes = join()
    with processes.raise_on_all_ranks():
        config = _config_of(file, flags, resume)
    try:
        best = train(config, resume=resume, processes=processes)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if processes.first:
            with suppress(OSError):  # a terminal that is closed
                click.echo(_stopped(config), err=True)
        raise SystemExit(code) from stop
    if processes.first:
        click.echo(f"best weights: {best}    curves: {best.parent / 'curves.png'}    next: unet-export {best}")


def _config_of(file: Path | None, flags: Mapping[str, Any], resume: bool) -> TrainConfig:
    of_file = read_settings(file) if file is not None else {}
    settings = of_file | {name: value for name, value in flags.items() if value is not None}
    if "out" not in settings:
        raise ConfigError("--out: is missing, expected the folder of the run; see --help")
    if resume:
        last = Path(settings["out"]) / LAST
        settings = stored_config(_last_checkpoint(last), last) | settings
    if "data" not in settings:
        raise ConfigError("DATA: is missing, expected the folder of images and masks; see --help")
    if settings.get("init_from") and not settings.keys() & {"widths", "up", "channels"}:
        settings |= _network_of(settings["init_from"])
    return make_config(settings, of_file, file)


def _network_of(checkpoint: str) -> dict[str, Any]:
    """The settings that make a network for a checkpoint's weights."""
    found = architecture_of(checkpoint)
    channels = next(name for name, count in CHANNEL_COUNT.items() if count == found.in_channels)
    return {"widths": found.widths, "up": found.up, "channels": channels}


def _stopped(config: TrainConfig) -> str:
    folder = RunFolder(Path(config.out), config)
    if not folder.last.exists():
        return f"stopped: {folder.what_is_kept}"
    return f"stopped and saved; go on with: python -m unet_core.train --out {shlex.quote(config.out)} --resume"


if __name__ == "__main__":
    main()
