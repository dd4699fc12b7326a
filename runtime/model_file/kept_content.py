"""Models that were given as bytes, kept in files for as long as somebody uses them.

Everything that reads a model reads a file: validation, digest, ONNX Runtime, and the session that is opened again
after a fork. So bytes are written to a temporary file that only this user can read. The same bytes are one file.
"""

import os
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from runtime.errors import ModelError
from runtime.model_file.opening import MAX_MODEL
from runtime.support.files import require_temporary_folder, write_bytes

Content = bytes | bytearray | memoryview | IO[bytes]
"""A model's bytes, or a binary file object that gives them."""

_kept: weakref.WeakValueDictionary[bytes, "KeptContent"] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class KeptContent:
    """A model's bytes in a file at `path`, which is removed when nobody refers to this any more."""

    def __init__(self, content: bytes) -> None:
        import tempfile  # loads random and hashlib, which most programs do without

        require_temporary_folder("a model that is given as bytes")
        folder = tempfile.mkdtemp(prefix="unet-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self.path = Path(folder, "model.onnx")
        write_bytes(self.path, content)


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a fork uses its parent's file
        import shutil  # loads four decompressors

        shutil.rmtree(folder, ignore_errors=True)


def is_content(model: object) -> bool:
    """Return True for bytes or a file object, and not for a path."""
    return isinstance(model, bytes | bytearray | memoryview) or hasattr(model, "read")


def keep_content(model: Any) -> KeptContent:
    """Return the file of a model's bytes; the same one for the same bytes, while it is in use.

    A file object is read from its start if it can seek, and stays open.

    Raises:
        ModelError: it gives text, or there are more bytes than an ONNX file may have.
        OutputError: there is no room for a temporary file.
    """
    if hasattr(model, "read"):
        if hasattr(model, "seekable") and model.seekable():
            model.seek(0)
        model = model.read(MAX_MODEL + 1)
        if not isinstance(model, bytes):
            raise ModelError(f"model: gives {type(model).__name__}, expected bytes; open the file with mode 'rb'")
    content = bytes(model)
    if not content or len(content) > MAX_MODEL:
        raise ModelError(f"model: has {len(content)} bytes, expected 1 to {MAX_MODEL}")
    digest = blake3(content).digest()
    with _lock:
        found = _kept.get(digest)
        if found is None or not found.path.exists():
            found = _kept[digest] = KeptContent(content)
        return found


def kept_at(path: Path) -> KeptContent | None:
    """Return the bytes that are kept at this path, so that they stay there; None for any other file."""
    with _lock:
        return next((one for one in _kept.values() if one.path == path), None)


def _after_fork() -> None:
    """Another thread may have held the lock, and is not there to release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
