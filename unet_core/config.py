"""TrainConfig: the one list of settings. Every field is a flag of `unet-train` and a key of its TOML file.

Importing this module imports neither PyTorch nor an image library, so that `unet-train --help` works without them.
"""

# ruff: noqa: RUF009 - `setting` makes a dataclasses.field

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from runtime.card import (
    CHANNEL_COUNT,
    MAX_CHANNELS,
    MAX_DEPTH,
    MAX_SIDE,
    MAX_WIDTH,
    RESERVED,
    Fit,
    InputChannels,
    InputSpec,
    OutputSpec,
    SmpConfig,
    SmpName,
    UNetConfig,
    Up,
)
from runtime.errors import ConfigError, ModelError
from runtime.image_files.limits import MAX_PIXELS, MOST_PIXELS, LimitsByOption
from unet_core.data.augmentation import Augmentation
from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.levels import parse_levels
from unet_core.data.pairs import Layout
from unet_core.losses import LOSSES, ClassWeights, find_loss, loss_names
from unet_core.model_options import parse_arguments

Amp = Literal["auto", "off", "fp16", "bf16"]
OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "plateau"]
ValidateAt = Literal["original", "trained"]
NetworkName = Literal[
    "unet", "smp.Unet", "smp.UnetPlusPlus", "smp.MAnet", "smp.Linknet", "smp.FPN", "smp.DeepLabV3Plus", "smp.Segformer"
]
"""The U-Net of this library, or a network of segmentation_models_pytorch."""

OWN_SETTINGS = ("widths", "up")
ENCODER_SETTINGS = ("encoder", "encoder_weights", "network_arg", "encoder_lr_scale", "freeze_encoder")
"""Settings of this library's U-Net alone, and of the other networks alone."""

AUTO = "auto"
LOSS_NAMES = (AUTO, *dict.fromkeys(entry.name for entry in LOSSES))
"""Names of losses for any number of classes."""

MAX_NAME = 200
"""Maximum length of a class's name, in characters, as in the card."""

SHOWN = 100
"""Maximum length of an invalid value in a message, in characters."""


def setting(
    default: Any, section: str, text: str, *, bounds: tuple[float, float] | None = None, fixed: bool = False
) -> Any:
    """Make a field with its section and help text on the command line.

    `bounds` are inclusive. `fixed` settings cannot change when a run is resumed, since another value would make it
    another run.
    """
    return field(default=default, metadata={"section": section, "help": text, "bounds": bounds, "fixed": fixed})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run, each explained by its help text. Sizes are in pixels.

    Raises:
        ConfigError: a setting has the wrong type, is out of bounds, or contradicts another one.
    """

    data: str = setting(MISSING, "run", "Folder of images and masks.")
    out: str = setting(MISSING, "run", "Folder to write checkpoints, metrics and pictures to.")
    epochs: int = setting(3, "run", "Number of passes over the training images.", bounds=(1, 10**6))
    seed: int = setting(
        0,
        "run",
        "Seed for initial weights, order of images and augmentation; the same seed repeats the same run.",
        bounds=(0, 2**63 - 1),
        fixed=True,
    )
    device: str = setting(
        "auto", "run", "Device to train on: auto, cpu, gpu, cuda or cuda:N (or N). auto: a GPU if there is one."
    )
    save_minutes: float = setting(
        10.0, "run", "Minutes between saves within an epoch; 0: save after each epoch only.", bounds=(0, 1e6)
    )
    patience: int = setting(
        0, "run", "Stop after this many epochs without a better one; 0: train all --epochs.", bounds=(0, 10**6)
    )

    classes: tuple[str, ...] = setting(
        OutputSpec.classes,
        "data",
        "Names of the classes. One name: masks hold 0 and 255. Several: masks hold the index of each pixel's class.",
        fixed=True,
    )
    ignore_index: int | None = setting(
        None,
        "data",
        "Value in the masks whose pixels do not count in losses and metrics, such as 255.",
        bounds=(0, 255),
        fixed=True,
    )
    class_offset: int = setting(
        Layout.class_offset,
        "data",
        "Value of the first of several classes in the masks; 1, with --ignore-index 0, where 0 stands for no class.",
        bounds=(0, 255),
        fixed=True,
    )
    masks: str = setting(
        Layout.masks, "data", "Name of the mask folders: masks are in train_MASKS/ and val_MASKS/.", fixed=True
    )
    mask_threshold: int | None = setting(
        Layout.mask_threshold,
        "data",
        "Mask value from which on a pixel is foreground, such as 128, for JPEG or antialiased masks of one class.",
        bounds=(1, 255),
        fixed=True,
    )
    colours: tuple[str, ...] = setting(
        Layout.colours,
        "data",
        "Colours of the classes in RGB masks: NAME=#RRGGBB,... These names are the --classes unless you give them; "
        "background and ignore are understood too.",
        fixed=True,
    )
    channels: str = setting(
        InputSpec.channels,
        "data",
        "Channels of the network's input: RGB for colour images, L for grey, or a number from 1 to 16 for images of as "
        "many channels, all of which are used: TIFF, .npy and .npz files, or RGBA with 4.",
        fixed=True,
    )
    levels: str = setting(
        AUTO,
        "data",
        "Stored values of images that become 0 and 255: auto (the bits that training images of more than 8 bits use), "
        "full (the whole range), percentile (all but 0.1 % of the values at each end), or LOW,HIGH such as 0,4095.",
        fixed=True,
    )
    height: int = setting(
        InputSpec.size[0], "data", "Height of the network's input, in pixels.", bounds=(4, MAX_SIDE), fixed=True
    )
    width: int = setting(
        InputSpec.size[1], "data", "Width of the network's input, in pixels.", bounds=(4, MAX_SIDE), fixed=True
    )
    fit: Fit = setting(
        InputSpec.fit,
        "data",
        "Bring images to that size by stretching them (stretch), by scaling them and adding bars (letterbox), or train "
        "on crops of that size and predict whole images (native).",
        fixed=True,
    )
    foreground_share: float = setting(
        1 / 3, "data", "Share of crops chosen to contain foreground, with --fit native.", bounds=(0, 1), fixed=True
    )
    augment: Augmentation = setting(
        "basic",
        "data",
        "Augmentation of training images. basic: rotation and flips. strong: also scale, brightness, colour and blur.",
        fixed=True,
    )
    val_share: float = setting(
        Layout.val_share,
        "data",
        "Share of the training images to validate on, for data without val_images/.",
        bounds=(0.001, 0.9),
        fixed=True,
    )
    group: str = setting(
        Layout.group,
        "data",
        "Separator in file names, for data without val_images/: images with the same name up to the last separator are "
        "never split between training and validation, unless all have the same one. Empty: split image by image.",
        fixed=True,
    )
    skip_bad: bool = setting(
        False,
        "data",
        "Leave out pairs of image and mask that cannot be used, instead of refusing the data. They are counted, and "
        "listed in files.csv.",
        fixed=True,
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "data",
        "Largest image or mask to decode, in pixels (width times height); above the default, decoding may take "
        "proportionally more memory.",
        bounds=(1, MOST_PIXELS),
    )
    validate_at: ValidateAt = setting(
        "original",
        "data",
        "Size at which validation is measured: each image's own (original), or the network's (trained), which is "
        "faster for very large images.",
        fixed=True,
    )

    network: NetworkName = setting(
        "unet",
        "network",
        "Network to train: this library's U-Net, or one of segmentation_models_pytorch with an encoder that may be "
        "pretrained (extra: encoders).",
        fixed=True,
    )
    encoder: str = setting(
        "resnet34",
        "network",
        "With --network smp.NAME: encoder, by the name that segmentation_models_pytorch has for it; tu-NAME is timm's.",
        fixed=True,
    )
    encoder_weights: str = setting(
        "imagenet",
        "network",
        "With --network smp.NAME: weights to start the encoder from. A name such as imagenet: downloaded by "
        "segmentation_models_pytorch. A file: read from it. none: random weights.",
        fixed=True,
    )
    network_arg: tuple[str, ...] = setting(
        (),
        "network",
        "With --network smp.NAME: an option of that class, NAME=VALUE as in TOML, such as "
        "decoder_channels=[128,64,32,16,8]; may be repeated.",
        fixed=True,
    )
    widths: tuple[int, ...] = setting(
        UNetConfig.widths, "network", "Channels of each level of the network, from the top.", fixed=True
    )
    up: Up = setting(
        UNetConfig.up,
        "network",
        "Upsampling in the decoder: by transposed convolutions, or bilinear, where bilinear-wide has more channels.",
        fixed=True,
    )
    init_from: str = setting(
        "", "network", "Checkpoint to start from, of this library or of another U-Net project.", fixed=True
    )

    loss: str = setting(
        AUTO,
        "optimisation",
        "Loss to minimise. auto: bce for one class and ce for several, with dice where foreground is rare.",
        fixed=True,
    )
    boundary_weight: float = setting(
        0.0,
        "optimisation",
        "Extra weight of pixels near a boundary between classes, in bce, ce and focal.",
        bounds=(0, 1000),
        fixed=True,
    )
    class_weights: ClassWeights = setting(
        "none",
        "optimisation",
        "Weight of each class's pixels in bce, ce and focal. median: the rarer a class in its images, the more its "
        "pixels count (median frequency balancing). sqrt: square roots of these weights, which are milder.",
        fixed=True,
    )
    batch_size: int = setting(
        16, "optimisation", "Images per batch, over all processes; lower it if memory runs out.", bounds=(1, 2**20)
    )
    accumulate: int = setting(
        1, "optimisation", "Batches per optimizer step; raise it when a larger batch does not fit.", bounds=(1, 2**20)
    )
    optimizer: OptimizerName = setting("adam", "optimisation", "Optimizer; sgd and rmsprop use --momentum.", fixed=True)
    lr: float = setting(1e-4, "optimisation", "Highest learning rate.", bounds=(1e-12, 1e3))
    encoder_lr_scale: float = setting(
        1.0,
        "optimisation",
        "With --network smp.NAME: learning rate of the encoder, as a factor of --lr; 0.1 keeps pretrained weights near "
        "to what they were.",
        bounds=(0, 100),
    )
    freeze_encoder: int = setting(
        0,
        "optimisation",
        "With --network smp.NAME: number of first epochs in which the encoder stays as it is, and the rest is trained.",
        bounds=(0, 10**6),
        fixed=True,
    )
    momentum: float = setting(0.9, "optimisation", "Momentum of sgd (Nesterov) and rmsprop.", bounds=(0, 0.9999))
    weight_decay: float = setting(
        0.0, "optimisation", "Weight decay of convolutions; biases and norms have none.", bounds=(0, 10)
    )
    schedule: ScheduleName = setting(
        "constant",
        "optimisation",
        "Schedule of the learning rate: constant, falling to 0 by the last epoch (cosine), or halved when validation "
        "no longer improves (plateau).",
    )
    plateau_epochs: int = setting(
        5,
        "optimisation",
        "Epochs without a better one after which --schedule plateau halves the learning rate.",
        bounds=(1, 10**6),
    )
    warmup_epochs: float = setting(
        0.0,
        "optimisation",
        "Epochs, or a fraction of one, in which the learning rate rises linearly from 0.",
        bounds=(0, 1e6),
    )
    clip_norm: float = setting(
        0.0, "optimisation", "Maximum norm of the gradients, which are scaled down to it; 0: no limit.", bounds=(0, 1e9)
    )
    ema: float = setting(
        0.0,
        "optimisation",
        "Decay of a moving average of the weights, such as 0.99, which is then validated and saved; 0: no average.",
        bounds=(0, 0.99999),
        fixed=True,
    )

    amp: Amp = setting(
        "auto", "speed", "Mixed precision. auto: bf16 or fp16 on GPUs with tensor cores, else off (fp32)."
    )
    channels_last: bool = setting(
        True, "speed", "Store channels last in memory (NHWC), which is usually faster for convolutions."
    )
    compile: bool = setting(
        False, "speed", "Compile the network with torch.compile: minutes at the start, then faster steps."
    )
    workers: int | None = setting(
        None, "speed", "Number of processes that load images.  [default: CPU cores, at most 8]", bounds=(0, 1024)
    )
    cache_gb: float = setting(
        16.0, "speed", "Disk space for decoded images, in gigabytes; 0: decode in every epoch.", bounds=(0, 1e6)
    )
    cache_dir: str = setting("", "speed", "Folder for decoded images.  [default: the user's cache folder]")
    tensorboard: bool = setting(True, "speed", "Write metrics and pictures for TensorBoard.")

    def __post_init__(self) -> None:
        for name in FIELDS:
            check(name, getattr(self, name))
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{flag(name)} '': expected a folder")
        if not self.masks or set(self.masks) & set("/\\"):
            raise ConfigError(f"--masks {self.masks!r}: expected the end of a folder's name, such as masks")
        if self.channels not in (*CHANNEL_COUNT, *map(str, range(1, MAX_CHANNELS + 1))):
            raise ConfigError(
                f"--channels {_printable(self.channels)}: expected RGB, L, or a number of channels from 1 to "
                f"{MAX_CHANNELS}"
            )
        self._check_classes()
        self.layout.values.check(self.classes, self.ignore_index, self.class_offset)
        parse_levels(self.levels)
        count = len(self.classes)
        names = (AUTO, *loss_names(count))
        if self.loss not in names:
            raise ConfigError(
                f"--loss {_printable(self.loss)}: expected one of {', '.join(names)} for {count} --classes"
            )
        find_loss(
            self.loss_name, count, self.boundary_weight, self.class_weights
        )  # raises where these contradict each other
        self._check_network()
        self._check_size()

    def _check_classes(self) -> None:
        if not 1 <= len(self.classes) <= IGNORED:
            raise ConfigError(f"--classes: found {len(self.classes)} names, expected 1 to {IGNORED}")
        for name in self.classes:
            # A name can be written on the command line and in a line of a table.
            if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip() or "," in name:
                raise ConfigError(
                    f"--classes: found the name {shown_value(name)}, expected 1 to {MAX_NAME} printable characters "
                    "without commas, and without spaces at the ends"
                )
            if self.classes.count(name) > 1:
                raise ConfigError(f"--classes: found {name!r} twice, expected different names")
        if len(self.classes) == 1 and self.ignore_index == 0:
            raise ConfigError("--ignore-index 0: is the background when --classes has one name; expected another value")
        if self.class_offset and not 1 < len(self.classes) <= IGNORED + 1 - self.class_offset:
            raise ConfigError(
                f"--class-offset {self.class_offset}: found {len(self.classes)} --classes, expected several, whose "
                f"values end at {IGNORED} or before"
            )
        self._check_ignored()

    def _check_ignored(self) -> None:
        """Refuse to ignore the value of a class: names that are shifted by one look like that."""
        last = self.class_offset + len(self.classes) - 1
        ignored = -1 if self.ignore_index is None else self.ignore_index
        if len(self.classes) == 1 or not self.class_offset <= ignored <= last:
            return
        name, way = self.classes[ignored - self.class_offset], ""
        if ignored == self.class_offset < IGNORED + 1 - len(self.classes):
            way = f"add --class-offset {ignored + 1} if {name!r} has the value {ignored + 1} in the masks, or "
        elif ignored == last:
            way = f"leave {name!r} out of --classes if {ignored} stands for no class, or "
        raise ConfigError(
            f"--ignore-index {ignored}: is also the value of the class {name!r}, so its pixels would not count; "
            f"{way}name the --classes in the order of their values and ignore none of them"
        )

    def _check_network(self) -> None:
        own = self.network == "unet"
        for name in ENCODER_SETTINGS if own else OWN_SETTINGS:
            value = getattr(self, name)
            if value != FIELDS[name].default:
                other = "smp.Unet or another smp.NAME" if own else "unet"
                raise ConfigError(
                    f"{flag(name)} {setting_text(value)}: goes with --network {other}, found --network {self.network}; "
                    "leave it out"
                )
        if own:
            return
        if not self.encoder_weights:
            raise ConfigError("--encoder-weights '': expected a name such as imagenet, a file, or none")
        for name in parse_arguments(self.network_arg).keys() & RESERVED:
            raise ConfigError(f"--network-arg {name}: has a setting of its own, or changes the answer; leave it out")
        try:
            _ = self.architecture
        except ModelError as error:
            text = re.sub(r"^options\.?", "network-arg ", str(error).partition("architecture.")[2])
            raise ConfigError(f"--{text}") from error

    def _check_size(self) -> None:
        if not 1 <= len(self.widths) <= MAX_DEPTH:
            raise ConfigError(f"--widths: found {len(self.widths)} numbers, expected 1 to {MAX_DEPTH}")
        for width in self.widths:
            if not 1 <= width <= MAX_WIDTH:
                raise ConfigError(f"--widths {shown_value(width)}: expected numbers from 1 to {MAX_WIDTH}")
        stride = self.architecture.stride
        for name in ("height", "width"):
            side = getattr(self, name)
            if side < 2 * stride or side % stride:
                near = max(2, round(side / stride)) * stride
                least = f", and at least {2 * stride}" if side < 2 * stride else ""
                network = f"{len(self.widths)} --widths" if self.network == "unet" else f"--network {self.network}"
                raise ConfigError(
                    f"--{name} {side}: expected a multiple of {stride} for {network}, such as {near}" + least
                )

    @property
    def input_channels(self) -> InputChannels:
        """The channels of the network's input, as its card names them."""
        return cast(InputChannels, self.channels if self.channels in CHANNEL_COUNT else "raw")

    @property
    def channel_count(self) -> int:
        """The number of channels of the network's input."""
        return CHANNEL_COUNT.get(self.channels) or int(self.channels)

    @property
    def architecture(self) -> UNetConfig | SmpConfig:
        """The network of these settings."""
        count, classes = self.channel_count, len(self.classes)
        if self.network == "unet":
            return UNetConfig(in_channels=count, classes=classes, widths=self.widths, up=self.up)
        return SmpConfig(
            name=cast(SmpName, self.network.removeprefix("smp.")),
            encoder=self.encoder,
            in_channels=count,
            classes=classes,
            options=parse_arguments(self.network_arg),
        )

    @property
    def input(self) -> InputSpec:
        """The input of the network, for its card; levels that the images have to tell are missing."""
        return InputSpec(
            size=(self.height, self.width),
            channels=self.input_channels,
            mean=(0.0,) * self.channel_count,
            std=(1.0,) * self.channel_count,
            fit=self.fit,
            stride=self.architecture.stride,
            levels=parse_levels(self.levels),
        )

    @property
    def output(self) -> OutputSpec:
        """The output of the network, for its card."""
        return OutputSpec(classes=self.classes, activation="sigmoid" if len(self.classes) == 1 else "softmax")

    @property
    def labels(self) -> LabelSpec:
        """The meaning of the values in the masks."""
        return LabelSpec(classes=self.classes, ignore_index=self.ignore_index, class_offset=self.class_offset)

    @property
    def layout(self) -> Layout:
        """The names of folders, what is split off to validate on, and the settings by which masks are read."""
        return Layout(
            masks=self.masks,
            class_offset=self.class_offset,
            val_share=self.val_share,
            group=self.group,
            mask_threshold=self.mask_threshold,
            colours=self.colours,
            arrays=self.input_channels == "raw",
        )

    @property
    def limits(self) -> LimitsByOption:
        """The largest images and masks that are decoded."""
        return LimitsByOption.for_pixels(self.max_pixels)

    @property
    def loss_name(self) -> str:
        """The name of the loss, with "auto" resolved."""
        return loss_names(len(self.classes))[0] if self.loss == AUTO else self.loss


HINTS = get_type_hints(TrainConfig)
FIELDS: Mapping[str, "Field[Any]"] = {item.name: item for item in fields(TrainConfig)}


def flag(name: str) -> str:
    """Return the flag of a setting; `data` is the argument without a flag."""
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def value_type(hint: Any) -> tuple[type, bool]:
    """Return the type of a field's values, and True if None is allowed too; a list of values is a tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (item for item in get_args(hint) if item is not type(None))
        return value_type(inner)[0], True
    if get_origin(hint) is Literal:
        return str, False
    return cast(type, get_origin(hint) or hint), False


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values that a field's type lists; () for other types."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def check(setting: str, value: object) -> None:
    """Check a setting by itself.

    Raises:
        ConfigError: the value has the wrong type or is out of bounds.
    """
    hint, name = HINTS[setting], flag(setting)
    kind, optional = value_type(hint)
    if value is None and optional:
        return
    choices = choices_of(hint)
    fits = type(value) in ((int, float) if kind is float else (kind,))
    if isinstance(value, tuple) and fits:
        fits = all(type(part) is get_args(hint)[0] for part in value)
    if not fits:
        expected = {int: "an integer", float: "a number", bool: "true or false"}.get(kind, "text")
        if choices:
            expected = f"one of {', '.join(choices)}"
        elif kind is tuple:
            expected = "a list of integers" if get_args(hint)[0] is int else "a list of names"
        raise ConfigError(f"{name} {shown_value(value)}: expected {expected}")
    if choices and value not in choices:
        raise ConfigError(f"{name} {_printable(cast(str, value))}: expected one of {', '.join(choices)}")
    if isinstance(value, str) and "\0" in value:  # no path can hold it
        raise ConfigError(f"{name} {shown_value(value)}: expected text without NUL characters")
    bounds = FIELDS[setting].metadata["bounds"]
    if bounds is not None and not bounds[0] <= cast(float, value) <= bounds[1]:
        low, high = (bound if isinstance(bound, int) else f"{bound:.12g}" for bound in bounds)
        raise ConfigError(f"{name} {shown_value(value)}: expected {low} to {high}")


def shown_value(value: object) -> str:
    """Write an invalid value as in TOML, on one line of at most `SHOWN` characters."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python's limit of digits in an integer that it writes
        text = "of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def setting_text(value: object) -> str:
    """Write a setting as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _printable(text: str) -> str:
    return text if text.isprintable() else shown_value(text)


def fixed_settings() -> tuple[str, ...]:
    """Return the settings that cannot change when a run is resumed."""
    return tuple(name for name, item in FIELDS.items() if item.metadata["fixed"])
