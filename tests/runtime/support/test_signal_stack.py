import ctypes
import sys

import pytest

from runtime.support.signal_stack import SignalStack, kept_signal_stack


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack is called on Linux alone")
def test_a_stack_that_is_set_within_is_taken_back():
    libc, before, after = ctypes.CDLL(None), SignalStack(), SignalStack()
    memory = ctypes.create_string_buffer(2**16)
    libc.sigaltstack(None, ctypes.byref(before))
    with kept_signal_stack():
        assert libc.sigaltstack(ctypes.byref(SignalStack(ctypes.addressof(memory), 0, len(memory))), None) == 0
    libc.sigaltstack(None, ctypes.byref(after))
    assert (after.place, after.size) == (before.place, before.size)
