"""ModelCard: the input that a model expects and the output that it gives, carried inside the model's file.

Training creates the card, the checkpoint stores it, export embeds it in the ONNX file as JSON under the metadata key
`CARD_KEY`, and the runtime obeys it. The defaults of its classes are the only place where size, normalisation,
threshold and class names are written down. It needs the standard library only.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from runtime.card_fields.checks import (
    CHANNEL_COUNT,
    CHECK,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_ENTRIES,
    MAX_NAME,
    MAX_SIDE,
    MAX_TEXT,
    check_texts,
)
from runtime.card_fields.json_form import ELSEWHERE, build, fields_when_set, read_permission, stored_fields
from runtime.card_fields.network import (
    MAX_DEPTH,
    MAX_WIDTH,
    RESERVED,
    ModuleConfig,
    Option,
    SmpConfig,
    SmpName,
    UNetConfig,
    Up,
)
from runtime.card_fields.pictures import (
    MAX_FIXED_BATCH,
    MAX_LEVEL,
    MAX_STRIDE,
    MIN_SCALE,
    NEVER_PADDED,
    Activation,
    Channels,
    Fit,
    FixedShape,
    InputChannels,
    InputSpec,
    Levels,
    OutputSpec,
    Probabilities,
    default_classes,
)
from runtime.card_fields.proof import (
    Bf16Permission,
    Compared,
    Gate,
    Images,
    Parity,
    Proof,
    ProofRow,
    Reference,
    Training,
)
from runtime.errors import ModelError

__all__ = [
    "CARD_KEY",
    "CHANNEL_COUNT",
    "CHECK",
    "MAX_CHANNELS",
    "MAX_CLASSES",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_FIXED_BATCH",
    "MAX_LEVEL",
    "MAX_NAME",
    "MAX_SIDE",
    "MAX_STRIDE",
    "MAX_TEXT",
    "MAX_WIDTH",
    "MIN_SCALE",
    "NEVER_PADDED",
    "RAW_KEY",
    "RESERVED",
    "SCHEMA",
    "Activation",
    "Architecture",
    "Bf16Permission",
    "Channels",
    "Compared",
    "Fit",
    "FixedShape",
    "Gate",
    "Images",
    "InputChannels",
    "InputSpec",
    "Levels",
    "ModelCard",
    "ModuleConfig",
    "Option",
    "OutputSpec",
    "Parity",
    "Precision",
    "Probabilities",
    "Proof",
    "ProofRow",
    "Reference",
    "SmpConfig",
    "SmpName",
    "Target",
    "Training",
    "UNetConfig",
    "Up",
    "default_classes",
    "read_permission",
]

CARD_KEY = "unet.card"
"""Key of the card in an ONNX file's metadata."""

RAW_KEY = "unet.raw"
"""Key of the card in the metadata of a raw export, which is a bare network and takes no images."""

SCHEMA = 2
"""Schema of the cards that are written; those of 1, which know U-Nets of this library only, are read for ever."""

Architecture = UNetConfig | ModuleConfig | SmpConfig
Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["any", "cpu"]
"""Devices that a file is written for: any, or CPUs, where it is faster than the other; see docs/winograd.md."""


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
        check_texts("producer", self.producer)
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
        for name in fields_when_set(InputSpec):
            if known["input"][name] is None:
                del known["input"][name]
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
        return build(cls, data, "")


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
