"""Checks on a file of weights beside its format: its zip archive before it is read, its content afterwards."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_core.weight_files.pickle_check import FACTOR, ROOM, TENSOR_ROOM, PickleWalker, RefusedError

ZIP_HEAD = b"PK\x03\x04"

DOS_FOLDER = 0x10
"""Bit of a record's external attributes that says that it is a folder."""

LEGACY_PICKLES = 5
"""Pickles in PyTorch's older format: a magic number, a version, facts about the system, the content, storages' keys."""

SHARED = 64
"""Tensors under several names, such as those of a block that runs again and again, may be so many times as large as
their file."""

SHOWN = 100
"""Maximum length of a name in a message, in characters."""


def check_file(path: Path, head: bytes) -> None:
    """Check a file of PyTorch before it is read; `head` is its beginning.

    Raises:
        RefusedError: a record differs from its checksum, or the file would take far more memory or time than its size.
        Exception: of many types, from a file that is damaged in another way.
    """
    if head.startswith(ZIP_HEAD):
        check_archive(path)
        return
    walker = PickleWalker(path.stat().st_size, None)
    with path.open("rb") as file:
        try:
            contents = [walker.walk(file) for _ in range(LEGACY_PICKLES)]
        except EOFError:
            if file.read(1):
                raise
            return  # PyTorch comes to the end too, and says what is wrong
    keys = contents[-1] if isinstance(contents[-1], list) else [None]
    if not all(isinstance(part, int) for part in contents[:2]) or not all(isinstance(key, str | int) for key in keys):
        raise RefusedError("has a head that PyTorch does not write")


def check_archive(path: Path) -> None:
    """Check a zip archive: PyTorch writes a checksum of every record, and does not look at it on reading."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename.lower() for record in records]  # as PyTorch looks for them
        if sum(record.file_size for record in records) > FACTOR * size + ROOM:
            raise RefusedError(f"unpacks to more than {FACTOR} times its size")
        if len(set(names)) < len(names):
            raise RefusedError("has two records of one name")
        for record in records:  # PyTorch would give them memory as it is, and no error
            if record.file_size and (record.external_attr & DOS_FOLDER or not record.compress_size):
                raise RefusedError(
                    f"is damaged: its record {inner_name(record.filename)} has no content; copy it again"
                )
        if not any(record.CRC for record in records):  # torch.serialization.set_crc32_options(False) writes none
            for record in records:
                del record.CRC
        elif (bad := archive.testzip()) is not None:
            raise RefusedError(f"is damaged: its record {inner_name(bad)} differs from its checksum; copy it again")
        inner = {name.partition("/")[2]: record.file_size for name, record in zip(names, records, strict=True)}
        for name, record in zip(names, records, strict=True):
            if name.endswith("data.pkl"):
                PickleWalker(size, inner).walk(io.BytesIO(archive.read(record)))


def inner_name(name: str) -> str:
    """Write a record's name without its folder, which PyTorch names after the temporary file that it wrote."""
    return shown(name.partition("/")[2] or name)


def check_content(content: Mapping[str, Any], size: int) -> None:
    """Check the content of a file of `size` bytes: parts that it refers to often could make it endless to walk through.

    Raises:
        RefusedError: it would unfold to far more than its size, or has a tensor without values.
    """
    most_parts, most_bytes = size + 2**20, SHARED * size + TENSOR_ROOM
    totals: dict[int, tuple[int, int]] = {}  # by container: parts and bytes of its tensors, each as often as it is met
    begun: set[int] = set()
    stack: list[Any] = [content]
    while stack:
        part = stack[-1]
        if id(part) in totals:
            stack.pop()
            continue
        children = list(part.values()) if isinstance(part, Mapping) else part
        if id(part) in begun:  # so all parts of it are counted
            counts = [totals.get(id(child)) or (1, bytes_of(child)) for child in children]
            totals[id(part)] = 1 + sum(count[0] for count in counts), sum(count[1] for count in counts)
            if totals[id(part)][0] > most_parts or totals[id(part)][1] > most_bytes:
                raise RefusedError(
                    f"refers to its parts so often that it unfolds to more than {most_parts:,} of them, or "
                    f"{most_bytes:,} bytes"
                )
            continue
        begun.add(id(part))
        if isinstance(part, Mapping):
            refuse_meta(part)
        inner = [child for child in children if isinstance(child, Mapping | list | tuple | set | frozenset) and child]
        if any(id(child) in begun and id(child) not in totals for child in inner):
            raise RefusedError("holds a part that is within itself")
        stack += inner


def refuse_meta(names: Mapping[Any, Any]) -> None:
    """Refuse tensors without values, as torch.save writes those of the device "meta"."""
    for name, value in names.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise RefusedError(
                f"holds {shown(str(name))} as a tensor of the device meta, which has no values; save the "
                "network again after its weights are loaded"
            )


def shown(name: str) -> str:
    """Write a name of a file's choice within a line."""
    return name if name.isprintable() and len(name) <= SHOWN else ascii(name)[:SHOWN]


def bytes_of(value: object) -> int:
    """Return the size of a tensor's values, each counted as often as the tensor shows it; 0 for everything else."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value.numel() * value.element_size()
    return 0
