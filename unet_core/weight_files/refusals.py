"""Names what a file is from which no weights are read, and says how to get at them."""

import pickle
import re
import shlex
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.errors import one_line
from unet_core.weight_files.finder import is_entry, is_state_dict, listed
from unet_core.weight_files.plain_types import PLAIN_TYPES

HEADS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch that with: git lfs pull",
    b"<!doctype html": "is a web page, such as a download that failed; download the file again",
    b"<html": "is a web page, such as a download that failed; download the file again",
    b"\x89hdf": "is an HDF5 file, such as Keras writes; expected weights of PyTorch",
    b"\x93numpy": "is a NumPy array; expected weights of PyTorch",
    b"gguf": "is a GGUF file; expected weights of PyTorch",
    b"\x1f\x8b": "is compressed by gzip; unpack it, and give the checkpoint in it",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and give the checkpoint in it",
    b"rar!": "is a RAR archive; unpack it, and give the checkpoint in it",
    b"\x89png": "is an image; expected weights of PyTorch",
    b"\xff\xd8\xff": "is an image; expected weights of PyTorch",
    b"{": "is text, such as JSON; expected weights of PyTorch, which are in another file",
}
"""The first bytes of files of other kinds, in lower case, and what to say of such a file."""

TAR_MARK = slice(257, 262), b"ustar"

NOT_ALLOWED = re.compile(r"GLOBAL (\S+) (was not an allowed global|whose module)")
"""The sentences in which PyTorch names a type that it does not make."""

LIBRARIES = sys.stdlib_module_names | {"distutils", "imp", "numpy", "pip", "pkg_resources", "setuptools", "torch"}
"""Libraries of which weights need nothing but values and layers: `is_dangerous` tells what else a file asks for."""

HOLDERS = {
    "argparse.Namespace",
    "array.array",
    "copyreg._reconstructor",
    "decimal.Decimal",
    "fractions.Fraction",
    "functools.partial",
    "torch.Generator",
    "torch._C.Generator",
    "types.SimpleNamespace",
    "uuid.UUID",
    *(f"builtins.{name}" for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")),
    *(f"builtins.{name}" for name in ("list", "object", "range", "set", "slice", "str", "tuple")),
    *(f"collections.{name}" for name in ("ChainMap", "Counter", "OrderedDict", "UserDict", "defaultdict", "deque")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"numpy.random._pickle.__{name}_ctor" for name in ("bit_generator", "generator", "randomstate")),
    *(
        f"pathlib{private}.{pure}{system}Path"
        for private in ("", "._local")
        for pure in ("", "Pure")
        for system in ("", "Posix", "Windows")
    ),
}
"""Types and functions of `LIBRARIES` that only hold values, or make what does."""

LAYERS = ("torch.amp.", "torch.ao.", "torch.cuda.amp.", "torch.nn.", "torch.optim.", "numpy.random.")
"""Starts of the names of modules whose classes lie in files of whole networks and of training."""

ACTIVATIONS = ("torch.nn.functional", "torch._C._nn")
"""Modules whose functions networks keep as attributes."""

MOST_TYPES = 200
"""Maximum number of types that are looked into in a file of the older format, whose names come one by one."""


def kind_of(path: Path, head: bytes) -> str:
    """Say what kind of file this is, if it is a known one that holds no state dict; else return ""."""
    said = next((said for start, said in HEADS.items() if head.lower().startswith(start)), "")
    if said or head[TAR_MARK[0]] == TAR_MARK[1]:
        return said or "is a tar archive; unpack it, and give the checkpoint in it"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "looks like an ONNX file, expected the checkpoint that it was exported from"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # of many types, from a file that is damaged
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        command = saving(path, f"torch.jit.load({str(path)!r}, map_location='cpu').state_dict()")
        return f"is a TorchScript archive, as torch.jit.save writes it, and not weights alone; {command}"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        command = saving(path, f"torch.export.load({str(path)!r}).state_dict")
        return f"is an exported program, as torch.export.save writes it, and not weights alone; {command}"
    if names and not any(name.endswith("data.pkl") for name in names):
        if all(name.endswith(".npy") for name in names):
            return "is an archive of NumPy arrays; expected weights of PyTorch"
        found = ", ".join(name[:100] if name.isprintable() else ascii(name)[:100] for name in names[:3])
        return f"is a zip archive of {found}{', ...' * (len(names) > 3)}; unpack it, and give the checkpoint in it"
    return ""


def saving(path: Path, weights: str, start: str = "", network: str = "--network") -> str:
    """Write the command that saves an expression for the weights in a file to another one, which `network` takes."""
    target = path.with_name(f"{path.name.partition('.')[0]}-weights.pth")
    code = f"{start}import torch; torch.save({weights}, {str(target)!r})"
    quoted = shlex.quote(code) if set('"$`\\!') & set(code) else f'"{code}"'
    return f"to save its weights as {target}{f', for {network}' * bool(network)}, run: python -c {quoted}"


class NotMade:
    """Stands for an object that was not made, while a file is looked into that is refused."""

    def __new__(cls, *_: Any, **__: Any) -> "NotMade":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take any arguments."""

    def __setstate__(self, _: Any) -> None:
        """Take any state."""


def stand_in(name: str) -> type[NotMade]:
    """Make a type that does nothing, under a name of a file's choice, which messages show."""
    line = one_line(name)[:100]
    return type(line if line.isprintable() else ascii(line)[1:-1][:100], (NotMade,), {})


def other_types(path: Path) -> str:
    """Name the types that a file holds besides plain ones, and say how to save its weights alone."""
    content, types = look_into(path)
    not_executed = "is not a checkpoint of plain weights, so it was not executed"
    if dangerous := next(filter(is_dangerous, types), None):
        return f"{not_executed}: it asks for {dangerous}, which weights do not need; do not load it with any program"
    if not all(part.isidentifier() for name in types for part in name.split(".")):  # they would be in the command
        return f"{not_executed}: it asks for types that have no names of Python; do not load it with any program"
    if content is None and not types:
        return (
            "is damaged, or no checkpoint of plain weights, and was not executed; copy it again, or save it with "
            "torch.save(model.state_dict(), ...)"
        )
    if content is None:
        return f"{not_executed}: it asks for {listed(types)}; save it with torch.save(model.state_dict(), ...)"
    made: NotMade | None = None
    read = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    entries = content if isinstance(content, dict) else {}
    place = next((name for name, value in entries.items() if is_entry(name) and is_state_dict(value)), None)
    whole = next((name for name, value in entries.items() if is_entry(name) and isinstance(value, NotMade)), None)
    if isinstance(content, NotMade):
        made = content
        found = f"is a whole pickled {class_of(content)}, as torch.save(model) writes it, and not its weights"
        weights = f"{read}.state_dict()"
    elif place is None and whole is not None:
        made = entries[whole]
        found = f"holds a whole pickled {class_of(made)} under {whole!r}, and not its weights"
        weights = f"{read}[{whole!r}].state_dict()"
    else:
        found = f"holds an object of {types[0]} beside its weights"
        weights = read if place is None else f"{read}[{place!r}]"
    # The part of A.B that is imported is A.
    own = list(dict.fromkeys(name.split(".")[1] for name in types if name.startswith("__main__.")))
    packages = dict.fromkeys(name.partition(".")[0] for name in types)
    needed = [name for name in packages if name not in ("__main__", "torch")]
    needed += [f"PROGRAM (the file that defines {own[0]})"] if own else []
    where = f", where {' and '.join(needed)} can be imported" if needed else ""
    network = "" if made is None else network_of(made)
    command = saving(path, weights, f"from PROGRAM import {', '.join(own)}; " if own else "", network)
    return f"{found}; nothing of it was executed. If you trust it{where}, {command}"


def is_dangerous(name: str) -> bool:
    """Return True for a name of `LIBRARIES` that is neither a plain value's nor a network's: it may do anything.

    Nothing is imported. Names of other packages are for the user to judge.
    """
    package, module, attribute = name.partition(".")[0], *name.rpartition(".")[::2]
    if package not in LIBRARIES or name in HOLDERS:
        return False
    value = getattr(sys.modules.get(module), attribute, None) if package in ("numpy", "torch") else None
    home = str(getattr(value, "__module__", None))
    if isinstance(value, type):
        return not (home.startswith(LAYERS) or issubclass(value, np.generic | np.dtype))
    return not (callable(value) and module in ACTIVATIONS and home in (*ACTIVATIONS, "None"))


def class_of(made: NotMade) -> str:
    """Return the name of the class of which there is a `NotMade`, without its module."""
    return type(made).__name__.rpartition(".")[2]


def network_of(made: NotMade) -> str:
    """Return the option that makes the network of which there is a `NotMade`."""
    module, _, name = type(made).__name__.rpartition(".")
    if module.partition(".")[0] == "torch":
        return "--network"  # a container, whose content other code makes
    return f"--network {'PROGRAM.py' if module == '__main__' else module}:{name}"


def look_into(path: Path) -> tuple[Any, list[str]]:
    """Read a file with a `NotMade` in place of every object of a type that is not plain.

    Returns the content, None if it cannot be read so, and the full names of these types: first those that do not
    belong to PyTorch. Nothing is executed, and tensors are not read.
    """
    names: list[str] = []
    try:
        with torch.serialization.safe_globals(list(PLAIN_TYPES)):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        is_zip = True
    except ValueError:
        is_zip = False  # the older format, in which tensors come after all types
    except Exception:  # of any type, from a file that nobody checked
        is_zip = True
    stand_ins = {name: stand_in(name) for name in names}
    content: Any = None
    while True:
        allowed = [*PLAIN_TYPES, *((kind, name) for name, kind in stand_ins.items())]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")  # about pickle protocols
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            break
        except pickle.UnpicklingError as error:
            match = NOT_ALLOWED.search(str(error))
        except Exception:  # of any type, from a file that nobody checked
            break
        name = match[1] if match and "." in match[1] else f"builtins.{match[1]}" if match else ""
        if not name or name in stand_ins or len(stand_ins) >= max(MOST_TYPES, len(names)):
            break
        stand_ins[name] = stand_in(name)
    found = [kind.__name__ for kind in stand_ins.values()]
    return content, sorted(found, key=lambda name: (name in HOLDERS, name.startswith("torch.")))
