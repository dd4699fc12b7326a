"""Reading an ONNX file's metadata without the onnx package, and before any session is made.

An ONNX file is one protobuf message. Only its top level is walked: every field is skipped by its length but
`metadata_props` (onnx.proto, message ModelProto, field 14), so the cost does not depend on the size of the weights.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ModelError
from runtime.model_file.protobuf_reader import BYTES, Wire, WireError

GRAPH, METADATA_PROPS = 7, 14
KEY, VALUE = 1, 2
MAX_METADATA = 64 * 2**20
"""Bytes of a file's metadata that are read at most; a golden sample of 1,000 classes
needs some 25 MB, one of a few classes 100 kB."""
MAX_MODEL = 2**31 - 1
"""Bytes of an ONNX file at most: what protobuf can hold."""

ZIP_MAGIC = b"PK\x03\x04"
"""How files of `torch.save` begin."""
ORT_MAGIC = b"ORTM"
"""Bytes 4 to 7 of a file in ONNX Runtime's own format, which is no protobuf and is not looked into."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of an ONNX file as {key: value}.

    Raises:
        ModelError: there is no such file, or it is not one whole ONNX file.
    """
    with open_wire(path) as (wire, size):
        return _entries(wire, size)


@contextmanager
def open_wire(path: str | os.PathLike[str]) -> Iterator[tuple[Wire, int]]:
    """Open an ONNX file to be walked; gives the reader and the size of the file in bytes.

    Raises:
        ModelError: there is no such file, it cannot be an ONNX file, or the block found it malformed (`WireError`).
    """
    model = Path(path)
    try:
        if model.is_dir():
            raise ModelError(f"{model}: is a folder, expected an .onnx file")
        if not model.exists():
            raise ModelError(f"{model}: no such file; make it with: unet-export model.pth")
        if not model.is_file():  # a pipe would be waited for, a device has no end
            raise ModelError(f"{model}: is a pipe or a device, expected an .onnx file")
        with open(model, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise ModelError(f"{model}: is empty (0 bytes), expected an ONNX file")
            if size > MAX_MODEL:
                raise ModelError(f"{model}: has {size} bytes, expected at most {MAX_MODEL}")
            head = file.read(8)
            if head[4:] == ORT_MAGIC:
                raise ModelError(f"{model}: is in ONNX Runtime's own format, expected an .onnx file")
            if head[:4] == ZIP_MAGIC:
                raise ModelError(f"{model}: is no ONNX file but perhaps a PyTorch checkpoint; try: unet-export {model}")
            yield Wire(file, size), size
    except WireError as error:
        raise ModelError(f"{model}: is not an ONNX file, or is cut off ({error}); copy or export it again") from error
    except OSError as error:
        raise ModelError(f"{model}: cannot be read ({error.strerror})") from error


def _entries(wire: Wire, size: int) -> dict[str, str]:
    entries: dict[str, str] = {}
    total, has_graph = 0, False
    for number, kind, length in wire.fields(size):
        has_graph = has_graph or (number, kind) == (GRAPH, BYTES)
        if (number, kind) != (METADATA_PROPS, BYTES):
            continue
        total += length
        if total > MAX_METADATA:
            raise WireError(f"its metadata has more than {MAX_METADATA} bytes")
        key, value = _entry(wire, length)
        if key in entries:  # which of the two holds, readers may see differently
            raise WireError("its metadata has a key twice")
        entries[key] = value
    if not has_graph:
        raise WireError("no graph in it")
    return entries


def _entry(wire: Wire, length: int) -> tuple[str, str]:
    """Message StringStringEntryProto."""
    texts = {KEY: "", VALUE: ""}
    for number, kind, size in wire.fields(length):
        if number in texts and kind == BYTES:
            texts[number] = wire.text(size)
    return texts[KEY], texts[VALUE]
