"""Training: `python -m unet_core.train DATA --out DIR`.

`--help` works without PyTorch, so this module imports what trains only where it is called.
"""

import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from runtime.commands.console import Command, Listed, Size, echo, started_as
from runtime.commands.entry import INTERRUPTED, exit_without
from runtime.errors import ConfigError
from runtime.support.files import require_temporary_folder
from unet_core.config import (
    FIELDS,
    HINTS,
    LOSS_NAMES,
    TrainConfig,
    choices_of,
    flag,
    setting_text,
    value_type,
)
from unet_core.data.restarts import require_one_start
from unet_core.settings_file import SIZE, make_config, read_settings, unused_settings, without_size

if TYPE_CHECKING:
    from unet_core.training.distributed import Processes

NETWORK_ARG = "network_arg"
"""The setting that may be given several times on the command line."""


def train(config: TrainConfig, *, resume: bool = False, processes: "Processes | None" = None) -> Path:
    """Train a U-Net as configured, and return the path of its best weights (`model.pth`).

    With `resume`, the run in `config.out` continues, from within an epoch if it was stopped there, until
    `config.epochs` have been trained. Started by `torchrun`, every process calls this. `processes` is what `join`
    returned, if that was called already.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError, OutputError: before the first epoch, where possible.
        NotFiniteError: the loss, a gradient or a weight became infinite or NaN.
        UnetError: the device is out of memory, or a process that loads images was killed.
        KeyboardInterrupt, SystemExit: SIGINT, or SIGTERM or SIGHUP came; the step was finished and everything is saved.
        SystemExit: with several processes, in all but the first, when the first one raises one of the errors above.
    """
    require_one_start()
    require_temporary_folder("PyTorch")
    from unet_core.training.run import run_training

    return run_training(config, resume=resume, processes=processes)


class SettingsCommand(Command):
    """A command whose help lists the settings by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                field = FIELDS.get("height" if param.name == SIZE else str(param.name))
                section = field.metadata["section"] if field else "other"
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title.capitalize()):
                formatter.write_dl(records)


def setting_options() -> list[click.Parameter]:
    """Make an option for every setting, of which the default is None: flags win over a file, both over a stored run."""
    options: list[click.Parameter] = [click.Argument(["data"], type=click.Path(), required=False)]
    for name, item in FIELDS.items():
        if name == "data":
            continue
        if name == "height":
            options.append(click.Option([f"--{SIZE}"], type=Size(), help="Sets --width and --height at once."))
        kind, _ = value_type(HINTS[name])
        choices = LOSS_NAMES if name == "loss" else choices_of(HINTS[name])
        text = item.metadata["help"]
        if item.default not in (MISSING, None, "", ()):
            default = setting_text(item.default)
            if isinstance(item.default, bool):
                default = "on" if item.default else "off"
            elif isinstance(item.default, float):
                default = f"{item.default:.3g}"
            text += f"  [default: {default}]"
        declared = f"{flag(name)}/--no-{name.replace('_', '-')}" if kind is bool else flag(name)
        type_: Any = click.Choice(choices) if choices else kind
        several = name == NETWORK_ARG  # whose values may have commas
        if kind is tuple:
            type_ = str if several else Listed(get_args(HINTS[name])[0])
        short = ["-o"] if name == "out" else []
        metavar = "NAME=VALUE" if several else None
        options.append(
            click.Option([*short, declared], type=type_, default=None, help=text, multiple=several, metavar=metavar)
        )
    return options


@click.command(cls=SettingsCommand, params=setting_options())
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings; flags win over it.")
@click.option("--resume", is_flag=True, help="Resume the run in --out with its own settings; flags win over them.")
def main(file: Path | None, resume: bool, **flags: Any) -> None:
    """Train a U-Net on DATA, a folder with train_images/, train_masks/, val_images/ and val_masks/.

    The mask of X.jpg is X_mask.gif, or another lossless file X_mask or X. Without val_images/, whole groups of the
    training images are used to validate. On several GPUs: torchrun --nproc-per-node N -m unet_core.train ...
    """
    require_temporary_folder("PyTorch")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where the home folder cannot be written
    try:
        import unet_core.training.run  # noqa: F401  whatever it needs is missed here, not in the middle
        from unet_core.reporting.progress import Display
        from unet_core.training.distributed import join
        from unet_core.training.run_directory import RunFolder
    except ModuleNotFoundError as error:
        exit_without(error, "train")
    processes = join()
    with processes.raise_on_all_ranks():
        config = merge_settings(file, flags, resume)
        given = {name: value for name, value in flags.items() if value is not None}
        if processes.first and not resume and (note := unused_settings(config.data, file, given)):
            Display().note(note)
    try:
        best = train(config, resume=resume, processes=processes)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if processes.first:
            folder = RunFolder(Path(config.out), config)
            line = f"stopped: {folder.what_is_kept}"
            if folder.last.exists():
                command = started_as("unet-train", "unet_core.train")
                line = f"stopped and saved; resume with: {command} --out {shlex.quote(config.out)} --resume"
            with suppress(OSError):  # a terminal that is closed
                echo(line, err=True)
        raise SystemExit(code) from stop
    if processes.first:
        following = f"unet-export {shlex.quote(str(best))}"
        echo(f"best weights: {best}    curves: {best.parent / 'curves.png'}    next: {following}")


def merge_settings(file: Path | None, flags: Mapping[str, Any], resume: bool) -> TrainConfig:
    """Merge the flags with the settings of a TOML file, of the run to resume, and of the network to start from.

    Raises:
        ConfigError: DATA or --out is missing, or a setting is invalid.
        CheckpointError: the run to resume or the checkpoint to start from cannot be used.
    """
    from unet_core.training.run import settings_of_network, settings_of_run

    from_file = read_settings(file) if file is not None else {}
    given = {name: value for name, value in flags.items() if value is not None and (name, value) != (NETWORK_ARG, ())}
    settings = from_file | without_size(given)
    if "out" not in settings:
        raise ConfigError("--out: is missing, expected the folder of the run; see --help")
    if resume:
        settings = settings_of_run(Path(settings["out"])) | settings
    if "data" not in settings:
        raise ConfigError("DATA: is missing, expected the folder of images and masks; see --help")
    if settings.get("init_from") and not settings.keys() & {"network", "widths", "up", "channels"}:
        settings = settings_of_network(settings["init_from"]) | settings
    return make_config(settings, from_file, file)


if __name__ == "__main__":
    main()
