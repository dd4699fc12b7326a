"""Protobuf's wire format: exact where it is right, a WireError that quotes nothing where it is not."""

import io

import pytest

from runtime.model_file import protobuf_reader
from runtime.model_file.protobuf_reader import BYTES, FIXED32, FIXED64, VARINT, Wire, WireError, field, signed


def walk(content):
    """[(number, kind, value)] of a message."""
    return list(Wire(io.BytesIO(content), len(content)).fields(len(content)))


def test_fields_of_every_kind():
    content = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\xfa\x01\x00"
    assert walk(content) == [(1, VARINT, 150), (2, BYTES, 3), (3, FIXED64, 0), (4, FIXED32, 0), (31, BYTES, 0)]


def test_what_was_written_is_read():
    content = field(1, -1) + field(300, b"x" * 200) + field(2**29 - 1, 2**64 - 1)
    assert walk(content) == [(1, VARINT, 2**64 - 1), (300, BYTES, 200), (2**29 - 1, VARINT, 2**64 - 1)]
    assert [signed(2**64 - 1), signed(2**63), signed(2**63 - 1)] == [-1, -(2**63), 2**63 - 1]


def test_texts_and_inner_messages_are_read_where_the_caller_asks():
    content = field(1, field(5, "für".encode()) + field(6, 7)) + field(2, b"skipped") + field(3, 9)
    reader = Wire(io.BytesIO(content), len(content))
    found = []
    for number, _, value in reader.fields(len(content)):
        found.append(number)
        if number == 1:
            inner = reader.fields(value)
            assert next(inner) == (5, BYTES, 4)
            assert reader.text(4) == "für"  # the rest of the message is left unread
    assert found == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x08", "the file ends early"),
        (b"\x08\x80", "the file ends early"),
        (b"\x12\x04abc", "the file ends early"),
        (b"\x12" + b"\xff" * 9 + b"\x01", "the file ends early"),
        (b"\x19" + bytes(7), "the file ends early"),
        (b"\x25" + bytes(3), "the file ends early"),
        (b"\x00\x00", "a field has an impossible number"),
        (b"\x88\x80\x80\x80\x10\x00", "a field has an impossible number"),
        (b"\x0b", "a field is of the unknown kind 3"),
        (b"\x0f", "a field is of the unknown kind 7"),
        (b"\x08" + b"\xff" * 11, "a number has more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "a number has more than 64 bits"),
    ],
)
def test_malformed_message_names_its_fault(content, message):
    with pytest.raises(WireError) as caught:
        walk(content)
    assert str(caught.value) == message


def test_an_inner_message_cannot_be_longer_than_its_outer_one():
    content = field(1, b"\x12\x05ab") + b"cdefgh"
    reader = Wire(io.BytesIO(content), len(content))
    _, _, length = next(reader.fields(len(content)))
    with pytest.raises(WireError, match=r"^the file ends early$"):
        list(reader.fields(length))


def test_text_that_is_not_utf_8_is_not_quoted():
    reader = Wire(io.BytesIO(b"\xff\xfe"), 2)
    with pytest.raises(WireError, match=r"^a text is not UTF-8$") as caught:
        reader.text(2)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_number_of_fields_is_bounded(monkeypatch):
    monkeypatch.setattr(protobuf_reader, "MAX_FIELDS", 10)
    assert len(walk(field(1, 1) * 10)) == 10
    with pytest.raises(WireError, match=r"^it has more than 10 fields$"):
        walk(field(1, field(1, 1) * 4) + field(1, 1) * 10)


def test_a_file_that_has_become_shorter_ends_early():
    content = field(1, b"x" * protobuf_reader.CHUNK) + field(2, b"text")
    for kept in (len(content) - 6, len(content) - 2):
        reader = Wire(io.BytesIO(content[:kept]), len(content))
        with pytest.raises(WireError, match=r"^the file ends early$"):
            [reader.text(length) for _, _, length in reader.fields(len(content))]
