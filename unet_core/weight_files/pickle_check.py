"""Walks through a pickle before PyTorch reads it, makes nothing of it, and refuses what would cost more than its file.

`torch.load(weights_only=True)` calls only functions that it knows, but with arguments of the file's choice:
`bytearray(20 * 10**9)` takes 41 bytes. So a call has to look as `torch.save` writes it. What is walked through here are
PyTorch's own opcodes; a pickle with other ones, or with types that are not known, is refused by PyTorch itself.
"""

import math
import pickle
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pickle import decode_long
from typing import Any, BinaryIO

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from unet_core.weight_files.plain_types import PLAIN_TYPES, StoredDict, StoredList, StoredValue

FACTOR, ROOM = 16, 2**20
"""A file may stand for `FACTOR` times its own size and `ROOM` bytes."""

TENSOR_ROOM = 2**26
"""Bytes that tensors may stand for beside that, which show values more than once, such as an expanded mask."""

MOST_STEPS, STEP_BYTES = 1_500_000, 7
"""Maximum number of opcodes of a file of 10 MB, and bytes for each one in larger files. A network of 31 million weights
with Adam's state needs 10,000, one of 100,000 tensors in 28 MB needs 2.4 million."""

MOST_CALLS, CALL_BYTES = 300_000, 40
"""The same for calls, each of which costs PyTorch as much as ten other opcodes; a tensor needs two."""

MOST_SIDES = 64
"""Maximum number of dimensions of a tensor, as PyTorch's own."""

DEEPEST_GROUP = 100
"""Maximum depth of tuples within one another."""

KEY_PARTS, KEY_DEPTH, KEY_WORK, KEY_BITS = 1000, 20, 50_000_000, 64
"""Maximum number of values in a tuple that is a key, its depth, comparisons of values if all such keys had one hash,
and bits of an integer key: other keys may take minutes."""

LATIN = ("latin1", "latin-1")
"""Names of the one encoding as which pickles hold bytes."""

ITEM_SIZES: Mapping[str, int] = {
    f"torch.{name}Storage": size
    for size, names in {
        1: ("Byte", "Char", "Bool", "QUInt8", "QInt8", "QUInt4x2", "QUInt2x4"),
        2: ("Half", "BFloat16", "Short"),
        4: ("Float", "Int", "QInt32"),
        8: ("Double", "Long", "ComplexFloat"),
        16: ("ComplexDouble",),
    }.items()
    for name in names
}
"""Bytes of a value in each kind of storage; those of others are 1, as of `torch.storage.UntypedStorage`."""

PACKED: Mapping[str, int] = {"torch.QUInt4x2Storage": 2, "torch.QUInt2x4Storage": 4}
"""Values of a tensor in each byte, in kinds of storage that pack several."""


class RefusedError(Exception):
    """A file is damaged or asks for something that no checkpoint needs; the message completes "the file ..."."""


class Name(str):
    """A function or type that a pickle names."""


class Nested(tuple[Any, ...]):
    """A tuple of tuples; `parts` and `depth` are those that hashing it walks through."""

    parts: int
    depth: int


def group(items: list[Any]) -> tuple[Any, ...]:
    """Make a tuple that knows what hashing it would cost."""
    if not any(isinstance(item, tuple) for item in items):
        return tuple(items)
    nested = Nested(items)
    nested.parts = sum(
        item.parts if type(item) is Nested else 1 + len(item) for item in items if isinstance(item, tuple)
    )
    nested.parts += len(items)
    nested.depth = 1 + max(item.depth if type(item) is Nested else 1 for item in items if isinstance(item, tuple))
    if nested.depth > DEEPEST_GROUP:
        raise RefusedError(f"has tuples that are nested deeper than {DEEPEST_GROUP}")
    return nested


class Made:
    """Stands for a dictionary, or for what a call would return.

    `size` is that of a storage in bytes, and `item` of each of its values; that of a plain tensor is the number of its
    values. -1: not known.
    """

    __slots__ = ("item", "kind", "size")

    def __init__(self, kind: str, size: int = -1, item: int = 1) -> None:
        self.kind, self.size, self.item = kind, size, item


class PickleWalker:
    """Walks through the pickles of one file of `file_size` bytes.

    `records` are the sizes of the records of a zip archive in bytes; None for the older format.
    """

    def __init__(self, file_size: int, records: Mapping[str, int] | None) -> None:
        self.limit, self.file_size, self.records = FACTOR * file_size + ROOM, file_size, records
        self.most_steps = max(MOST_STEPS, file_size // STEP_BYTES)
        self.most_calls = max(MOST_CALLS, file_size // CALL_BYTES)
        self.steps = self.calls = self.odd_keys = self.key_work = 0
        self.spent = Counter[int]()
        self.storages: set[tuple[Any, ...]] = set()

    def walk(self, file: BinaryIO) -> Any:
        """Walk through one pickle, and return what stands for its content.

        Raises:
            RefusedError: it would take more time or memory than a checkpoint of its size.
            pickle.UnpicklingError, EOFError: it cannot be read, and PyTorch would not read it either.
        """
        self.file, self.stack, self.marks = file, [], []  # type: ignore[var-annotated]
        self.memo: dict[int, Any] = {}
        try:
            while (code := self.take(1)) != pickle.STOP:
                if code not in STEPS:
                    raise pickle.UnpicklingError(f"Unsupported operand {code[0]}")
                STEPS[code](self)
                self.steps += 1
                if self.steps > self.most_steps:
                    raise RefusedError(f"has more than {self.most_steps:,} values beside its weights")
            return self.stack.pop()
        except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:  # PyTorch raises the same
            raise EOFError(f"the pickle is damaged ({type(error).__name__})") from error

    def take(self, count: int) -> bytes:
        """Read this number of bytes."""
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def number(self, form: str) -> int:
        """Read an integer of a `struct` format."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def push(self, value: Any) -> None:
        """Put a value onto the stack."""
        self.stack.append(value)

    def name(self) -> None:
        """Put the name of a function or type onto the stack, as PyTorch reads it."""
        module, name = (self.file.readline()[:-1].decode("utf-8") for _ in range(2))
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        self.push(Name(f"{IMPORT_MAPPING.get(module, module)}.{name}"))

    def mark(self) -> None:
        """Begin a list of values."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Take all values since the last mark from the stack."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def group(self, count: int) -> None:
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [group(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        """Add values to the list on the stack; to anything else PyTorch adds nothing."""
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("Can only append to lists")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dictionary on the stack."""
        for key in items[::2]:
            self.check_key(key)

    def spend(self, count: int, room: int = 0) -> None:
        """Count bytes or values that a call would copy; `room` is what may be spent beside the limit.

        Raises:
            RefusedError: they are more than the file may stand for.
        """
        self.spent[room] += count
        if self.spent[room] > self.limit + room:
            raise RefusedError(
                f"would take more than {self.limit + room:,} bytes of memory, far more than its own size"
            )

    def check_key(self, key: Any) -> None:
        """Check that a key can be hashed, and compared with others, in no time.

        Raises:
            RefusedError: it cannot.
        """
        if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and key.bit_length() <= KEY_BITS):
            return
        parts, depth = (key.parts, key.depth) if type(key) is Nested else (len(key) if type(key) is tuple else 1, 1)
        self.odd_keys += 1
        self.key_work += self.odd_keys * parts  # if all of them had one hash, this one is compared with the others
        if parts > KEY_PARTS or depth > KEY_DEPTH or self.key_work > KEY_WORK:
            raise RefusedError("has too many keys that are tuples or large numbers; comparing them might take minutes")

    def check_keys(self, items: Any) -> None:
        """Check the keys in the argument of a container: a list or tuple of keys, or of pairs of a key and a value."""
        self.spend(len(items))
        for item in items:
            self.check_key(item[0] if type(item) is list and len(item) == 2 else item)
            if isinstance(item, tuple) and len(item) == 2:
                self.check_key(item[0])

    def storage(self) -> None:
        """Stand in for a storage, whose values have to be in the file."""
        stored = self.stack.pop()
        if not isinstance(stored, tuple) or len(stored) < 5 or stored[0] != "storage":
            raise pickle.UnpicklingError("Only persistent_load of storage is allowed")
        kind, key, _, count = stored[1:5]
        if type(kind) is not Name or type(key) not in (str, bytes, int) or type(count) is not int or count < 0:
            raise RefusedError("has a storage without a proper kind, key and size")
        item = ITEM_SIZES.get(kind, 1)
        there = self.file_size if self.records is None else self.records.get(f"data/{key}".lower(), 0)
        if count * item > there:
            raise RefusedError(f"has a storage of {count * item:,} bytes, of which it holds {there:,} at most")
        if (kind, key, count) not in self.storages:
            self.storages.add((kind, key, count))
            self.spend(count * item)
        if len(stored) > 5 and stored[5] is not None:  # a view, in the older format
            view = stored[5]
            if not isinstance(view, tuple) or len(view) != 3 or type(view[0]) not in (str, bytes, int):
                raise RefusedError("has a view of a storage without a proper key")
            if not all(type(one) is int and one >= 0 for one in view[1:]) or sum(view[1:]) > count:
                raise RefusedError("has a view that ends outside of its storage")
            count = view[2]
        self.push(Made("storage", count * item * PACKED.get(kind, 1), item))

    def call(self) -> None:
        """Stand in for the result of a call."""
        self.calls += 1
        if self.calls > self.most_calls:
            raise RefusedError(f"has more than {self.most_calls:,} objects beside its weights")
        arguments = self.stack.pop()
        function = self.stack.pop()
        # What another call returned may be a function, in a file that PyTorch refuses and that is looked into then.
        unknown = type(function) is Made and function.kind not in KNOWN
        if not (type(function) is Name or unknown) or not isinstance(arguments, tuple):
            raise RefusedError("calls something that is no function")
        self.push(self.result(function, arguments) if type(function) is Name else Made(function.kind))

    def result(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        """Return what stands for the result of a call.

        Raises:
            RefusedError: `torch.save` writes no such call.
        """
        check = CALLS.get(function)
        if check is None and function.startswith("torch.") and function.endswith(("Tensor", "Storage")):
            check = no_arguments
        try:
            result = check(self, arguments) if check else None
        except (IndexError, TypeError, ValueError) as error:
            raise RefusedError(f"calls {function} as no checkpoint does") from error
        if type(result) is Made:  # a tensor
            result.kind = function
        return Made(function) if result is None else result

    def build(self) -> None:
        """Check the state that an object on the stack is given."""
        state = self.stack.pop()
        made = self.stack[-1]
        kind = made.kind if type(made) is Made else ""
        if kind.startswith("torch.") and kind in CALLS and "arameter" not in kind:  # whose state is not its tensor's
            made.size = check_tensor(self, tuple(state)).size
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        as_dict = all(part is None or (type(part) is Made and part.kind in DICTS) for part in parts)
        if kind in KEEPS_ATTRIBUTES and not as_dict:
            raise RefusedError(f"gives {kind} a state that is no dictionary")


def no_arguments(_: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a call of a type of which only empty objects are made so."""
    if arguments:
        raise ValueError


def check_scalars(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a call that takes short values, or dates, and copies them."""
    for value in arguments:
        if type(value) in (str, bytes):
            walker.spend(len(value))
        elif type(value) not in (int, float, bool, type(None), Made):
            raise ValueError


def check_one_scalar(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a call of a type of numbers or text, which would read a second argument as an encoding or a base."""
    if len(arguments) > 1 or any(type(value) is Made for value in arguments):
        raise ValueError
    check_scalars(walker, arguments)


def check_bytes(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a call that makes bytes from text."""
    if not arguments:
        return
    text, *encoding = arguments
    if type(text) not in (str, bytes) or (encoding and encoding[0] not in LATIN) or len(encoding) > 1:
        raise ValueError
    walker.spend(len(text))


def check_container(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a call that makes a set or dictionary of a list or tuple."""
    if not arguments or (type(arguments[0]) is Made and arguments[0].kind in DICTS):
        return
    (items,) = arguments
    if not isinstance(items, list | tuple):
        raise ValueError
    walker.check_keys(items)


def check_sequence(walker: PickleWalker, arguments: tuple[Any, ...]) -> Any:
    """Check a call that copies a list or tuple, whose values are not hashed."""
    items = arguments[0] if arguments else ()
    if not isinstance(items, list | tuple) or len(arguments) > 1:
        raise ValueError
    walker.spend(len(items))
    return group(list(items))


def check_list(walker: PickleWalker, arguments: tuple[Any, ...]) -> Any:
    """Check a call that makes a list."""
    return list(check_sequence(walker, arguments))


def check_tensor(walker: PickleWalker, arguments: tuple[Any, ...]) -> Made:
    """Check that a tensor lies within its storage, and count its bytes if it shows values there more than once."""
    storage, offset, size, stride = arguments[:4]
    dtype = arguments[6] if len(arguments) > 6 and type(arguments[6]) is Name else ""
    item = item_size(dtype) or storage.item
    if storage.kind != "storage" or len(size) != len(stride) or len(size) > MOST_SIDES:
        raise ValueError
    if not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *size, *stride)):
        raise ValueError
    last = sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if all(size) and (offset + last + 1) * item > storage.size:
        raise RefusedError("has a tensor that ends outside of its storage")
    values = math.prod(size)
    if values * item > storage.size:
        walker.spend(values * item, TENSOR_ROOM)
    return Made("tensor", values)


def item_size(dtype: str) -> int:
    """Return the bytes of a value of a type such as "torch.float32"; 0 if there is no such type."""
    return getattr(getattr(torch, dtype.removeprefix("torch."), None), "itemsize", 0)


def spend_values(walker: PickleWalker, value: Any, size: int = 8) -> None:
    """Count the bytes of a plain tensor, or a list of numbers, whose values a call copies or walks through."""
    if type(value) is Made and value.size >= 0 and value.kind != "storage":
        walker.spend(value.size * size)
    elif type(value) is list and all(type(number) in (int, float) for number in value):
        walker.spend(len(value) * size)
    else:
        raise ValueError


def check_moved(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a tensor of another device than those of PyTorch's own storages, which is made of one on the CPU."""
    data, dtype = arguments[:2]
    if type(dtype) is not Name or not item_size(dtype):
        raise ValueError
    spend_values(walker, data, item_size(dtype))


def check_quantized(walker: PickleWalker, arguments: tuple[Any, ...]) -> Made:
    """Check a quantized tensor, which PyTorch makes room for before it looks at the storage."""
    made = check_tensor(walker, arguments)
    scheme, *parameters = arguments[4]
    if type(scheme) is not Name:
        raise ValueError
    for parameter in parameters:
        if type(parameter) not in (int, float):
            spend_values(walker, parameter)
    walker.spend(made.size * arguments[0].item)
    return made


def check_sparse(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a sparse tensor, whose indices PyTorch walks through, and whose layout it would write into a message."""
    layout, data = arguments
    if type(layout) is not Made or not isinstance(data, tuple):
        raise ValueError
    for part in data:
        if type(part) is Made:
            spend_values(walker, part)


def check_parameter(_: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a tensor with a state, which PyTorch would write into a message."""
    if len(arguments) > 3:
        check_state(arguments[3])


def check_subclass(walker: PickleWalker, arguments: tuple[Any, ...]) -> None:
    """Check a tensor with attributes: a call within a call."""
    function, _, inner, state = arguments
    if type(function) is not Name or not isinstance(inner, tuple) or function == "torch._tensor._rebuild_from_type_v2":
        raise ValueError
    check_state(state)
    walker.result(function, inner)


def check_state(state: Any) -> None:
    """Check the attributes of a tensor."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if not all(part is None or (type(part) is Made and part.kind in DICTS) for part in parts):
        raise ValueError


def refuse(_: PickleWalker, __: tuple[Any, ...]) -> None:
    """Refuse a call of which nothing comes that can be used here."""
    raise ValueError


MADE = {"storage", "set"}
"""Kinds of what stands for storages and sets."""

DICTS = {"dict", "builtins.dict", "collections.OrderedDict", "collections.Counter"}
"""Kinds of what stands for dictionaries."""

PLAIN_NAMES: Mapping[str, Callable[..., Any]] = {
    **{entry[1]: entry[0] for entry in PLAIN_TYPES if isinstance(entry, tuple)},
    **{f"{entry.__module__}.{entry.__qualname__}": entry for entry in PLAIN_TYPES if not isinstance(entry, tuple)},
}
DICTS |= {name for name, kind in PLAIN_NAMES.items() if kind is StoredDict}

KEEPS_ATTRIBUTES = {name for name in PLAIN_NAMES if "Namespace" in name} | DICTS
"""Types whose state is a dictionary, which is copied."""

Check = Callable[[PickleWalker, tuple[Any, ...]], Any]

CALLS: Mapping[str, Check] = {
    **{name: check_scalars for name in PLAIN_NAMES if name.startswith(("pathlib.", "datetime."))},
    **{name: no_arguments for name in PLAIN_NAMES if "Namespace" in name},
    **{f"builtins.{name}": check_one_scalar for name in ("bool", "int", "float", "str")},
    **{f"builtins.{name}": check_container for name in ("dict", "frozenset", "set")},
    "builtins.list": check_list,
    "builtins.tuple": check_sequence,
    **{name: lambda *_: [] for name, kind in PLAIN_NAMES.items() if kind is StoredList},
    "builtins.complex": check_scalars,
    "builtins.bytearray": check_bytes,
    "_codecs.encode": check_bytes,
    "collections.OrderedDict": check_container,
    "collections.Counter": check_container,
    "torch.Size": check_sequence,
    "torch.device": check_scalars,
    "torch.serialization._get_layout": check_scalars,
    "torch.torch_version.TorchVersion": check_one_scalar,
    "torch._utils._rebuild_tensor": check_tensor,
    "torch._utils._rebuild_tensor_v2": check_tensor,
    "torch._utils._rebuild_tensor_v3": check_tensor,
    "torch._utils._rebuild_qtensor": check_quantized,
    "torch._utils._rebuild_sparse_tensor": check_sparse,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": check_moved,
    "torch._utils._rebuild_parameter_with_state": check_parameter,
    "torch._utils._rebuild_wrapper_subclass": refuse,
    "torch._tensor._rebuild_from_type_v2": check_subclass,
}
"""The functions and types that PyTorch calls, or that are called with `PLAIN_TYPES`, and what checks a call.

Those that are not here keep their arguments and do nothing (`StoredValue`), or are never called.
"""
KNOWN = CALLS.keys() | PLAIN_NAMES.keys() | DICTS | MADE
"""Kinds of what PyTorch makes of a file that it accepts: no functions, and messages would show all that is in them."""

assert all(name in CALLS or kind in (StoredValue, StoredDict) for name, kind in PLAIN_NAMES.items())

STEPS: Mapping[bytes, Callable[[PickleWalker], Any]] = {
    pickle.PROTO: lambda walker: walker.take(1),
    pickle.GLOBAL: PickleWalker.name,
    pickle.REDUCE: PickleWalker.call,
    pickle.NEWOBJ: PickleWalker.call,
    pickle.BUILD: PickleWalker.build,
    pickle.BINPERSID: PickleWalker.storage,
    pickle.MARK: PickleWalker.mark,
    pickle.TUPLE: lambda walker: walker.push(group(walker.pop_mark())),
    pickle.TUPLE1: lambda walker: walker.group(1),
    pickle.TUPLE2: lambda walker: walker.group(2),
    pickle.TUPLE3: lambda walker: walker.group(3),
    pickle.EMPTY_TUPLE: lambda walker: walker.push(()),
    pickle.EMPTY_LIST: lambda walker: walker.push([]),
    pickle.EMPTY_DICT: lambda walker: walker.push(Made("dict")),
    pickle.EMPTY_SET: lambda walker: walker.push(Made("set")),
    pickle.APPEND: lambda walker: walker.append([walker.stack.pop()]),
    pickle.APPENDS: lambda walker: walker.append(walker.pop_mark()),
    pickle.SETITEM: lambda walker: walker.set_items([walker.stack.pop(), walker.stack.pop()][::-1]),
    pickle.SETITEMS: lambda walker: walker.set_items(walker.pop_mark()),
    pickle.NONE: lambda walker: walker.push(None),
    pickle.NEWTRUE: lambda walker: walker.push(True),
    pickle.NEWFALSE: lambda walker: walker.push(False),
    pickle.BININT: lambda walker: walker.push(walker.number("<i")),
    pickle.BININT1: lambda walker: walker.push(walker.number("<B")),
    pickle.BININT2: lambda walker: walker.push(walker.number("<H")),
    pickle.LONG1: lambda walker: walker.push(decode_long(walker.take(walker.number("<B")))),
    pickle.BINFLOAT: lambda walker: walker.push(struct.unpack(">d", walker.take(8))[0]),
    pickle.BINUNICODE: lambda walker: walker.push(str(walker.take(walker.number("<I")), "utf-8", "surrogatepass")),
    pickle.SHORT_BINSTRING: lambda walker: walker.push(str(walker.take(walker.number("<B")), "utf-8")),
    pickle.BINGET: lambda walker: walker.push(walker.memo[walker.number("<B")]),
    pickle.LONG_BINGET: lambda walker: walker.push(walker.memo[walker.number("<I")]),
    pickle.BINPUT: lambda walker: walker.memo.__setitem__(walker.number("<B"), walker.stack[-1]),
    pickle.LONG_BINPUT: lambda walker: walker.memo.__setitem__(walker.number("<I"), walker.stack[-1]),
}
"""The opcodes that PyTorch reads, and what each does here."""
