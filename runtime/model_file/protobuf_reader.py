"""Protobuf's wire format: a reader that trusts no byte of a file, and a writer of single fields.

A message is a sequence of fields. A field is a tag (number and kind), followed by a number, by 4 or 8 bytes, or by a
length and that many bytes (protobuf.dev, Encoding). Unneeded fields are skipped by their length, so the time does not
depend on the size of the weights. The reader is stricter than protobuf: it refuses tags above 32 bits, numbers above 64
bits and groups, since readers differ in their treatment.
"""

from collections.abc import Iterator
from io import BufferedIOBase

MAX_FIELDS = 250_000
"""Maximum number of fields in a file: a second's work, and a hundred times as many as a deep U-Net has."""

CHUNK = 4_096
"""Number of bytes that are read from the file at once."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
KINDS = frozenset({VARINT, FIXED64, BYTES, FIXED32})


class WireError(ValueError):
    """The bytes are not a valid message. The text says what is wrong and quotes no byte of the file."""


class Wire:
    """Reader of a file of `size` bytes, field by field; `position` is the next byte."""

    def __init__(self, file: BufferedIOBase, size: int) -> None:
        self.position = 0
        self._file, self._size = file, size
        self._chunk, self._start, self._fields = b"", 0, 0

    def fields(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Walk a message of `length` bytes from `position` on; yields (number, kind, value) of each field.

        For a field of kind `BYTES` the value is its length and `position` its first byte. The caller may read it as
        text or as a message. The walk then continues behind the field, however far the caller has read.

        Raises:
            WireError: a field is invalid or longer than its message, or the file has more than `MAX_FIELDS`.
        """
        end = self.position + length
        if end > self._size:
            raise WireError("the file ends early")
        while self.position < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise WireError(f"it has more than {MAX_FIELDS} fields")
            tag = self.number(end)
            number, kind = tag >> 3, tag & 7
            if number == 0 or tag >= 2**32:
                raise WireError("a field has an impossible number")
            if kind not in KINDS:
                raise WireError(f"a field is of the unknown kind {kind}")
            value = self.number(end) if kind in (VARINT, BYTES) else 0
            after = self.position + {VARINT: 0, BYTES: value, FIXED64: 8, FIXED32: 4}[kind]
            if after > end:
                raise WireError("the file ends early")
            yield number, kind, value
            self.position = after

    def number(self, end: int) -> int:
        """Read a varint: seven bits a byte, least significant first; an unsigned number of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte(end)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if byte >= 0x80 or value >= 2**64:
            raise WireError("a number has more than 64 bits")
        return value

    def text(self, length: int) -> str:
        """Read `length` bytes as UTF-8."""
        self._file.seek(self.position)
        content = self._file.read(length)
        if len(content) < length:
            raise WireError("the file ends early")
        self.position += length
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise WireError("a text is not UTF-8") from None  # the cause quotes the bytes

    def _byte(self, end: int) -> int:
        if self.position >= end:
            raise WireError("the file ends early")
        offset = self.position - self._start
        if not 0 <= offset < len(self._chunk):
            self._file.seek(self.position)
            self._chunk, self._start, offset = self._file.read(CHUNK), self.position, 0
            if not self._chunk:  # the file has become shorter
                raise WireError("the file ends early")
        self.position += 1
        return self._chunk[offset]


def signed(value: int) -> int:
    """A varint's 64 bits as an int64."""
    return value - 2**64 if value >= 2**63 else value


def field(number: int, content: int | bytes) -> bytes:
    """Write a field: a varint of 64 bits, or a length and its bytes."""
    if isinstance(content, int):
        return _varint(number << 3 | VARINT) + _varint(content % 2**64)
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
