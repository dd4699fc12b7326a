"""Reading the metadata of an ONNX file: the right answer or a ModelError, for any bytes, and cheaply."""

import io
import random
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from runtime.errors import ModelError
from runtime.model_file import metadata, opening
from runtime.model_file.metadata import read_metadata

ENTRIES = {"unet.card": '{"schema": 1}', "umlaut": "äöü → 漢字", "empty": "", "long": "x" * 300}


@pytest.fixture
def small(make_graph):
    """The bytes of a small ONNX file with `ENTRIES`."""
    model = make_graph()
    model.producer_name, model.model_version, model.doc_string = "tests", 7, "documentation"
    helper.set_model_props(model, ENTRIES)
    return model.SerializeToString()


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and read their metadata."""
    path = tmp_path / "model.onnx"

    def write_and_read(content):
        path.write_bytes(content)
        return read_metadata(path)

    return write_and_read


def field(number, content, kind=2):
    """One protobuf field: length-delimited, or (kind 0) a number."""
    return varint(number << 3 | kind) + (varint(content) if kind == 0 else varint(len(content)) + content)


def varint(value):
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def test_metadata_equals_what_onnx_says(read, small):
    expected = {entry.key: entry.value for entry in onnx.load_from_string(small).metadata_props}
    assert read(small) == expected == ENTRIES


def test_metadata_of_a_model_with_none_is_empty(read, make_graph):
    assert read(make_graph("conv").SerializeToString()) == {}


def test_file_cut_off_at_any_byte_is_an_error_or_a_correct_beginning(read, small):
    order = list(ENTRIES.items())
    starts = [dict(order[:count]) for count in range(len(order) + 1)]
    counts = []
    for length in range(len(small)):
        try:
            found = read(small[:length])
        except ModelError as error:
            assert "truncated" in str(error) or "is empty" in str(error)  # noqa: PT017
            counts.append(-1)
        else:
            counts.append(starts.index(found))
    seen = [count for count in counts if count >= 0]
    assert all(before <= after for before, after in pairwise(seen))
    assert len(seen) <= len(order) + 1  # only where a field ends, so a cut entry is never read


def test_bytes_at_random_are_a_model_error(read):
    source = random.Random(20150518)
    for _ in range(1000):
        content = source.randbytes(source.randint(1, 60))
        with pytest.raises(ModelError, match="is not an ONNX file, or is truncated"):
            read(content)


def test_damaged_file_is_an_error_or_some_text(read, small):
    source = random.Random(1)
    refused = 0
    for _ in range(1000):
        content = bytearray(small)
        for _ in range(source.randint(1, 3)):
            content[source.randrange(len(content))] = source.randrange(256)
        try:
            found = read(bytes(content))
        except ModelError:
            refused += 1
        else:
            assert all(isinstance(text, str) for entry in found.items() for text in entry)
    assert 100 < refused < 1000


GRAPH = field(7, b"")
PROPS = metadata.METADATA_PROPS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (field(1, 8, kind=0), "no graph in it"),
        (b"\x00\x00", "a field has an impossible number"),
        (GRAPH + varint(7 << 3 | 2) + varint(2**63), "the file ends early"),
        (GRAPH + varint(PROPS << 3 | 2) + varint(2**40), "the file ends early"),
        (GRAPH + field(PROPS, varint(1 << 3 | 2) + varint(9) + b"key"), "the file ends early"),
        (GRAPH + field(PROPS, field(1, b"\xff\xfe")), "a text is not UTF-8"),
        (GRAPH + field(PROPS, field(1, b"key")) * 2, "its metadata has a key twice"),
    ],
)
def test_malformed_message_names_its_fault(tmp_path, read, content, message):
    with pytest.raises(ModelError) as caught:
        read(content)
    path = tmp_path / "model.onnx"
    assert str(caught.value) == f"{path}: is not an ONNX file, or is truncated ({message}); copy or export it again"


def test_fields_of_every_kind_are_skipped(read):
    skipped = field(99, 2**64 - 1, kind=0) + varint(98 << 3 | 1) + b"8 bytes." + varint(97 << 3 | 5) + b"four"
    entry = field(1, b"key") + field(3, 5, kind=0) + field(2, 5, kind=0) + field(9, b"unknown") + field(2, b"value")
    assert read(skipped + GRAPH + field(PROPS, entry) + skipped + field(PROPS, b"")) == {"key": "value", "": ""}


def test_huge_entry_is_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    size = metadata.MAX_METADATA + 1
    with open(path, "wb") as file:
        file.write(GRAPH + varint(PROPS << 3 | 2) + varint(size))
        file.truncate(file.tell() + size)
    with pytest.raises(ModelError, match="its metadata has more than 67108864 bytes"):
        read_metadata(path)


def test_many_entries_together_are_bounded_too(read, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_METADATA", 40)
    entries = [field(PROPS, field(1, name) + field(2, b"x" * 12)) for name in (b"a", b"b", b"c")]
    assert list(read(GRAPH + b"".join(entries[:2]))) == ["a", "b"]
    with pytest.raises(ModelError, match="its metadata has more than 40 bytes"):
        read(GRAPH + b"".join(entries))


def test_weights_are_skipped_not_read(tmp_path, monkeypatch, make_graph):
    model = make_graph()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2_000_000, np.float32), "heavy"))
    helper.set_model_props(model, ENTRIES)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    count = 0

    class Counting(io.FileIO):
        def readinto(self, buffer):
            nonlocal count
            got = super().readinto(buffer)
            count += got
            return got

    monkeypatch.setattr(opening, "open", lambda name, mode: io.BufferedReader(Counting(name)), raising=False)
    assert read_metadata(path) == ENTRIES
    assert path.stat().st_size > 8_000_000
    assert 0 < count < 50_000


def test_picture_is_not_a_model(tmp_path):
    path = tmp_path / "model.onnx"
    Image.new("RGB", (8, 8)).save(path, "PNG")
    with pytest.raises(ModelError, match=r"looks like an image \(PNG\), expected an \.onnx file; are model and image"):
        read_metadata(path)
