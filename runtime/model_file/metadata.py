"""An ONNX file's metadata, read without the onnx package and before any session is made.

An ONNX file is one protobuf message. Only its top level is walked. All fields but `metadata_props` (onnx.proto, message
ModelProto, field 14) are skipped by their length, so the time does not depend on the size of the weights.
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
"""Maximum size of a file's metadata, in bytes. A golden sample of 1,000 classes needs 25 MB, one of a few classes
100 kB."""
MAX_MODEL = 2**31 - 1
"""Maximum size of an ONNX file, in bytes, which is protobuf's own limit."""

ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of a file of `torch.save`."""
ORT_MAGIC = b"ORTM"
"""Bytes 4 to 7 of a file in ONNX Runtime's own format, which is not protobuf and not supported."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of an ONNX file as {key: value}.

    Raises:
        ModelError: the file does not exist, or is not a complete ONNX file.
    """
    entries: dict[str, str] = {}
    total, has_graph = 0, False
    with open_wire(path) as (wire, file_size):
        for number, kind, length in wire.fields(file_size):
            has_graph = has_graph or (number, kind) == (GRAPH, BYTES)
            if (number, kind) != (METADATA_PROPS, BYTES):
                continue
            total += length
            if total > MAX_METADATA:
                raise WireError(f"its metadata has more than {MAX_METADATA} bytes")
            texts = {KEY: "", VALUE: ""}  # message StringStringEntryProto
            for inner, inner_kind, size in wire.fields(length):
                if inner in texts and inner_kind == BYTES:
                    texts[inner] = wire.text(size)
            if texts[KEY] in entries:  # readers differ in which of the two holds
                raise WireError("its metadata has a key twice")
            entries[texts[KEY]] = texts[VALUE]
        if not has_graph:
            raise WireError("no graph in it")
    return entries


@contextmanager
def open_wire(path: str | os.PathLike[str]) -> Iterator[tuple[Wire, int]]:
    """Open an ONNX file and give a reader of its fields and the file's size in bytes.

    Raises:
        ModelError: the file does not exist, cannot be an ONNX file, or the block raised a `WireError`.
    """
    model = Path(path)
    try:
        if model.is_dir():
            raise ModelError(f"{model}: is a folder, expected an .onnx file")
        if not model.exists():
            raise ModelError(f"{model}: no such file; make it with: unet-export model.pth")
        if not model.is_file():  # reading a pipe would wait, a device has no end
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
                raise ModelError(f"{model}: looks like a PyTorch checkpoint; convert it with: unet-export {model}")
            yield Wire(file, size), size
    except WireError as error:
        raise ModelError(f"{model}: is not an ONNX file, or is truncated ({error}); copy or export it again") from error
    except OSError as error:
        raise ModelError(f"{model}: cannot be read ({error.strerror})") from error
