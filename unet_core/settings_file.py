"""Settings that were written down: in a TOML file by a person, in a checkpoint by a run.

Importing this module imports neither PyTorch nor an image library.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.commands.console import started_as
from runtime.commands.suggestions import nearest
from runtime.errors import ConfigError
from runtime.support.sizes import parse_size, size_text
from unet_core.config import ENCODER_SETTINGS, FIELDS, SHOWN, TrainConfig, check, flag, shown_value
from unet_core.data.folders import SETTINGS
from unet_core.data.mask_values import classes_of

SIZE = "size"
"""Setting that stands for height and width: "WIDTHxHEIGHT" in a file, (height, width) as a flag."""

LATER = (
    *("max_pixels", "skip_bad", "class_offset", "mask_threshold", "colours", "levels", "network", "class_weights"),
    *ENCODER_SETTINGS,
)
"""Settings that the runs of older versions do not have; they take their defaults."""

Plain = str | int | float | None
"""Types of the values in settings, and of those in lists of them."""


def unused_settings(data: str | os.PathLike[str], file: Path | None, given: Mapping[str, Any]) -> str:
    """Return a note if a data set has settings of its own and neither a file nor `given` sets the classes, else ""."""
    own = Path(data) / SETTINGS
    if file is not None or {"classes", "colours"} & given.keys() or not own.is_file():
        return ""
    return f"{own}: is not used; give --config {shlex.quote(str(own))} to train on its classes"


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings in a TOML file, by their field names; lists become tuples, a size height and width.

    Raises:
        ConfigError: the file does not exist or is not TOML; it has a table, or a key that is not a setting (the message
            names the nearest one) or occurs twice; or a value has the wrong type or is out of bounds.
    """
    try:
        content = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))  # Windows' editors begin it with a mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:  # invalid TOML, UTF-8, too many digits; nested too deeply
        raise ConfigError(f"{path}: is not TOML ({error})") from error
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: {key!r} is a table; expected settings outside of tables")
        name = known_name(key, path)
        if name in settings:
            raise ConfigError(f"{path}: found {name!r} twice, with a hyphen and with an underscore; remove one of them")
        settings[name] = tuple(value) if isinstance(value, list) else value
        if name in ("device", "channels") and type(value) is int:
            settings[name] = str(value)  # the number of a GPU or of channels, as on the command line
        try:
            if name != SIZE:
                check(name, settings[name])
            elif not isinstance(value, str):  # of a list nobody can tell whether width or height is first
                raise ConfigError(f"--size {shown_value(value)}: expected text, for example '240x160'")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    try:
        return without_size(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def without_size(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with height and width in place of `SIZE`, if they hold that.

    Raises:
        ConfigError: it is no size, or height or width is given, too.
    """
    settings = dict(settings)
    size = settings.pop(SIZE, None)
    if size is None:
        return settings
    both = parse_size(size)
    if not isinstance(both, tuple) or len(both) != 2 or not all(type(side) is int for side in both):
        raise ConfigError(f"--size {shown_value(size)}: expected WIDTHxHEIGHT, for example '240x160'")
    for name in ("height", "width"):
        if settings.get(name) is not None:
            raise ConfigError(f"--size {size_text(both)}: sets {flag(name)} too; leave one of them out")
    return settings | {"height": both[0], "width": both[1]}


def make_config(settings: Mapping[str, Any], from_file: Mapping[str, Any], file: object) -> TrainConfig:
    """Make `TrainConfig(**settings)`; an error about a setting that came `from_file`, a TOML file, names that file.

    If colours are given and classes are not, the classes are those that the colours name.
    """
    try:
        if settings.get("colours") and "classes" not in settings:
            settings = {**settings, "classes": classes_of(settings["colours"])}
        return TrainConfig(**settings)
    except ConfigError as error:
        taken = {flag(name) for name, value in from_file.items() if settings[name] == value}
        named = [found for found in re.findall(r"--[\w-]+|DATA", str(error)) if found in map(flag, settings)]
        if named and named[0] in taken:
            raise ConfigError(f"{file}: {error}") from error
        raise


def known_name(key: str, where: object) -> str:
    """Return the field that a key names, or `SIZE`; hyphens count as underscores.

    Raises:
        ConfigError: there is no such setting; the message names the nearest one, if any.
    """
    name = key.replace("-", "_")
    if name in FIELDS or name == SIZE:
        return name
    near = nearest(key, [known.replace("_", "-") for known in (SIZE, *FIELDS)])
    advice = f"{started_as('unet-train', 'unet_core.train')} --help lists them all"
    if near:
        advice = f"the nearest is {near[0].partition(' ')[0].replace('-', '_')!r}"
    raise ConfigError(f"{where}: {shown_value(key)} is not a setting; {advice}")


def from_stored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint holds, with lists as tuples.

    Raises:
        ConfigError: they are not exactly the settings of this version, but for those of `LATER`, or damaged.
    """
    stored = {name: FIELDS[name].default for name in LATER} | dict(stored)
    strange = sorted(str(name) for name in stored.keys() ^ FIELDS.keys())
    if strange:
        raise ConfigError(f"its settings are another version's ({', '.join(name[:SHOWN] for name in strange[:3])})")
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    for name, value in settings.items():
        if not all(isinstance(part, Plain) for part in (value if isinstance(value, tuple) else [value])):
            raise ConfigError(f"its setting {name} is damaged (found a {type(value).__name__})")
    try:
        TrainConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"its settings are damaged ({error})") from error
    return settings
