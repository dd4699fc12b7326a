"""Reading an ONNX file's metadata without the onnx package, and before any session is made.

An ONNX file is one protobuf message. Only its top level is walked: every field is skipped by its length but
`metadata_props` (onnx.proto, message ModelProto, field 14), so the cost does not depend on the size of the weights.
"""

import os
from pathlib import Path
from typing import BinaryIO

from runtime.errors import ModelError

METADATA_PROPS = 14
MAX_ENTRY = 64 * 2**20
"""Bytes of one metadata entry that are read at most."""
MAX_MODEL = 2**31 - 1
"""Bytes of an ONNX file at most: what protobuf can hold."""

ZIP_MAGIC = b"PK\x03\x04"
"""How files of `torch.save` begin."""

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of an ONNX file as {key: value}.

    Raises:
        ModelError: there is no such file, or it is not one whole ONNX file.
    """
    model = Path(path)
    try:
        if model.is_dir():
            raise ModelError(f"{model}: is a folder, expected an .onnx file")
        if not model.exists():
            raise ModelError(f"{model}: no such file; make it with: unet-export model.pth")
        with open(model, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise ModelError(f"{model}: is empty (0 bytes), expected an ONNX file")
            if size > MAX_MODEL:
                raise ModelError(f"{model}: has {size} bytes, expected at most {MAX_MODEL}")
            if file.read(4) == ZIP_MAGIC:
                raise ModelError(f"{model}: is no ONNX file but perhaps a PyTorch checkpoint; try: unet-export {model}")
            file.seek(0)
            return _entries(file, size)
    except (EOFError, ValueError) as error:
        raise ModelError(f"{model}: is not an ONNX file, or is cut off ({error}); copy or export it again") from error
    except OSError as error:
        raise ModelError(f"{model}: cannot be read ({error.strerror})") from error


def _entries(file: BinaryIO, size: int) -> dict[str, str]:
    entries: dict[str, str] = {}
    has_graph = False
    while file.tell() < size:
        number, length = _field(file, size)
        if number == METADATA_PROPS and length is not None:
            if length > MAX_ENTRY:
                raise ValueError(f"a metadata entry of {length} bytes")
            key, value = _entry(file, file.tell() + length)
            entries[key] = value
        elif length is not None:
            has_graph = has_graph or number == 7
            file.seek(length, os.SEEK_CUR)
    if not has_graph:
        raise ValueError("no graph in it")
    return entries


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    """Message StringStringEntryProto: key is field 1, value is field 2."""
    texts = {1: "", 2: ""}
    while file.tell() < end:
        number, length = _field(file, end)
        if length is not None:
            texts[number] = file.read(length).decode("utf-8")
    return texts[1], texts[2]


def _field(file: BinaryIO, end: int) -> tuple[int, int | None]:
    """Read a field's tag; return its number and, if it is length-delimited, how many bytes follow."""
    tag = _varint(file)
    number, kind = tag >> 3, tag & 7
    length = None
    if number == 0:
        raise ValueError("field number 0")
    if kind == VARINT:
        _varint(file)
    elif kind == LENGTH_DELIMITED:
        length = _varint(file)
    elif kind in (FIXED64, FIXED32):
        file.seek(8 if kind == FIXED64 else 4, os.SEEK_CUR)
    else:
        raise ValueError(f"wire type {kind}")
    if file.tell() + (length or 0) > end:
        raise EOFError("the file ends early")
    return number, length


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, least significant first, at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("the file ends early")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
