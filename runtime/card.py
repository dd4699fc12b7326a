"""ModelCard: what a model expects and what it answers, carried inside the file that needs it.

Training creates the card, the checkpoint stores it, export embeds it in the ONNX file as JSON under the metadata key
`CARD_KEY`, and the runtime obeys it. The defaults of this module are the only place where size, normalisation,
threshold and class names are written down. Standard library only.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from runtime.errors import ModelError

CARD_KEY = "unet.card"
"""Key of the card in an ONNX file's metadata."""

RAW_KEY = "unet.raw"
"""Key of the card in a raw export's metadata: a bare network, which takes no images."""

SCHEMA = 1
MAX_SIDE = 32_768
MAX_CLASSES = 1_024
MAX_WIDTH = 65_536
MAX_DEPTH = 8

Up = Literal["transpose", "bilinear", "bilinear-wide"]
Channels = Literal["RGB", "L"]
Fit = Literal["stretch", "letterbox", "native"]
Activation = Literal["sigmoid", "softmax"]
Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu"]
"""What a file is written for: any device, or CPUs, on which it is faster than the other; see docs/winograd.md."""
Images = Literal["synthetic", "data"]

CHANNEL_COUNT: Mapping[str, int] = {"RGB": 3, "L": 1}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The dimensions of a U-Net.

    `widths` are the channels of each level from the top; the bottleneck below has twice the last width. Only with `up`
    "bilinear" it has the last width, and each level of the decoder narrows to the width of the level above it.
    `classes` is the number of channels of the answer.
    """

    in_channels: int = 3
    classes: int = 1
    widths: tuple[int, ...] = (64, 128, 256, 512)
    up: Up = "transpose"

    def __post_init__(self) -> None:
        _choice("architecture.in_channels", self.in_channels, tuple(CHANNEL_COUNT.values()))
        _integer("architecture.classes", self.classes, 1, MAX_CLASSES)
        _length("architecture.widths", self.widths, 1, MAX_DEPTH)
        for width in self.widths:
            _integer("architecture.widths", width, 1, MAX_WIDTH)
        _choice("architecture.up", self.up, get_args(Up))

    @property
    def stride(self) -> int:
        """Height and width of what the network sees are multiples of this: 2 ** number of poolings."""
        return int(2 ** len(self.widths))


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What an image has to look like before the graph; `size` is (height, width) as trained.

    `mean` and `std`, one per channel, belong to values scaled to 0..1. `fit` tells how an image of another size is
    brought to `size`: "stretch" resizes it, "letterbox" keeps its aspect ratio and pads, "native" leaves it alone.
    """

    size: tuple[int, int] = (160, 240)
    channels: Channels = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: Fit = "stretch"
    stride: int = 16

    def __post_init__(self) -> None:
        _length("input.size", self.size, 2, 2)
        for side in self.size:
            _integer("input.size", side, 1, MAX_SIDE)
        _choice("input.channels", self.channels, get_args(Channels))
        count = CHANNEL_COUNT[self.channels]
        _length("input.mean", self.mean, count, count)
        _length("input.std", self.std, count, count)
        for mean in self.mean:
            _number("input.mean", mean, -1e3, 1e3)
        for std in self.std:
            _number("input.std", std, 1e-6, 1e3)
        _choice("input.fit", self.fit, get_args(Fit))
        _choice("input.stride", self.stride, tuple(2**depth for depth in range(1, MAX_DEPTH + 1)))


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What the probabilities mean: one class with a sigmoid and a threshold, or several with a softmax."""

    classes: tuple[str, ...] = ("car",)
    activation: Activation = "sigmoid"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _length("output.classes", self.classes, 1, MAX_CLASSES)
        for name in self.classes:
            _text("output.classes", name, 1, 200)
        if len(set(self.classes)) != len(self.classes):
            raise _refusal("output.classes", self.classes, "different names")
        _choice("output.activation", self.activation, get_args(Activation))
        if (self.activation == "sigmoid") != (len(self.classes) == 1):
            raise _refusal("output.activation", self.activation, "sigmoid for one class, softmax for several")
        _number("output.threshold", self.threshold, 1e-6, 1 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from: epochs trained, fingerprint of the data, validation metrics (0..1) by name."""

    epochs: int
    data: str
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        _integer("training.epochs", self.epochs, 0, 10**9)
        _text("training.data", self.data, 0, 1_000)
        _mapping("training.metrics", self.metrics)
        for name, value in self.metrics.items():
            _number(f"training.metrics.{name}", value, -1e9, 1e9)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far answer A is from answer B on the same image.

    `max_abs_error` is max |pA - pB|; `flipped` the share (0..1) of pixels whose class differs; `iou` that of the two
    masks (mean over the classes that occur); `flip_distance` the largest distance of B from its decision among the
    flipped pixels: near 0 it is arithmetic, far from 0 it is a bug.
    """

    max_abs_error: float
    flipped: float
    iou: float
    flip_distance: float

    def __post_init__(self) -> None:
        for item in fields(self):
            _number(f"proof.{item.name}", getattr(self, item.name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """Parity of one checked input; `shape` is (batch, height, width), `images` what was shown."""

    shape: tuple[int, int, int]
    images: Images
    parity: Parity

    def __post_init__(self) -> None:
        _length("proof.rows.shape", self.shape, 3, 3)
        for side in self.shape:
            _integer("proof.rows.shape", side, 1, MAX_SIDE)
        _choice("proof.rows.images", self.images, get_args(Images))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a file of lower precision loses on real images against fp32, and whether that was little enough.

    `count` images were shown, `flipped` is the share (0..1) of their pixels whose class differs. `image_dice` and
    `image_dice_fp32` are against their masks, or None where there are none. `kept` names the layers that stayed in
    fp32. With `passed` false the file was written because somebody insisted.
    """

    images: Images
    count: int
    flipped: float
    image_dice: float | None
    image_dice_fp32: float | None
    kept: tuple[str, ...]
    passed: bool

    def __post_init__(self) -> None:
        _choice("proof.gate.images", self.images, get_args(Images))
        _integer("proof.gate.count", self.count, 1, 10**9)
        _number("proof.gate.flipped", self.flipped, 0, 1)
        if (self.image_dice is None) != (self.image_dice_fp32 is None):
            raise _refusal("proof.gate.image_dice_fp32", self.image_dice_fp32, "a number with image_dice, else none")
        for name in ("image_dice", "image_dice_fp32"):
            if getattr(self, name) is not None:
                _number(f"proof.gate.{name}", getattr(self, name), 0, 1)
        _length("proof.gate.kept", self.kept, 0, 1_000)
        for layer in self.kept:
            _text("proof.gate.kept", layer, 1, 200)
        _choice("proof.gate.passed", self.passed, (True, False))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Parity of the exported graph against PyTorch, and where it was measured.

    `tolerance` is the largest error that passes; a file below fp32 has a `gate` instead. `golden_error` is its error on
    the golden sample where it was exported: against PyTorch, or below fp32 between two ways to compute the file.
    """

    provider: str
    versions: Mapping[str, str]
    tolerance: float | None
    rows: tuple[ProofRow, ...]
    golden_error: float
    gate: Gate | None = None

    def __post_init__(self) -> None:
        _text("proof.provider", self.provider, 1, 200)
        _texts("proof.versions", self.versions)
        if self.tolerance is not None:
            _number("proof.tolerance", self.tolerance, 0, 1)
        _length("proof.rows", self.rows, 1, 1_000)
        _number("proof.golden_error", self.golden_error, 0, 1)

    @property
    def max_abs_error(self) -> float:
        """The largest error of all rows, and the smallest tolerance that would have passed."""
        return max(row.parity.max_abs_error for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything that a program needs to know to use a model; see the fields' classes.

    Raises:
        ModelError: a field is out of its bounds or contradicts another one; the message names the field.
    """

    name: str
    producer: Mapping[str, str]
    architecture: UNetConfig
    input: InputSpec
    output: OutputSpec
    weights_sha256: str
    precision: Precision = "fp32"
    target: Target = "any"
    training: Training | None = None
    proof: Proof | None = None
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        if type(self.schema) is int and self.schema > SCHEMA:
            raise ModelError(
                f"card field schema: found {reprlib.repr(self.schema)}, this version reads up to {SCHEMA}; "
                "upgrade unet-deploy"
            )
        _integer("schema", self.schema, SCHEMA, SCHEMA)
        _text("name", self.name, 1, 200)
        _texts("producer", self.producer)
        _choice("precision", self.precision, get_args(Precision))
        _choice("target", self.target, get_args(Target))
        _text("weights_sha256", self.weights_sha256, 64, 64)
        if set(self.weights_sha256) - set("0123456789abcdef"):
            raise _refusal("weights_sha256", self.weights_sha256, "64 hexadecimal digits")
        self._check_agreement()

    def _check_agreement(self) -> None:
        if self.target == "cpu" and self.precision != "fp32":
            raise _refusal("precision", self.precision, "fp32 with target cpu")
        if CHANNEL_COUNT[self.input.channels] != self.architecture.in_channels:
            raise _refusal("input.channels", self.input.channels, f"{self.architecture.in_channels} channels")
        if self.input.stride != self.architecture.stride:
            raise _refusal("input.stride", self.input.stride, f"{self.architecture.stride}, 2 ** depth")
        if len(self.output.classes) != self.architecture.classes:
            raise _refusal("output.classes", self.output.classes, f"{self.architecture.classes} names")
        if self.proof is not None:
            exact = self.precision == "fp32"
            if exact != (self.proof.gate is None):
                raise _refusal("proof.gate", self.proof.gate, f"{'none' if exact else 'one'} with {self.precision}")
            if exact != (self.proof.tolerance is not None):
                expected = f"{'a number' if exact else 'none'} with {self.precision}"
                raise _refusal("proof.tolerance", self.proof.tolerance, expected)

    def to_json(self) -> str:
        """The card as JSON with sorted keys: equal cards give equal text."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card, checking every field.

        Raises:
            ModelError: not JSON, a field is missing, unknown or out of bounds, or the schema is newer.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"card: is not JSON ({error}); export the model again") from error
        if isinstance(data, dict) and type(data.get("schema")) is int and data["schema"] > SCHEMA:
            raise ModelError(
                f"card field schema: found {reprlib.repr(data['schema'])}, this version reads up to {SCHEMA}; "
                "upgrade unet-deploy"
            )
        return _build(cls, data, "")


T = TypeVar("T")

_NESTED: Mapping[str, type] = {
    "architecture": UNetConfig,
    "input": InputSpec,
    "output": OutputSpec,
    "training": Training,
    "proof": Proof,
    "proof.rows": ProofRow,
    "proof.rows.parity": Parity,
    "proof.gate": Gate,
}
_OPTIONAL = {"training", "proof", "proof.gate"}
_LISTS = {"proof.rows"}
_LATER = {"target"}
"""Fields that files from before they came do not have."""


def _build(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass from decoded JSON: exactly its fields, lists as tuples, nested records by `_NESTED`."""
    if not isinstance(data, dict):
        raise _refusal(where or "card", data, "a record")
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in sorted(known - data.keys() - (set() if where else _LATER)):
        raise ModelError(f"card field {prefix}{name}: is missing; export the model again")
    for name in sorted(data.keys() - known):
        raise ModelError(f"card field {prefix}{reprlib.repr(name)}: is unknown; export the model again")
    return cls(**{name: _value(value, prefix + name) for name, value in data.items()})


def _value(value: Any, where: str) -> Any:
    nested = _NESTED.get(where)
    if nested is None:
        return tuple(value) if isinstance(value, list) else value
    if value is None and where in _OPTIONAL:
        return None
    if where in _LISTS and isinstance(value, list):
        return tuple(_build(nested, item, where) for item in value)
    return _build(nested, value, where)


def _refusal(name: str, found: object, expected: str) -> ModelError:
    return ModelError(f"card field {name}: found {reprlib.repr(found)}, expected {expected}")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _refusal(name, value, f"an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise _refusal(name, value, f"a number from {low:g} to {high:g}")


def _text(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, str) or not low <= len(value) <= high:
        raise _refusal(name, value, f"text of {low} to {high} characters")


def _choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in choices):  # True == 1 == 1.0
        raise _refusal(name, value, "one of " + ", ".join(map(str, choices)))


def _length(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, tuple) or not low <= len(value) <= high:
        raise _refusal(name, value, f"{low} values" if low == high else f"{low} to {high} values")


def _mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or len(value) > 100:
        raise _refusal(name, value, "a record of at most 100 entries")
    for key in value:
        _text(name, key, 1, 200)


def _texts(name: str, value: object) -> None:
    _mapping(name, value)
    assert isinstance(value, Mapping)
    for key, text in value.items():
        _text(f"{name}.{key}", text, 0, 1_000)
