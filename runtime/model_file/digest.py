"""The digest: hashes of a model's graph with its weights, of its card and of its golden sample, kept in its metadata.

One flipped bit among the weights rarely shows in the golden sample, and a damaged card may still be a valid card.
`check_digest` finds both before a session is made. It does not say who made a file: whoever changes one on purpose can
write a new digest.

The graph's hash is over all top-level fields of the ONNX file (message ModelProto) except `metadata_props`, byte by
byte as they stand there. So entries of the metadata may be added or change places, and `onnx.load` and `onnx.save` keep
the hash, but programs that rewrite the graph do not.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from runtime.card import CARD_KEY, RAW_KEY
from runtime.errors import ModelError
from runtime.model_file.golden import GOLDEN_KEY
from runtime.model_file.metadata import KEY, METADATA_PROPS, VALUE, read_metadata
from runtime.model_file.opening import open_wire
from runtime.model_file.protobuf_reader import BYTES, FIXED32, FIXED64, WireError, field
from runtime.support.cpu_count import available_threads

DIGEST_KEY = "unet.digest"
"""Key of the digest in an ONNX file's metadata."""

ALGORITHM = "blake3-4mib"
"""BLAKE3 costs a third of sha256; the table is in docs/design.md. The graph's is over the hashes of its pieces."""

PIECE = 2**22
"""Number of bytes that the graph is hashed by, several pieces at once."""

THREADS = 4
"""Maximum number of threads that hash one file; more would wait for the memory."""

PARTS = {"graph": "graph or weights", "card": "card", "golden": "golden sample"}
"""The hashes of a digest, and the words for what they are of."""

HASHED = {CARD_KEY: "card", RAW_KEY: "card", GOLDEN_KEY: "golden"}
"""Metadata keys whose texts have a hash."""

PRODUCER, PRODUCER_NAME = "unet-deploy", 2
"""Value and number of ModelProto's field `producer_name` in files of `unet-export` that have a digest."""

VERIFIED = "verified"
NOT_ASKED = "not verified (verify=False)"
NO_DIGEST = "not verified (the file has none; export it again)"

ADVICE = "copy or export it again, or take it unverified: verify=False in Python, --no-verify of unet-predict"


@dataclass(frozen=True, kw_only=True)
class Integrity:
    """The result of a check: the words for users, and the graph's hash, "" if it was not computed."""

    told: str = NOT_ASKED
    graph: str = ""


def check_digest(path: str | os.PathLike[str]) -> Integrity:
    """Compare a file with the digest that it carries.

    Raises:
        ModelError: a part of the file has another hash; the digest is damaged, or missing where `unet-export` wrote
            one; the file cannot be read, or is not a complete ONNX file.
    """
    metadata = read_metadata(path)
    if DIGEST_KEY not in metadata:
        if producer_name(path) == PRODUCER:
            raise ModelError(f"{path}: its digest is missing, expected the metadata key {DIGEST_KEY}; {ADVICE}")
        return Integrity(told=NO_DIGEST)
    try:
        stored = json.loads(metadata[DIGEST_KEY])
        kind = stored.pop("algorithm")
        if kind != ALGORITHM and re.fullmatch(r"[a-z0-9-]{1,20}", kind):
            raise ModelError(
                f"{path}: has a digest of the kind {kind}, expected {ALGORITHM}; export it again or upgrade unet-deploy"
            )
        if kind != ALGORITHM or not all(re.fullmatch(r"[0-9a-f]{64}", hexadecimal) for hexadecimal in stored.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its digest (metadata key {DIGEST_KEY}) is damaged; {ADVICE}") from error
    found = digest_of(path, metadata)
    if stored == found:
        return Integrity(told=VERIFIED, graph=found["graph"])
    changed = " and ".join(words for part, words in PARTS.items() if stored.get(part) != found.get(part))
    raise ModelError(
        f"{path}: was damaged or changed since it was exported: its digest does not fit its {changed or 'parts'}; "
        f"{ADVICE}"
    )


def seal(path: Path) -> None:
    """Append the digest of a file, which has none yet, to its metadata.

    Raises:
        ModelError: the file is not a complete ONNX file.
        OSError: the file cannot be written.
    """
    text = json.dumps({"algorithm": ALGORITHM} | digest_of(path, read_metadata(path)))
    entry = field(KEY, DIGEST_KEY.encode()) + field(VALUE, text.encode())
    with open(path, "ab") as file:
        file.write(field(METADATA_PROPS, entry))


def digest_of(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the hash of each part of a file, whose metadata is given, in hexadecimal."""
    texts = {HASHED[key]: blake3(text.encode()).hexdigest() for key, text in metadata.items() if key in HASHED}
    return {"graph": graph_digest(path)} | texts


def graph_digest(path: str | os.PathLike[str]) -> str:
    """Return the hash of a file's graph and weights, in hexadecimal: of the hashes of their pieces of `PIECE` bytes.

    Raises:
        ModelError: the file cannot be read, or is not a complete ONNX file.
    """
    spans: list[tuple[int, int]] = []
    with open_wire(path) as (wire, size):
        start = 0
        for number, kind, length in wire.fields(size):
            end = wire.position + {BYTES: length, FIXED64: 8, FIXED32: 4}.get(kind, 0)
            if (number, kind) != (METADATA_PROPS, BYTES):
                joined = bool(spans) and spans[-1][1] == start
                spans.append((spans.pop()[0] if joined else start, end))
            start = end
        return blake3(b"".join(piece_hashes(path, list(cut(spans, PIECE))))).hexdigest()


def piece_hashes(path: str | os.PathLike[str], pieces: Sequence[list[tuple[int, int]]]) -> list[bytes]:
    """Hash pieces of a file in up to `THREADS` threads, or in the caller's if one is enough or none can be started.

    None can be started once the main thread has ended, nor beyond a container's limit.
    """
    threads = min(THREADS, available_threads(), len(pieces))
    if threads > 1:
        with suppress(RuntimeError), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(partial(piece_hash, path), pieces))
    return [piece_hash(path, piece) for piece in pieces]


def cut(spans: Iterable[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Divide a file's spans into pieces, lists of spans, of together `size` bytes each; the last may have fewer."""
    piece, room = [], size
    for start, end in spans:
        while start < end:
            count = min(room, end - start)
            piece.append((start, start + count))
            start, room = start + count, room - count
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


def piece_hash(path: str | os.PathLike[str], spans: Iterable[tuple[int, int]]) -> bytes:
    """Return the hash of some spans of a file, read in parts that fit into a processor's cache."""
    hasher, buffer = blake3(), memoryview(bytearray(2**18))
    with open(path, "rb", buffering=0) as file:
        for start, end in spans:
            file.seek(start)
            while start < end:
                count = file.readinto(buffer[: end - start])
                if not count:  # the file has become shorter
                    raise WireError("the file ends early")
                hasher.update(buffer[:count])
                start += count
    return hasher.digest()


def producer_name(path: str | os.PathLike[str]) -> str:
    """Return the name of the program that wrote an ONNX file, "" if there is none.

    Raises:
        ModelError: the file cannot be read, or is not a complete ONNX file.
    """
    with open_wire(path) as (wire, size):
        for number, kind, length in wire.fields(size):
            if (number, kind) == (PRODUCER_NAME, BYTES):
                return wire.text(length)
    return ""
