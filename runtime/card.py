"""ModelCard: the input that a model expects and the output that it gives, carried inside the model's file.

Training creates the card, the checkpoint stores it, export embeds it in the ONNX file as JSON under the metadata key
`CARD_KEY`, and the runtime obeys it. The defaults of this module are the only place where size, normalisation,
threshold and class names are written down. It needs the standard library only.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from runtime.errors import ConfigError, ModelError
from runtime.support.validation import FieldChecks

CARD_KEY = "unet.card"
"""Key of the card in an ONNX file's metadata."""

RAW_KEY = "unet.raw"
"""Key of the card in the metadata of a raw export, which is a bare network and takes no images."""

SCHEMA = 2
"""Schema of the cards that are written; those of 1, which know U-Nets of this library only, are read for ever."""

MAX_SIDE = 32_768
MAX_CLASSES = 1_024
MAX_WIDTH = 65_536
MAX_DEPTH = 8
MAX_CHANNELS = 16
MAX_STRIDE = 1_024
MIN_SCALE = 1 / 64
MAX_FIXED_BATCH = 1_024
MAX_ENTRIES = 100
MAX_NAME = 200
"""Maximum number of characters of a name."""
MAX_TEXT = 1_000
"""Maximum number of characters of any other text."""

Up = Literal["transpose", "bilinear", "bilinear-wide"]
Channels = Literal["RGB", "L"]
"""Channels of pictures: colour or grey."""
InputChannels = Channels | Literal["raw"]
"""Channels of a network's input: of pictures, or any other number of them, which only arrays have."""
Fit = Literal["stretch", "letterbox", "native"]
Activation = Literal["sigmoid", "softmax", "sigmoids"]
"""Probabilities of one class; of several, of which a pixel has exactly one; or of several independent ones."""
Probabilities = Literal["softmax", "sigmoids"]
"""Activations of several classes."""
Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu"]
"""Devices that a file is written for: any, or CPUs, where it is faster than the other; see docs/winograd.md."""
Images = Literal["synthetic", "data"]
Compared = Images | Literal["pairs"]
"""Origin of compared images; "pairs" are inputs that an author's program answered itself."""
Reference = Literal["module", "reading", "pairs"]
"""The thing that a file was compared with: a network that somebody gave as code, which is this library's own where it
was trained here; this library's reading of a file that holds weights alone; or such a reading that gives the outputs of
its author's program for the same inputs."""

FixedShape = tuple[int, int, int]
"""(batch, height, width) of the only batches that a file takes."""

CHANNEL_COUNT: Mapping[str, int] = {"RGB": 3, "L": 1}
"""Channels of pictures; those of "raw" are counted by the card's means."""

NEVER_PADDED = "since the network looks at the whole picture at once, so that padding would change all of its answers"
"""Reason why sizes have to be multiples of the stride, where `InputSpec.padded` is False; it ends a message."""

ELSEWHERE = "elsewhere"
"""Key in the metadata of a dataclass's field that the JSON of a card does not hold."""

CHECK = FieldChecks(ModelError, "card field ")


def _check_texts(name: str, value: Mapping[str, str]) -> None:
    """Raise a ModelError unless a field maps names to texts."""
    CHECK.mapping(name, value, MAX_ENTRIES, MAX_NAME)
    for key, text in value.items():
        CHECK.text(f"{name}.{key}", text, 0, MAX_TEXT)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The dimensions of a U-Net.

    `widths` are the channels of each level from the top. The bottleneck below has twice the last width. With `up`
    "bilinear" it has the last width instead, and each decoder level narrows to the width of the level above it.
    `classes` is the number of output channels.
    """

    in_channels: int = 3
    classes: int = 1
    widths: tuple[int, ...] = (64, 128, 256, 512)
    up: Up = "transpose"
    kind: Literal["unet"] = "unet"

    def __post_init__(self) -> None:
        CHECK.choice("architecture.kind", self.kind, ("unet",))
        CHECK.choice("architecture.in_channels", self.in_channels, tuple(CHANNEL_COUNT.values()))
        CHECK.integer("architecture.classes", self.classes, 1, MAX_CLASSES)
        CHECK.length("architecture.widths", self.widths, 1, MAX_DEPTH)
        for width in self.widths:
            CHECK.integer("architecture.widths", width, 1, MAX_WIDTH)
        CHECK.choice("architecture.up", self.up, get_args(Up))

    @property
    def stride(self) -> int:
        """Divisor of the network's input height and width: 2 ** number of poolings."""
        return int(2 ** len(self.widths))

    @property
    def summary(self) -> str:
        """The network in a few words."""
        return f"U-Net of widths {','.join(map(str, self.widths))}"

    @property
    def convolutions(self) -> int:
        """Number of convolutions: two in a block, one for each transposed upsampling, and the last one."""
        levels = len(self.widths)
        return 2 * (2 * levels + 1) + (levels if self.up == "transpose" else 0) + 1


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """A network of another architecture, by the qualified name of its class. Nothing is ever imported by that name."""

    name: str
    in_channels: int = 3
    classes: int = 1
    kind: Literal["module"] = "module"

    def __post_init__(self) -> None:
        CHECK.choice("architecture.kind", self.kind, ("module",))
        CHECK.text("architecture.name", self.name, 1, MAX_NAME)
        CHECK.integer("architecture.in_channels", self.in_channels, 1, MAX_CHANNELS)
        CHECK.integer("architecture.classes", self.classes, 1, MAX_CLASSES)

    @property
    def summary(self) -> str:
        """The network in a few words."""
        return self.name


Architecture = UNetConfig | ModuleConfig


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The image that the graph expects.

    Attributes:
        size: (height, width) in training.
        channels: "RGB", "L" (grey) or "raw" (arrays only, of as many channels as `mean` has values).
        mean: of each channel, for values scaled to 0..1.
        std: of each channel, for values scaled to 0..1.
        fit: treatment of images with another size. "stretch" resizes them, "letterbox" keeps their aspect ratio and
            pads, "native" leaves them as they are, or at a fraction of that: `scale`.
        scale: with fit "native", fraction of an image's own height and width that the network sees.
        stride: divisor of the network's input height and width; the graph pads to it.
        padded: False for a network that looks at the whole picture at once, as one that normalises over it does.
            Padding would change all of its answers, so images have to have sizes that are multiples of the stride.
        min_size: (height, width) of the smallest image that the network takes.
        fixed_batch: number of images in a batch of a file that takes one shape only, in which all images have `size`;
            None for files that take any number of images of any size.
    """

    size: tuple[int, int] = (160, 240)
    channels: InputChannels = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: Fit = "stretch"
    scale: float = 1.0
    stride: int = 16
    padded: bool = True
    min_size: tuple[int, int] = (1, 1)
    fixed_batch: int | None = None

    def __post_init__(self) -> None:
        CHECK.length("input.size", self.size, 2, 2)
        for side in self.size:
            CHECK.integer("input.size", side, 1, MAX_SIDE)
        CHECK.choice("input.channels", self.channels, (*get_args(Channels), "raw"))
        count = CHANNEL_COUNT.get(self.channels)
        CHECK.length("input.mean", self.mean, count or 1, count or MAX_CHANNELS)
        count = len(self.mean)
        CHECK.length("input.std", self.std, count, count)
        for mean in self.mean:
            CHECK.number("input.mean", mean, -1e3, 1e3)
        for std in self.std:
            CHECK.number("input.std", std, 1e-6, 1e3)
        CHECK.choice("input.fit", self.fit, get_args(Fit))
        CHECK.number("input.scale", self.scale, MIN_SCALE, 1)
        if self.scale != 1 and self.fit != "native":
            raise CHECK.refusal("input.scale", self.scale, f"1 with fit {self.fit}")
        CHECK.integer("input.stride", self.stride, 1, MAX_STRIDE)
        CHECK.choice("input.padded", self.padded, (True, False))
        if not self.padded and any(side % self.stride for side in self.size):
            raise CHECK.refusal("input.size", self.size, f"multiples of {self.stride}, {NEVER_PADDED}")
        CHECK.length("input.min_size", self.min_size, 2, 2)
        for least, side in zip(self.min_size, self.size, strict=True):
            CHECK.integer("input.min_size", least, 1, side)
        if self.fixed_batch is not None:
            CHECK.integer("input.fixed_batch", self.fixed_batch, 1, MAX_FIXED_BATCH)
            if self.fit == "native":
                raise CHECK.refusal("input.fixed_batch", self.fixed_batch, "null with fit native, whose sizes vary")

    @property
    def fixed_shape(self) -> FixedShape | None:
        """(batch, height, width) of the only batches that the file takes; None if it takes any."""
        return None if self.fixed_batch is None else (self.fixed_batch, *self.size)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the only images that the file takes; None if it takes any."""
        return None if self.fixed_batch is None else self.size


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The meaning of the probabilities: one class with a sigmoid, several with a softmax or with a sigmoid each.

    With a softmax a pixel has the most probable class. With sigmoids it has each class whose probability is above
    `threshold`: several classes, one, or none.
    """

    classes: tuple[str, ...] = ("car",)
    activation: Activation = "sigmoid"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        CHECK.length("output.classes", self.classes, 1, MAX_CLASSES)
        for name in self.classes:
            CHECK.text("output.classes", name, 1, MAX_NAME)
        if len(set(self.classes)) != len(self.classes):
            raise CHECK.refusal("output.classes", self.classes, "different names")
        CHECK.choice("output.activation", self.activation, get_args(Activation))
        if (self.activation == "sigmoid") != (len(self.classes) == 1):
            expected = "sigmoid for one class, softmax or sigmoids for several"
            raise CHECK.refusal("output.activation", self.activation, expected)
        CHECK.number("output.threshold", self.threshold, 1e-6, 1 - 1e-6)

    @property
    def thresholded(self) -> bool:
        """True if another threshold changes the answer."""
        return self.activation != "softmax"

    @property
    def overlapping(self) -> bool:
        """True if a pixel may have several classes at once, or none of several."""
        return self.activation == "sigmoids"

    @property
    def first_foreground(self) -> int:
        """Index of the first class of the foreground: the first of several classes is the background."""
        return 0 if self.thresholded else 1

    @property
    def planes(self) -> int:
        """Number of planes of a mask: one, or of classes that overlap one for each."""
        return len(self.classes) if self.overlapping else 1

    def with_threshold(self, threshold: float) -> "OutputSpec":
        """Return the same with another threshold, as a caller gives it for one answer.

        Raises:
            ConfigError: it is not between 0 and 1, or the model takes the most probable one of several classes.
        """
        if not self.thresholded:
            raise ConfigError(
                f"threshold: is for one class, this model has {len(self.classes)} and takes the most probable; "
                "compare result.probability[index] with a number of your own"
            )
        try:
            return replace(self, threshold=float(threshold))
        except (ModelError, TypeError, ValueError) as error:
            raise ConfigError(f"threshold: found {threshold!r}, expected a number between 0 and 1") from error


def default_classes(count: int, activation: Activation) -> tuple[str, ...]:
    """Return the names of so many classes, if nothing tells."""
    if count == 1:
        return ("foreground",)
    exclusive = count == 2 and activation == "softmax"
    return ("background", "foreground") if exclusive else tuple(f"class {index}" for index in range(count))


@dataclass(frozen=True, kw_only=True)
class Training:
    """Origin of the weights: epochs trained, fingerprint of the data, validation metrics (0..1) by name."""

    epochs: int
    data: str
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        CHECK.integer("training.epochs", self.epochs, 0, 10**9)
        CHECK.text("training.data", self.data, 0, MAX_TEXT)
        CHECK.mapping("training.metrics", self.metrics, MAX_ENTRIES, MAX_NAME)
        for name, value in self.metrics.items():
            CHECK.number(f"training.metrics.{name}", value, -1e9, 1e9)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Distance of answer A from answer B on the same image.

    Attributes:
        max_abs_error: max |pA - pB|.
        flipped: share (0..1) of the pixels whose class differs; of classes that overlap, any of them.
        iou: IoU of the two masks, the mean over the classes that occur.
        flip_distance: largest distance of B from its decision among the flipped pixels. Near 0 a flip is arithmetic,
            far from 0 it is a bug.
    """

    max_abs_error: float
    flipped: float
    iou: float
    flip_distance: float

    def __post_init__(self) -> None:
        for item in fields(self):
            CHECK.number(f"proof.{item.name}", getattr(self, item.name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """Parity on one input; `shape` is (batch, height, width), `images` the kind of images.

    On "pairs" PyTorch was compared with its author's outputs, on all others the file with PyTorch.
    """

    shape: tuple[int, int, int]
    images: Compared
    parity: Parity

    def __post_init__(self) -> None:
        CHECK.length("proof.rows.shape", self.shape, 3, 3)
        for side in self.shape:
            CHECK.integer("proof.rows.shape", side, 1, MAX_SIDE)
        CHECK.choice("proof.rows.images", self.images, (*get_args(Images), "pairs"))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The loss of a file of lower precision against fp32 on real images, and the verdict on it.

    Attributes:
        images: kind of images.
        count: number of images.
        flipped: share (0..1) of their pixels whose class differs from fp32.
        image_dice: image Dice of this file against masks; None without masks.
        image_dice_fp32: image Dice of the fp32 file; None without masks.
        kept: names of the layers that stayed in fp32.
        passed: False if the loss was too large and the file was written because the user insisted.
        layers: number of layers of the network; None in files from before it was noted, which are U-Nets.
    """

    images: Images
    count: int
    flipped: float
    image_dice: float | None
    image_dice_fp32: float | None
    kept: tuple[str, ...]
    passed: bool
    layers: int | None = None

    def __post_init__(self) -> None:
        CHECK.choice("proof.gate.images", self.images, get_args(Images))
        CHECK.integer("proof.gate.count", self.count, 1, 10**9)
        CHECK.number("proof.gate.flipped", self.flipped, 0, 1)
        if (self.image_dice is None) != (self.image_dice_fp32 is None):
            raise CHECK.refusal(
                "proof.gate.image_dice_fp32", self.image_dice_fp32, "a number with image_dice, else none"
            )
        for name in ("image_dice", "image_dice_fp32"):
            if getattr(self, name) is not None:
                CHECK.number(f"proof.gate.{name}", getattr(self, name), 0, 1)
        CHECK.length("proof.gate.kept", self.kept, 0, 1_000)
        for layer in self.kept:
            CHECK.text("proof.gate.kept", layer, 1, MAX_NAME)
        CHECK.choice("proof.gate.passed", self.passed, (True, False))
        if self.layers is not None:
            CHECK.integer("proof.gate.layers", self.layers, max(1, len(self.kept)), 10**6)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Parity of the exported graph with PyTorch, and the provider and versions that measured it.

    `reference` is what the file was compared with. `tolerance` is the largest error that passes; a file below fp32 has
    a `gate` instead. `golden_error` is the file's
    error on the golden sample at export: against PyTorch, or below fp32 between two ways to compute the file.
    """

    provider: str
    versions: Mapping[str, str]
    tolerance: float | None
    rows: tuple[ProofRow, ...]
    golden_error: float
    gate: Gate | None = None
    reference: Reference = "module"

    def __post_init__(self) -> None:
        CHECK.choice("proof.reference", self.reference, get_args(Reference))
        CHECK.text("proof.provider", self.provider, 1, MAX_NAME)
        _check_texts("proof.versions", self.versions)
        if self.tolerance is not None:
            CHECK.number("proof.tolerance", self.tolerance, 0, 1)
        CHECK.length("proof.rows", self.rows, 1, 1_000)
        CHECK.number("proof.golden_error", self.golden_error, 0, 1)

    @property
    def max_abs_error(self) -> float:
        """The largest error of all rows, which is the smallest tolerance that would have passed."""
        return max(row.parity.max_abs_error for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Bf16Permission:
    """The verdict that devices may compute a file in bf16 where they are faster so, and the loss that it stands on.

    Attributes:
        gate: the loss against fp32 on real images; without `passed` nothing is permitted.
        max_flipped: largest share (0..1) of flipped pixels that passed; None: an int8 file's own limits were kept.
        golden_error: largest error on the golden sample in bf16, at export.
        max_abs_error: largest error in bf16 on the pictures of the proof, against the file's answers without bf16.
        provider: the program that computed in bf16, with its version.
    """

    gate: Gate
    max_flipped: float | None
    golden_error: float
    max_abs_error: float
    provider: str

    def __post_init__(self) -> None:
        for name in ("golden_error", "max_abs_error"):
            CHECK.number(f"bf16.{name}", getattr(self, name), 0, 1)
        if self.max_flipped is not None:
            CHECK.number("bf16.max_flipped", self.max_flipped, 0, 1)
        CHECK.text("bf16.provider", self.provider, 1, MAX_NAME)

    @classmethod
    def from_data(cls, data: Any) -> "Bf16Permission":
        """Make a permission of decoded JSON; raises a ModelError as `ModelCard.from_json`."""
        return _build(cls, data, "bf16")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that a program must know to use a model; see the classes of its fields.

    `bf16` travels with the golden sample, since versions without it refuse cards with a field that they do not know.

    Raises:
        ModelError: a field is out of bounds or contradicts another one; the message names the field.
    """

    name: str
    producer: Mapping[str, str]
    architecture: Architecture
    input: InputSpec
    output: OutputSpec
    weights_sha256: str
    precision: Precision = "fp32"
    target: Target = "any"
    training: Training | None = None
    proof: Proof | None = None
    bf16: Bf16Permission | None = field(default=None, metadata={ELSEWHERE: True})
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        _refuse_newer(self.schema)
        CHECK.integer("schema", self.schema, SCHEMA, SCHEMA)
        CHECK.text("name", self.name, 1, MAX_NAME)
        _check_texts("producer", self.producer)
        CHECK.choice("precision", self.precision, get_args(Precision))
        CHECK.choice("target", self.target, get_args(Target))
        CHECK.text("weights_sha256", self.weights_sha256, 64, 64)
        if set(self.weights_sha256) - set("0123456789abcdef"):
            raise CHECK.refusal("weights_sha256", self.weights_sha256, "64 hexadecimal digits")
        if self.target == "cpu" and self.precision != "fp32":
            raise CHECK.refusal("precision", self.precision, "fp32 with target cpu")
        if len(self.input.mean) != self.architecture.in_channels:
            raise CHECK.refusal("input.channels", self.input.channels, f"{self.architecture.in_channels} channels")
        if isinstance(self.architecture, UNetConfig) and self.input.stride != self.architecture.stride:
            raise CHECK.refusal("input.stride", self.input.stride, f"{self.architecture.stride}, 2 ** depth")
        if not self.input.padded and self.input.fit == "native" and self.input.stride > 1:
            raise CHECK.refusal("input.fit", self.input.fit, f"stretch or letterbox, {NEVER_PADDED}")
        if len(self.output.classes) != self.architecture.classes:
            raise CHECK.refusal("output.classes", self.output.classes, f"{self.architecture.classes} names")
        if self.proof is not None:
            exact = self.precision == "fp32"
            if exact != (self.proof.gate is None):
                raise CHECK.refusal(
                    "proof.gate", self.proof.gate, f"{'none' if exact else 'one'} with {self.precision}"
                )
            if exact != (self.proof.tolerance is not None):
                expected = f"{'a number' if exact else 'none'} with {self.precision}"
                raise CHECK.refusal("proof.tolerance", self.proof.tolerance, expected)

    def to_json(self) -> str:
        """Return the card as JSON with sorted keys, without `bf16`; equal cards give equal text."""
        known = asdict(self)
        return json.dumps({name: known[name] for name in stored_fields(type(self))}, sort_keys=True, allow_nan=False)

    @property
    def allows_bf16(self) -> bool:
        """True if devices may compute the file in bf16."""
        return self.bf16 is not None and self.bf16.gate.passed

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card and check every field.

        Raises:
            ModelError: the text is not JSON, a field is missing, unknown or out of bounds, or the schema is newer.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"card: is not JSON ({error}); export the model again") from error
        if isinstance(data, dict):
            _refuse_newer(data.get("schema"))  # before fields that this version does not know
            if type(data.get("schema")) is int and data["schema"] == 1:
                data = _of_schema_1(data)
        return _build(cls, data, "")


def _of_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return decoded JSON of schema 1 as schema 2 has it: new fields have the value that every such file stands for.

    A file with a training was made by this library from its own network; one without, from weights that it recognised.
    """
    reference = "reading" if data.get("training") is None else "module"
    later = {
        "architecture": {"kind": "unet"},
        "input": {"min_size": [1, 1], "padded": True, "scale": 1.0, "fixed_batch": None},
        "proof": {"reference": reference},
    }
    filled = {"target": "any"} | data | {"schema": SCHEMA}
    for name, fields_of_2 in later.items():
        if isinstance(data.get(name), dict):
            filled[name] = fields_of_2 | data[name]
    proof = filled.get("proof")
    if isinstance(proof, dict) and isinstance(proof.get("gate"), dict):
        proof["gate"] = {"layers": None} | proof["gate"]
    return filled


def _refuse_newer(schema: object) -> None:
    """Raise a ModelError if the schema is newer than this version."""
    if type(schema) is int and schema > SCHEMA:
        raise ModelError(
            f"card field schema: found {reprlib.repr(schema)}, this version reads up to {SCHEMA}; upgrade unet-deploy"
        )


T = TypeVar("T")


def stored_fields(cls: type) -> set[str]:
    """Return the names of a dataclass's fields that the JSON of a card holds."""
    return {item.name for item in fields(cls) if ELSEWHERE not in item.metadata}


NESTED: Mapping[str, type] = {
    "input": InputSpec,
    "output": OutputSpec,
    "training": Training,
    "proof": Proof,
    "proof.rows": ProofRow,
    "proof.rows.parity": Parity,
    "proof.gate": Gate,
    "bf16.gate": Gate,
}
"""Classes of the fields that are records, or lists of records."""

OPTIONAL, LISTS = {"training", "proof", "proof.gate"}, {"proof.rows"}

ARCHITECTURES: Mapping[str, type] = {"unet": UNetConfig, "module": ModuleConfig}
"""Classes of the field `architecture`, by its kind."""


def _build(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass from decoded JSON: exactly its fields, lists as tuples, nested records by `NESTED`.

    Raises:
        ModelError: a field is missing, unknown or out of bounds.
    """
    if not isinstance(data, dict):
        raise CHECK.refusal(where or "card", data, "a record")
    known = stored_fields(cls)
    prefix = f"{where}." if where else ""
    for name in sorted(known - data.keys()):
        raise ModelError(f"card field {prefix}{name}: is missing; export the model again")
    for name in sorted(data.keys() - known):
        raise ModelError(f"card field {prefix}{reprlib.repr(name)}: is unknown; export the model again")
    values = {}
    for name, value in data.items():
        path = prefix + name
        nested = _architecture_class(value) if path == "architecture" else NESTED.get(path)
        if nested is None:
            values[name] = tuple(value) if isinstance(value, list) else value
        elif value is None and path in OPTIONAL:
            values[name] = None
        elif path in LISTS and isinstance(value, list):
            values[name] = tuple(_build(nested, item, path) for item in value)
        else:
            values[name] = _build(nested, value, path)
    return cls(**values)


def _architecture_class(data: Any) -> type:
    """Return the class of a decoded field `architecture`; raises a ModelError if its kind is missing or unknown."""
    if not isinstance(data, dict):
        raise CHECK.refusal("architecture", data, "a record")
    if "kind" not in data:
        raise ModelError("card field architecture.kind: is missing; export the model again")
    CHECK.choice("architecture.kind", data["kind"], tuple(ARCHITECTURES))
    return ARCHITECTURES[data["kind"]]
