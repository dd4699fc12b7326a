"""The stack that a thread keeps for signals, which a library may set and free again while it is in use."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DISABLED = 2
"""SS_DISABLE of sigaltstack(2)."""


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread the stack for signals that it had before the block; does nothing but on Linux.

    OpenVINO sets one on CPUs with AMX. If its objects are freed on another thread, the memory is gone and the next
    signal, such as Ctrl-C, ends the process.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        before.flags = DISABLED if not before.place else 0
        libc.sigaltstack(ctypes.byref(before), None)
