"""TrainConfig: the one list of settings. Every field is a flag of `unet-train` and a key of its TOML file."""

# ruff: noqa: RUF009 - `setting` makes a dataclasses.field

import difflib
import os
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from runtime.card import (
    CHANNEL_COUNT,
    MAX_DEPTH,
    MAX_SIDE,
    MAX_WIDTH,
    Channels,
    Fit,
    InputSpec,
    OutputSpec,
    UNetConfig,
    Up,
)
from runtime.errors import ConfigError
from unet_core.data.augmentation import Augmentation
from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.pairs import Layout
from unet_core.losses import LOSSES_OF_ONE_CLASS, LOSSES_OF_SEVERAL, make_loss

Amp = Literal["auto", "off", "fp16", "bf16"]
Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["constant", "cosine", "plateau"]
ValidateAt = Literal["original", "trained"]

AUTO = "auto"
LOSSES = (AUTO, *dict.fromkeys((*LOSSES_OF_ONE_CLASS, *LOSSES_OF_SEVERAL)))
"""Names of losses; which of them suit depends on the number of classes."""

MAX_NAME = 200
"""Characters of a class's name, as the card takes them."""

SHOWN = 100
"""Characters of a refused value that a message shows."""


def setting(
    default: Any, section: str, text: str, *, bounds: tuple[float, float] | None = None, of_run: bool = False
) -> Any:
    """A field with what the command line says of it.

    `bounds` are inclusive. `of_run`: a resumed run cannot change it, since another value would make it another run.
    """
    return field(default=default, metadata={"section": section, "help": text, "bounds": bounds, "of_run": of_run})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a run; the command line's help explains each. Sizes are pixels, times as they are named.

    Raises:
        ConfigError: a setting has another type, is out of its bounds, or contradicts another one.
    """

    data: str = setting(MISSING, "run", "Folder of images and masks.")
    out: str = setting(MISSING, "run", "Folder of the run.")
    epochs: int = setting(3, "run", "Passes over the training images.", bounds=(1, 10**6))
    seed: int = setting(
        0, "run", "Of weights, order and augmentation: the same seed, the same run.", bounds=(0, 2**63 - 1), of_run=True
    )
    device: str = setting("auto", "run", "auto, cpu, cuda or cuda:N.")
    save_minutes: float = setting(
        10.0, "run", "Also save within an epoch, this often; 0: after epochs only.", bounds=(0, 1e6)
    )
    patience: int = setting(0, "run", "Stop after so many epochs without a better one; 0: never.", bounds=(0, 10**6))

    classes: tuple[str, ...] = setting(
        OutputSpec.classes, "data", "One name: masks of 0 and 255. Several: class indices, in this order.", of_run=True
    )
    ignore_index: int | None = setting(
        None, "data", "Value in the masks that neither loss nor metrics count.", bounds=(0, 255), of_run=True
    )
    masks: str = setting(Layout.masks, "data", "Masks are in train_MASKS/ and val_MASKS/.", of_run=True)
    channels: Channels = setting(InputSpec.channels, "data", "Colour or grey images.", of_run=True)
    height: int = setting(
        InputSpec.size[0], "data", "Images are brought to this size.", bounds=(4, MAX_SIDE), of_run=True
    )
    width: int = setting(
        InputSpec.size[1], "data", "Images are brought to this size.", bounds=(4, MAX_SIDE), of_run=True
    )
    fit: Fit = setting(
        InputSpec.fit,
        "data",
        "How: stretch, letterbox (bars keep the aspect ratio), or native (own size; training sees crops).",
        of_run=True,
    )
    foreground_share: float = setting(
        1 / 3, "data", "With native: share of crops that hold some foreground for sure.", bounds=(0, 1), of_run=True
    )
    augment: Augmentation = setting(
        "basic", "data", "basic: rotation, flips; strong: also scale, brightness, colour, blur.", of_run=True
    )
    val_share: float = setting(
        Layout.val_share,
        "data",
        "Share of images to validate on, where there is no val folder.",
        bounds=(0.001, 0.9),
        of_run=True,
    )
    group: str = setting(
        Layout.group,
        "data",
        "Images whose names agree up to the last of this stay on one side; empty: each by itself.",
        of_run=True,
    )
    validate_at: ValidateAt = setting("original", "data", "Size at which validation is measured.", of_run=True)

    widths: tuple[int, ...] = setting(UNetConfig.widths, "network", "Channels of each level from above.", of_run=True)
    up: Up = setting(UNetConfig.up, "network", "How maps grow again.", of_run=True)
    init_from: str = setting("", "network", "Checkpoint to start from, also one of another U-Net project.", of_run=True)

    loss: str = setting(AUTO, "optimisation", "auto: bce for one class, ce for several.", of_run=True)
    boundary_weight: float = setting(
        0.0, "optimisation", "Pixels near a boundary count so much more.", bounds=(0, 1000), of_run=True
    )
    batch_size: int = setting(16, "optimisation", "Images per batch, over all processes.", bounds=(1, 2**20))
    accumulate: int = setting(1, "optimisation", "Batches per step of the optimizer.", bounds=(1, 2**20))
    optimizer: Optimizer = setting("adam", "optimisation", "sgd and rmsprop use --momentum.", of_run=True)
    lr: float = setting(1e-4, "optimisation", "Learning rate, at its highest.", bounds=(1e-12, 1e3))
    momentum: float = setting(0.9, "optimisation", "Of sgd (Nesterov's) and rmsprop.", bounds=(0, 0.9999))
    weight_decay: float = setting(0.0, "optimisation", "Of convolutions; not of biases and norms.", bounds=(0, 10))
    schedule: Schedule = setting("constant", "optimisation", "How the learning rate falls.")
    plateau_epochs: int = setting(
        5, "optimisation", "With plateau: halve after so many epochs without a better one.", bounds=(1, 10**6)
    )
    warmup_epochs: float = setting(0.0, "optimisation", "The learning rate rises linearly so long.", bounds=(0, 1e6))
    clip_norm: float = setting(0.0, "optimisation", "Scale gradients down to this norm; 0: never.", bounds=(0, 1e9))
    ema: float = setting(
        0.0,
        "optimisation",
        "Decay of the weights' moving average (it grows to this), which is validated and kept; 0: none.",
        bounds=(0, 0.99999),
        of_run=True,
    )

    amp: Amp = setting("auto", "speed", "Mixed precision; auto: on CUDA bf16 or fp16, else off.")
    channels_last: bool = setting(True, "speed", "Memory layout of convolutions: usually faster.")
    compile: bool = setting(False, "speed", "torch.compile: minutes at first, faster steps.")
    workers: int | None = setting(
        None, "speed", "Processes that load images.  [default: CPU cores, at most 8]", bounds=(0, 1024)
    )
    cache_gb: float = setting(
        16.0, "speed", "Decoded images are kept on disk, up to so many gigabytes; 0: none.", bounds=(0, 1e6)
    )
    cache_dir: str = setting("", "speed", "Where.  [default: the user's cache folder]")
    tensorboard: bool = setting(True, "speed", "Write scalars and panels for TensorBoard.")

    def __post_init__(self) -> None:
        for name in _FIELDS:
            check(name, getattr(self, name))
        self._check_places()
        self._check_classes()
        self._check_loss()
        self._check_size()

    def _check_places(self) -> None:
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{flag(name)} '': expected a folder")
        if not self.masks or set(self.masks) & set("/\\"):
            raise ConfigError(f"--masks {self.masks!r}: expected the end of a folder's name, such as masks")

    def _check_classes(self) -> None:
        if not 1 <= len(self.classes) <= IGNORED:
            raise ConfigError(f"--classes: found {len(self.classes)} names, expected 1 to {IGNORED}")
        for name in self.classes:
            if not _is_name(name):
                raise ConfigError(
                    f"--classes: found the name {_shown(name)}, expected 1 to {MAX_NAME} printable characters without "
                    "commas, and without spaces at the ends"
                )
            if self.classes.count(name) > 1:
                raise ConfigError(f"--classes: found {name!r} twice, expected different names")
        if len(self.classes) == 1 and self.ignore_index == 0:
            raise ConfigError("--ignore-index 0: is the background of one name in --classes; expected another value")

    def _check_loss(self) -> None:
        count = len(self.classes)
        names = (AUTO, *(LOSSES_OF_ONE_CLASS if count == 1 else LOSSES_OF_SEVERAL))
        if self.loss not in names:
            raise ConfigError(f"--loss {_word(self.loss)}: expected one of {', '.join(names)} for {count} --classes")
        make_loss(self.loss_name, count, self.boundary_weight)  # whether they suit each other

    def _check_size(self) -> None:
        if not 1 <= len(self.widths) <= MAX_DEPTH:
            raise ConfigError(f"--widths: found {len(self.widths)} numbers, expected 1 to {MAX_DEPTH}")
        for width in self.widths:
            if not 1 <= width <= MAX_WIDTH:
                raise ConfigError(f"--widths {_shown(width)}: expected numbers from 1 to {MAX_WIDTH}")
        stride = self.architecture.stride
        for name in ("height", "width"):
            side = getattr(self, name)
            if side < 2 * stride or side % stride:
                near = max(2, round(side / stride)) * stride
                least = f", and at least {2 * stride}" if side < 2 * stride else ""
                raise ConfigError(
                    f"--{name} {side}: expected a multiple of {stride} for {len(self.widths)} --widths, such as {near}"
                    + least
                )

    @property
    def architecture(self) -> UNetConfig:
        """The network that these settings ask for."""
        return UNetConfig(
            in_channels=CHANNEL_COUNT[self.channels], classes=len(self.classes), widths=self.widths, up=self.up
        )

    @property
    def input(self) -> InputSpec:
        """What the network will see."""
        count = CHANNEL_COUNT[self.channels]
        return InputSpec(
            size=(self.height, self.width),
            channels=self.channels,
            mean=InputSpec.mean[:count],
            std=InputSpec.std[:count],
            fit=self.fit,
            stride=self.architecture.stride,
        )

    @property
    def output(self) -> OutputSpec:
        """What the network will answer."""
        return OutputSpec(classes=self.classes, activation="sigmoid" if len(self.classes) == 1 else "softmax")

    @property
    def labels(self) -> LabelSpec:
        """How the masks are read."""
        return LabelSpec(classes=self.classes, ignore_index=self.ignore_index)

    @property
    def loss_name(self) -> str:
        """The loss, with "auto" decided."""
        default = LOSSES_OF_ONE_CLASS[0] if len(self.classes) == 1 else LOSSES_OF_SEVERAL[0]
        return default if self.loss == AUTO else self.loss


_HINTS = get_type_hints(TrainConfig)


def hint_of(name: str) -> Any:
    """The type of a setting, as it is written above."""
    return _HINTS[name]


def flag(name: str) -> str:
    """How a setting is written on the command line; `data` is the argument without a flag."""
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def kind_of(hint: Any) -> tuple[type, bool]:
    """The type of a field's values, and whether None is one of them; a tuple's is that of its items' tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (item for item in get_args(hint) if item is not type(None))
        return kind_of(inner)[0], True
    if get_origin(hint) is Literal:
        return str, False
    return cast(type, get_origin(hint) or hint), False


def choices_of(hint: Any) -> tuple[str, ...]:
    """What a field may be, where its type lists that."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def check(setting: str, value: object) -> None:
    """Raise `ConfigError` where a setting's value has another type or is out of its bounds, whatever the others are."""
    hint, name = _HINTS[setting], flag(setting)
    kind, optional = kind_of(hint)
    if value is None and optional:
        return
    accepted = (int, float) if kind is float else (kind,)
    right = type(value) in accepted
    if isinstance(value, tuple) and right:
        right = all(type(part) is get_args(hint)[0] for part in value)
    if not right:
        raise ConfigError(f"{name} {_shown(value)}: expected {_described(hint)}")
    choices = choices_of(hint)
    if choices and value not in choices:
        raise ConfigError(f"{name} {_word(cast(str, value))}: expected one of {', '.join(choices)}")
    if isinstance(value, str) and "\0" in value:  # no path can hold it
        raise ConfigError(f"{name} {_shown(value)}: expected text without NUL characters")
    bounds = _FIELDS[setting].metadata["bounds"]
    if bounds is not None and not bounds[0] <= cast(float, value) <= bounds[1]:
        low, high = (bound if isinstance(bound, int) else f"{bound:.12g}" for bound in bounds)
        raise ConfigError(f"{name} {_shown(value)}: expected {low} to {high}")


def _shown(value: object) -> str:
    """A refused value as TOML would have it, within a line."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python's limit of digits in an integer that it writes
        text = "of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _word(text: str) -> str:
    return text if text.isprintable() else _shown(text)


def _described(hint: Any) -> str:
    if choices_of(hint):
        return f"one of {', '.join(choices_of(hint))}"
    kind, _ = kind_of(hint)
    if kind is tuple:
        return "a list of integers" if get_args(hint)[0] is int else "a list of names"
    return {int: "an integer", float: "a number", bool: "true or false"}.get(kind, "text")


def _is_name(text: str) -> bool:
    """Fit for a class: it can be written on the command line and in a line of a table."""
    return 1 <= len(text) <= MAX_NAME and text.isprintable() and text == text.strip() and "," not in text


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file, by their field names; lists become tuples.

    Raises:
        ConfigError: no such file, not TOML, a table, a key that is no setting (the nearest one is named) or is there
            twice, or a value of another type or out of its bounds.
    """
    settings: dict[str, Any] = {}
    for key, value in _parsed(path).items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: {key!r} is a table; expected settings outside of tables")
        name = known_name(key, path)
        if name in settings:
            raise ConfigError(f"{path}: found {name!r} twice, with a hyphen and with an underscore; leave one of them")
        settings[name] = tuple(value) if isinstance(value, list) else value
        try:
            check(name, settings[name])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return settings


def make_config(settings: Mapping[str, Any], of_file: Mapping[str, Any], file: object) -> TrainConfig:
    """`TrainConfig(**settings)`; an error that blames one of `of_file`, what a TOML file has, names the file."""
    try:
        return TrainConfig(**settings)
    except ConfigError as error:
        taken = {flag(name) for name, value in of_file.items() if settings[name] == value}
        named = [found for found in re.findall(r"--[\w-]+|DATA", str(error)) if found in map(flag, settings)]
        if named and named[0] in taken:
            raise ConfigError(f"{file}: {error}") from error
        raise


def _parsed(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))  # Windows' editors begin it with a mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of too many digits; nested too deeply
        raise ConfigError(f"{path}: is not TOML ({error})") from error


_FIELDS: Mapping[str, "Field[Any]"] = {item.name: item for item in fields(TrainConfig)}

ELSEWHERE = {"learning_rate": "lr", "precision": "amp", "gpu": "device", "image_size": "height"}
"""What others call a setting, where its own name is too different to be found as the nearest."""


def known_name(key: str, where: object) -> str:
    """The field that a key names, hyphens taken for underscores; else raises `ConfigError` with the nearest, if any."""
    name = key.replace("-", "_")
    if name in _FIELDS:
        return name
    near = difflib.get_close_matches(name.lower(), (*_FIELDS, *ELSEWHERE), n=1, cutoff=0.65)
    advice = (
        f"the nearest is {ELSEWHERE.get(near[0], near[0])!r}" if near else "python -m unet_core.train --help has all"
    )
    raise ConfigError(f"{where}: {_shown(key)} is no setting; {advice}")


def of_run() -> tuple[str, ...]:
    """Settings that a resumed run cannot change."""
    return tuple(name for name, item in _FIELDS.items() if item.metadata["of_run"])


def from_stored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a checkpoint holds them, with lists as tuples.

    Raises:
        ConfigError: they are not exactly those of this version.
    """
    strange = sorted(map(str, stored.keys() ^ _FIELDS.keys()))
    if strange:
        raise ConfigError(f"its settings are another version's ({', '.join(strange[:3])})")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
