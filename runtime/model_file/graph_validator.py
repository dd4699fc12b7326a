"""Checks of an ONNX file before ONNX Runtime opens it: does it reach outside, or claim more than it holds?

A graph is a program. While ONNX Runtime makes a session, it opens other files that tensors name, allocates memory for
the dimensions that they claim, and copies functions to their calls. `check_model` walks the whole file once in its wire
format (onnx.proto; the tables below hold its field numbers) and skips the weights. It skips unknown fields, as ONNX
Runtime does. It does not judge the graph's computation or its memory, so a file from a stranger still needs a process
with limits.

No U-Net needs the following, so they are refused: sparse tensors (short in the file, of any size in memory), the file's
own functions (a short chain of them expands to any number of nodes), training graphs, and values that are not tensors.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from runtime.errors import ModelError
from runtime.model_file.metadata import MAX_METADATA
from runtime.model_file.opening import open_wire
from runtime.model_file.protobuf_reader import BYTES, FIXED32, FIXED64, VARINT, Wire, WireError, field, signed

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Domains of the operators that are built into ONNX Runtime.

`unet-export` and its quantiser write operators of "" only. A model that ONNX Runtime has optimised and saved also has
com.microsoft and com.microsoft.nchwc. Any other domain needs a library, which is never loaded here."""

FORBIDDEN = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "Snpe", "TritonOp"})
"""Operators that load compiled code, such as a TensorRT engine, or call functions of a program."""

MAX_NODES = 10_000
"""Maximum number of nodes in a file with its inner graphs. The deepest U-Net of a card has about 500 in int8."""
MAX_DEPTH = 8
"""Maximum depth of graphs within graphs (branches, loop bodies)."""
MAX_RANK = 16
"""Maximum number of dimensions of a tensor."""
MAX_SIDE = 2**31 - 1
"""Maximum of each dimension."""
MAX_ELEMENTS = 2**40
"""Maximum number of elements of an input or computed value. A stored tensor must have its bytes in the file."""
MAX_NAME = 1_024
"""Maximum length of a name, in bytes."""
MAX_TEXT = 2**20
"""Maximum length of a documentation text or note, in bytes."""

READ_BY_ALL = (10, 23)
"""IR version and opset that every supported ONNX Runtime reads."""

FLOATS, INT32S, STRINGS, INT64S, DOUBLES, UINT64S, RAW = 4, 5, 6, 7, 10, 11, 9

STORED: Mapping[int, tuple[int, int]] = (  # element type -> (field of its values unless raw, bits)
    {1: (FLOATS, 32), 14: (FLOATS, 64), 11: (DOUBLES, 64), 15: (DOUBLES, 128), 8: (STRINGS, 0)}
    | {6: (INT32S, 32), 7: (INT64S, 64), 12: (UINT64S, 32), 13: (UINT64S, 64)}
    | dict.fromkeys((4, 5, 10, 16), (INT32S, 16))
    | dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), (INT32S, 8))
    | dict.fromkeys((21, 22, 23), (INT32S, 4))
    | dict.fromkeys((25, 26), (INT32S, 2))
)


@dataclass(frozen=True, kw_only=True)
class _FieldRule:
    """Rules for a field of a message.

    `kinds`: wire formats that it may have; `many`: it may be repeated; `limit`: its maximum length in bytes; `refused`:
    name of its content if no file may have the field.
    """

    kinds: tuple[int, ...] = (BYTES,)
    many: bool = False
    limit: int | None = None
    refused: str = ""


_NUMBER, _INNER, _INNERS = _FieldRule(kinds=(VARINT,)), _FieldRule(), _FieldRule(many=True)
_NUMBERS = _FieldRule(kinds=(BYTES, VARINT), many=True)
_NAME, _NAMES = _FieldRule(limit=MAX_NAME), _FieldRule(limit=MAX_NAME, many=True)
_TEXT, _NOTES = _FieldRule(limit=MAX_TEXT), _FieldRule(limit=MAX_TEXT, many=True)
_SPARSE = _FieldRule(refused="a sparse tensor")
_NO_TENSOR = _FieldRule(refused="a value that is not a tensor")

_MODEL = (
    {1: _NUMBER, 2: _NAME, 3: _NAME, 4: _NAME, 5: _NUMBER, 6: _TEXT, 7: _INNER, 8: _INNERS}
    | {14: _FieldRule(many=True, limit=MAX_METADATA)}
    | {20: _FieldRule(refused="a training graph"), 25: _FieldRule(refused="its own function")}
)
_OPSET = {1: _NAME, 2: _NUMBER}
_GRAPH = {1: _INNERS, 2: _NAME, 5: _INNERS, 10: _TEXT, 15: _SPARSE, 16: _NOTES} | dict.fromkeys((11, 12, 13), _INNERS)
_NODE = {1: _NAMES, 2: _NAMES, 3: _NAME, 4: _NAME, 5: _INNERS, 6: _TEXT, 7: _NAME, 8: _NAME, 9: _NOTES}
_ATTRIBUTE = (
    {1: _NAME, 5: _INNER, 6: _INNER, 10: _INNERS, 11: _INNERS, 13: _TEXT, 14: _INNER, 15: _INNERS, 21: _NAME}
    | {20: _NUMBER, 22: _SPARSE, 23: _SPARSE}
)  # fmt: skip
_TENSOR = (
    {1: _NUMBERS, 2: _NUMBER, 8: _NAME, RAW: _INNER, 12: _TEXT, 13: _INNERS, 14: _NUMBER, 16: _NOTES}
    | {FLOATS: _FieldRule(kinds=(BYTES, FIXED32), many=True), DOUBLES: _FieldRule(kinds=(BYTES, FIXED64), many=True)}
    | {INT32S: _NUMBERS, INT64S: _NUMBERS, UINT64S: _NUMBERS, STRINGS: _INNERS}
)
_VALUE = {1: _NAME, 2: _INNER, 3: _TEXT, 4: _NOTES}
_TYPE = {1: _INNER, 6: _NAME} | dict.fromkeys((4, 5, 7, 8, 9), _NO_TENSOR)
_TENSOR_TYPE = {1: _NUMBER, 2: _INNER}
_SHAPE = {1: _INNERS}
_DIMENSION = {1: _NUMBER, 2: _NAME, 3: _NAME}


def check_model(path: str | os.PathLike[str]) -> None:
    """Raise an error for an ONNX file that is not safe to open, or that the installed ONNX Runtime cannot read.

    This is one pass over the file without its weights: milliseconds for a U-Net, at most a second or two.

    Raises:
        ModelError: the file does not exist or is damaged; it stores tensors in other files; it has operators of a
            domain that is not built into ONNX Runtime; its tensors have other sizes than their bytes, or absurd ones;
            it has too many nodes, or graphs nested too deep; its ONNX version is newer than ONNX Runtime reads.
    """
    with open_wire(path) as (wire, size):
        _Check(os.fspath(path), wire).model(size)


class _Check:
    """A walk over one file; each method reads one message of onnx.proto, `length` bytes long."""

    def __init__(self, path: str, wire: Wire) -> None:
        self.path, self.wire, self.nodes = path, wire, 0

    def parts(self, message: Mapping[int, _FieldRule], length: int) -> Iterator[tuple[int, int, int]]:
        """Yield the known fields of a message after checking each by its rules."""
        seen = set()
        for number, kind, value in self.wire.fields(length):
            part = message.get(number)
            if part is None:
                continue
            if part.refused:
                raise self.refusal(f"has {part.refused}", "none")
            if kind not in part.kinds:
                raise WireError("a field has another kind than in ONNX")
            if number in seen and not part.many:  # readers differ in which of the two holds
                raise WireError("a field is repeated")
            if kind == BYTES and part.limit is not None and value > part.limit:
                raise self.refusal(f"has a name or text of {value} bytes", f"at most {part.limit}")
            seen.add(number)
            yield number, kind, value

    def model(self, length: int) -> None:
        imports, ir_version, has_graph = [], 0, False
        for number, _, value in self.parts(_MODEL, length):
            if number == 1:
                ir_version = value
            elif number == 7:
                has_graph = True
                self.graph(value, depth=1)
            elif number == 8:
                imports.append(self.opset(value))
        if not has_graph:
            raise WireError("no graph in it")
        self.version(ir_version, tuple(sorted({item for item in imports if item[0] in DOMAINS})))

    def opset(self, length: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, _, value in self.parts(_OPSET, length):
            if number == 1:
                domain = self.wire.text(value)
            else:
                version = signed(value)
        return domain, version

    def version(self, ir_version: int, imports: tuple[tuple[str, int], ...]) -> None:
        known = ir_version <= READ_BY_ALL[0] and all(item[0] == "" and item[1] <= READ_BY_ALL[1] for item in imports)
        if known or is_readable(ir_version, imports):
            return
        import onnxruntime

        found = ", ".join([f"opset {version} of {domain or 'ai.onnx'}" for domain, version in imports[:6]])
        raise ModelError(
            f"{self.path}: has ONNX IR version {ir_version} with {found or 'no opset'}, which ONNX Runtime "
            f"{onnxruntime.__version__} does not read; update onnxruntime, or export the model with a lower --opset"
        )

    def graph(self, length: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.refusal(f"has graphs nested more than {MAX_DEPTH} deep", "fewer")
        for number, _, value in self.parts(_GRAPH, length):
            if number == 1:
                self.node(value, depth)
            elif number == 5:
                self.tensor(value)
            elif number in (11, 12, 13):
                self.value(value)

    def node(self, length: int, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.refusal(f"has more than {MAX_NODES} nodes", "fewer")
        for number, _, value in self.parts(_NODE, length):
            if number == 4:
                operator = self.wire.text(value)
                if operator in FORBIDDEN:
                    raise self.refusal(f"has the operator {operator}, which runs code from elsewhere", "none")
            elif number == 7:
                domain = self.wire.text(value)
                if domain not in DOMAINS:
                    raise self.refusal(f"has an operator of the domain {shown(domain)}", "only ONNX Runtime's own")
            elif number == 5:
                self.attribute(value, depth)

    def attribute(self, length: int, depth: int) -> None:
        for number, _, value in self.parts(_ATTRIBUTE, length):
            if number in (5, 10):
                self.tensor(value)
            elif number in (6, 11):
                self.graph(value, depth + 1)
            elif number in (14, 15):
                self.type(value)

    def tensor(self, length: int) -> None:
        name, sides, element, external = "", list[int](), 0, False
        entries: dict[int, tuple[int, int]] = {}  # by field: minimum and maximum number of entries
        for number, kind, value in self.parts(_TENSOR, length):
            if number == 1:
                self.sides(sides, kind, value)
            elif number == 2:
                element = value
            elif number == 8:
                name = self.wire.text(value)
            elif number == 13 or (number == 14 and value):
                external = True
            elif number in (RAW, FLOATS, INT32S, STRINGS, INT64S, DOUBLES, UINT64S):
                least, most = count_entries(number, kind, value)
                before = entries.get(number, (0, 0))
                entries[number] = before[0] + least, before[1] + most
        if external:
            raise ModelError(
                f"{self.path}: stores the tensor {shown(name)} in another file, which was not opened; expected one "
                "file, as unet-export writes it"
            )
        if element not in STORED:
            raise self.refusal(f"has the tensor {shown(name)} of the unknown type {element}", "a type of ONNX")
        self.stored(f"the tensor {shown(name)} of the sizes {sides}", math.prod(sides), element, entries)

    def sides(self, sides: list[int], kind: int, value: int) -> None:
        """Read one dimension, or several packed ones."""
        if kind == VARINT:
            sides.append(signed(value))
        else:
            end = self.wire.position + value
            while self.wire.position < end and len(sides) <= MAX_RANK:
                sides.append(signed(self.wire.number(end)))
        self.bounded(sides)

    def bounded(self, sides: list[int]) -> None:
        if len(sides) > MAX_RANK:
            raise self.refusal(f"has a tensor of more than {MAX_RANK} dimensions", "4 or so")
        if not all(0 <= side <= MAX_SIDE for side in sides):
            raise self.refusal(f"has a tensor of the sizes {sides}", f"each from 0 to {MAX_SIDE}")

    def stored(self, what: str, count: int, element: int, entries: Mapping[int, tuple[int, int]]) -> None:
        """Compare the number of elements with the stored data."""
        home, bits = STORED[element]
        if set(entries) - {home, RAW} or len(entries) > 1 or (RAW in entries and home == STRINGS):
            raise self.refusal(f"has {what} with data of several types", "one")
        place = next(iter(entries), home)
        least, most = entries.get(place, (0, 0))
        needed = needed_entries(count, bits, place)
        if not least <= needed <= most:
            unit = "bytes" if place == RAW else "entries"
            found = str(least) if least == most else f"{least} to {most}"
            raise self.refusal(f"has {what} with {found} {unit} of data", str(needed))

    def value(self, length: int) -> None:
        for number, _, value in self.parts(_VALUE, length):
            if number == 2:
                self.type(value)

    def type(self, length: int) -> None:
        for number, _, value in self.parts(_TYPE, length):
            if number == 1:
                for inner, _, size in self.parts(_TENSOR_TYPE, value):
                    if inner == 2:
                        self.shape(size)

    def shape(self, length: int) -> None:
        sides = []
        for _, _, value in self.parts(_SHAPE, length):
            known = [signed(side) for number, _, side in self.parts(_DIMENSION, value) if number == 1]
            sides.append(known[0] if known and known[0] >= 0 else 1)  # some exporters write -1 for unknown
            self.bounded(sides)
        if math.prod(sides) > MAX_ELEMENTS:
            raise self.refusal(f"has a value of the sizes {sides}", f"at most {MAX_ELEMENTS} elements")

    def refusal(self, found: str, expected: str) -> ModelError:
        return ModelError(f"{self.path}: {found}, expected {expected}; export the model again with unet-export")


def count_entries(place: int, kind: int, value: int) -> tuple[int, int]:
    """Return the minimum and maximum number of entries in a tensor's field: packed numbers take 1 to 10 bytes each."""
    if kind != BYTES or place == STRINGS:
        return 1, 1
    if place == RAW:
        return value, value
    if place in (FLOATS, DOUBLES):
        size = 4 if place == FLOATS else 8
        if value % size:
            raise WireError("a list of numbers ends within one")
        return value // size, value // size
    return -(-value // 10), value


def needed_entries(count: int, bits: int, place: int) -> int:
    """Return the entries of `count` elements: bytes if raw, two for a complex number, one for two int4."""
    if place == RAW:
        return -(-count * bits // 8)
    if place in (FLOATS, DOUBLES):
        return count * bits // (32 if place == FLOATS else 64)
    return -(-count * bits // 8) if 0 < bits < 8 else count


def shown(name: str) -> str:
    """A name from the file for a message; only its length if it does not look like a name."""
    return repr(name) if re.fullmatch(r"[\w./:-]{1,80}", name, re.ASCII) else f"({len(name)} characters)"


@lru_cache(maxsize=32)
def is_readable(ir_version: int, imports: tuple[tuple[str, int], ...]) -> bool:
    """Return True if ONNX Runtime opens a model of one node with these versions; it has no list of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(identity_model(ir_version, imports), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's errors share no base class
        return False
    return True


def identity_model(ir_version: int, imports: tuple[tuple[str, int], ...]) -> bytes:
    """Build an ONNX file whose only node returns its input, float32 [1]."""
    sizes = field(1, field(1, 1))
    value = [field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes))) for name in (b"a", b"b")]
    node = field(1, b"a") + field(2, b"b") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, value[0]) + field(12, value[1])
    opsets = b"".join(field(8, field(1, domain.encode()) + field(2, version)) for domain, version in imports)
    return field(1, ir_version) + field(7, graph) + opsets
