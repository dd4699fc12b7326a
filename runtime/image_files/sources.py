"""Sources of images: paths, bytes, file objects, and texts that are none of them; what messages call them."""

import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import iscoroutinefunction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import ImageError, one_line
from runtime.image_files import heif
from runtime.image_files.limits import Limits
from runtime.image_files.starts import is_known_start
from runtime.support.concurrency import alone_with

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import TypeIs

BASE64, BASE64_LENGTH = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*"), 256
"""Texts of at least so many characters may be base64."""

LONGEST_NAME, SHOWN_NAME = 4_096, 40
"""Maximum length of a name that messages show, a path's maximum; characters that are shown of a longer one."""

PIECE = 2**20
"""Bytes of a stream that are read at once."""

QUOTED = re.compile(r"""[:'"]""")
"""The beginning of what a decoder's message quotes."""


def is_picture(source: object) -> "TypeIs[Image.Image]":
    """Return True for a PIL image. Who has one has loaded Pillow; for others it need not be."""
    picture = getattr(sys.modules.get("PIL.Image"), "Image", None)  # not there yet while another thread imports Pillow
    return picture is not None and isinstance(source, picture)


@contextmanager
def open_source(source: str | os.PathLike[str] | IO[bytes], name: str, limits: Limits) -> Iterator[IO[bytes]]:
    """Open a file for its header alone: on disk as it is, everything else from memory; an open file stays open."""
    if not isinstance(source, str | os.PathLike):
        yield source
        return
    with open(source, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            check_bytes(status.st_size, name, limits)
            yield file
        else:
            yield io.BytesIO(read_stream(file, name, limits))


def read_source(source: Any, name: str, limits: Limits) -> bytes:
    """Read all of a source: the decoders check its structure before they decode."""
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(memoryview(source).nbytes, name, limits)
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        if (kind := kind_of_text(source)) and not os.path.lexists(source):
            raise ImageError(f"{name}: {kind}")
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return read_stream(file, name, limits)
            check_bytes(status.st_size, name, limits)
            return file.read(status.st_size)
    if hasattr(source, "read") and iscoroutinefunction(source.read):  # an upload of Starlette, whose file is in `file`
        inner = getattr(source, "file", None)
        if inner is None or not hasattr(inner, "read") or iscoroutinefunction(inner.read):
            raise ImageError(f"{type(source).__name__}: is read by a coroutine; give the bytes, await image.read()")
        source = inner
    if hasattr(source, "read"):
        with alone_with(source):
            return read_stream(source, name, limits)
    raise ImageError(
        f"{type(source).__name__}: cannot be read as an image; expected a path, bytes, a binary file object, "
        "a PIL image or an array"
    )


def read_stream(file: Any, name: str, limits: Limits) -> bytes:
    """Read a stream to its end, from its start where it can seek."""
    with suppress(AttributeError, OSError):  # pipes and sockets cannot
        file.seek(0)
    content = bytearray()
    while piece := file.read(PIECE):
        if isinstance(piece, str):
            raise ImageError(f"{name}: is a text file, expected a binary one; open it with mode 'rb'")
        content += piece
        if len(content) > limits.file_bytes:
            break
    check_bytes(len(content), name, limits, whole=len(content) <= limits.file_bytes)
    return bytes(content)


def check_bytes(count: int, name: str, limits: Limits, *, whole: bool = True) -> None:
    """Raise an error for an empty source or one that exceeds the limits; `whole` is false if there is more of it."""
    if not count:
        raise ImageError(f"{name}: is empty (0 bytes), expected an image")
    limits.check_file(count, whole=whole)


def kind_of_text(source: object) -> str:
    """Return the end of a message about a text that is no path: a URL or an encoded image; "" for any other source."""
    text = os.fsdecode(source) if isinstance(source, str | os.PathLike | bytes) else ""
    if text.startswith("data:"):
        return "is a data URL, expected a path; give base64.b64decode(text.partition(',')[2])"
    if text.startswith(("http://", "https://", "s3://", "gs://")):
        return "is a URL, expected a path; download it, and give the file or its bytes"
    if looks_like_base64(text) and is_image_in_base64(text):
        return "looks like base64, expected a path; give base64.b64decode(text)"
    return ""


def looks_like_base64(text: str) -> bool:
    """Return True for a long text of the letters of base64; a path may have just these, too."""
    return len(text) >= BASE64_LENGTH and BASE64.fullmatch(text) is not None


def is_image_in_base64(text: str) -> bool:
    """Return True if a text that looks like base64 begins as an image file does."""
    import base64

    letters = re.sub(r"\s", "", text[:BASE64_LENGTH]).translate(str.maketrans("-_", "+/"))
    start = base64.b64decode(letters[: min(44, len(letters) // 4 * 4)])[:32]
    return is_known_start(start) or heif.module_of(start) is not None


def name_of(source: object) -> str:
    """Name of an image in messages: its path if it has one; of a text that is no path, its beginning."""
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        is_no_path = bool(kind_of_text(text)) or (looks_like_base64(text) and not begins_in_a_folder(text))
        is_long = len(text) > LONGEST_NAME or (len(text) > SHOWN_NAME and is_no_path)
        return f"{text[:SHOWN_NAME]}... ({len(text)} characters)" if is_long else text
    return str(getattr(source, "name", None) or "image")


def begins_in_a_folder(path: str) -> bool:
    """Return True for a path whose first part exists."""
    return "/" in path[1:] and Path(path[: path.find("/", 1)]).is_dir()


def reason(error: Exception) -> str:
    """Return an error's text up to what it quotes, on one line: other people's files are never quoted."""
    text = one_line(QUOTED.split(str(error.args[0] if error.args else ""), maxsplit=1)[0]).rstrip(" (")
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
    return text[:200] if text.isprintable() and text else type(error).__name__
