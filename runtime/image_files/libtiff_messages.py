"""libtiff's messages while it decodes for us: an error of ours, and not a line on the process's stderr.

libtiff writes its errors to file descriptor 2 from inside, and goes on after some of them. Its handler belongs to the
whole process. So it is replaced, once, when the first TIFF is decoded, by one that asks a context variable: within our
calls it takes a note, for other calls it does what the handler before it did.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from PIL import _imaging

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""void handler(const char *module, const char *format, va_list). A va_list is passed as one pointer on every system
that Pillow has wheels for, so it can be handed on."""

OF_THE_DIRECTORY = (b"TIFFFetch", b"TIFFReadDirectory", b"_TIFFVSetField")
"""Beginnings of modules whose errors concern a tag, not the pixels. A tag that matters is missed by the next module."""

_said: ContextVar[list[bytes] | None] = ContextVar("said", default=None)

_handlers: list[Any] = []
"""Our handlers, which libtiff may call for as long as the process runs."""


@contextmanager
def libtiff_errors() -> Iterator[list[bytes]]:
    """Take note of the modules of libtiff that report an error about pixels within the block, on this thread."""
    take_over()
    said: list[bytes] = []
    token = _said.set(said)
    try:
        yield said
    finally:
        _said.reset(token)


@cache
def take_over() -> None:
    """Replace libtiff's handler; where Pillow hides libtiff (on Windows), it stays as it is.

    Two threads may do so at once: then one handler calls the other, so both are kept.
    """
    try:
        replace = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return
    replace.restype, replace.argtypes = ctypes.c_void_p, [HANDLER]
    before: list[Any] = []
    complete = threading.Event()

    def handle(module: bytes | None, form: bytes | None, values: int | None) -> None:
        said = _said.get()
        if said is None:
            complete.wait()
            for handler in before:
                handler(module, form, values)
        elif not (module or b"").startswith(OF_THE_DIRECTORY):
            said.append(module or b"libtiff")

    handler = HANDLER(handle)
    _handlers.append(handler)
    if previous := replace(handler):
        before.append(HANDLER(previous))
    complete.set()
