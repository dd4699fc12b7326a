"""An ONNX file's metadata, read without the onnx package and before any session is made.

An ONNX file is one protobuf message. Only its top level is walked. All fields but `metadata_props` (onnx.proto, message
ModelProto, field 14) are skipped by their length, so the time does not depend on the size of the weights.
"""

import os

from runtime.card import CARD_KEY, RAW_KEY
from runtime.errors import ModelError
from runtime.model_file.golden import GOLDEN_KEY
from runtime.model_file.opening import open_wire
from runtime.model_file.protobuf_reader import BYTES, WireError

GRAPH, METADATA_PROPS = 7, 14
KEY, VALUE = 1, 2
MAX_METADATA = 64 * 2**20
"""Maximum size of a file's metadata, in bytes. A golden sample of 1,000 classes needs 25 MB, one of a few classes
100 kB."""


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


def read_card_and_golden(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the card and the golden sample of an ONNX file that `unet-export` wrote, as JSON.

    Raises:
        ModelError: the file is missing, damaged, a raw export, or of another program.
    """
    metadata = read_metadata(path)
    if RAW_KEY in metadata:
        raise ModelError(f"{path}: is a raw export (normalised planes in, logits out); export it again without --raw")
    if CARD_KEY not in metadata:
        raise ModelError(
            f"{path}: is an ONNX file without a card (metadata key {CARD_KEY}), so its input and output are unknown; "
            "make it from its checkpoint with: unet-export model.pth"
        )
    if GOLDEN_KEY not in metadata:
        raise ModelError(f"{path}: has no golden sample (metadata key {GOLDEN_KEY}); export the model again")
    return metadata[CARD_KEY], metadata[GOLDEN_KEY]
