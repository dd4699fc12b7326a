"""From decoded JSON to the classes of the card's fields: exactly their fields, each checked."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from runtime.card_fields.checks import CHECK, WHEN_SET
from runtime.card_fields.network import ModuleConfig, SmpConfig, UNetConfig
from runtime.card_fields.pictures import InputSpec, OutputSpec
from runtime.card_fields.proof import Bf16Permission, Gate, Parity, Proof, ProofRow, Training
from runtime.errors import ModelError

ELSEWHERE = "elsewhere"
"""Key in the metadata of a dataclass's field that the JSON of a card does not hold."""

T = TypeVar("T")


def stored_fields(cls: type) -> set[str]:
    """Return the names of a dataclass's fields that the JSON of a card holds."""
    return {item.name for item in fields(cls) if ELSEWHERE not in item.metadata}


def fields_when_set(cls: type) -> set[str]:
    """Return the names of a dataclass's fields that the JSON of a card holds only if they are not None."""
    return {item.name for item in fields(cls) if WHEN_SET in item.metadata}


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

ARCHITECTURES: Mapping[str, type] = {"unet": UNetConfig, "module": ModuleConfig, "smp": SmpConfig}
"""Classes of the field `architecture`, by its kind."""


def build(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass from decoded JSON: exactly its fields, lists as tuples, nested records by `NESTED`.

    Raises:
        ModelError: a field is missing, unknown or out of bounds.
    """
    if not isinstance(data, dict):
        raise CHECK.refusal(where or "card", data, "a record")
    known = stored_fields(cls)
    prefix = f"{where}." if where else ""
    for name in sorted(known - data.keys() - fields_when_set(cls)):
        raise ModelError(f"card field {prefix}{name}: is missing; export the model again")
    for name in sorted(data.keys() - known):
        raise ModelError(f"card field {prefix}{reprlib.repr(name)}: is unknown; export the model again")
    values = {}
    for name, value in data.items():
        path = prefix + name
        nested = architecture_class(value) if path == "architecture" else NESTED.get(path)
        if nested is None:
            values[name] = tuple(value) if isinstance(value, list) else value
        elif value is None and path in OPTIONAL:
            values[name] = None
        elif path in LISTS and isinstance(value, list):
            values[name] = tuple(build(nested, item, path) for item in value)
        else:
            values[name] = build(nested, value, path)
    return cls(**values)


def architecture_class(data: Any) -> type:
    """Return the class of a decoded field `architecture`; raises a ModelError if its kind is missing or unknown."""
    if not isinstance(data, dict):
        raise CHECK.refusal("architecture", data, "a record")
    if "kind" not in data:
        raise ModelError("card field architecture.kind: is missing; export the model again")
    CHECK.choice("architecture.kind", data["kind"], tuple(ARCHITECTURES))
    return ARCHITECTURES[data["kind"]]


def read_permission(data: Any) -> Bf16Permission:
    """Make a permission of bf16 from decoded JSON; raises a ModelError as `build`."""
    return build(Bf16Permission, data, "bf16")
