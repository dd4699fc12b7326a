"""Signals are noted while a run handles them, and a second one ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unet_core.training.interrupts import AT_ONCE, NOTED, SIGNALS, InterruptHandler

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.timing


@pytest.fixture(autouse=True)
def _handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143)), (signal.SIGHUP, SystemExit(129))],
)
def test_a_signal_is_noted_and_the_run_leaves_as_it_asked(number, expected):
    handler = InterruptHandler()
    with handler.listening():
        assert handler.signal == 0
        os.kill(os.getpid(), number)
        assert handler.signal == number
    with pytest.raises(type(expected)) as found:
        handler.exit()
    assert found.value.args == expected.args


def test_what_was_ignored_stays_ignored():
    """SIGHUP under nohup is such a signal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handler = InterruptHandler()
        with handler.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert handler.signal == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_come_back_after_an_error_too():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def listen_and_fail():
        with InterruptHandler().listening():
            found.append(signal.getsignal(signal.SIGTERM))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        listen_and_fail()
    assert found != [before]
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_nothing_is_listened_to():
    found = []

    def listen():
        with InterruptHandler().listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_signal_after_another_processs_is_no_second_one():
    handler = InterruptHandler()
    with handler.listening():
        handler.signal = signal.SIGTERM  # told by another process of the run
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler.signal == signal.SIGTERM


FORKED = """
import os, time
from unet_core.training.interrupts import InterruptHandler
with InterruptHandler().listening():
    if not os.fork():
        time.sleep(20)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_that_lives_on_does_not_hold_the_run():
    """The processes that load images are such."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, check=True)
    assert time.monotonic() - started < 10


TWICE = """
import os, signal, sys, time
from unet_core.training.interrupts import InterruptHandler
with InterruptHandler().listening():
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
        time.sleep(1.2)
        print(number, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(second):
    numbers = [str(int(signal.SIGINT)), str(int(second))]
    command = [sys.executable, "-c", TWICE, *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + second, f"{numbers[0]}\n")
    assert done.stderr == f"{NOTED}\n{AT_ONCE}\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_only_the_first_process_acknowledges_a_signal():
    command = [
        sys.executable,
        "-c",
        TWICE.replace("InterruptHandler()", "InterruptHandler(speaks=False)"),
        str(int(signal.SIGINT)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BUSY = """
import os, signal, threading, time
import numpy
from unet_core.training.interrupts import InterruptHandler

def twice():
    for _ in range(2):
        time.sleep(0.7)
        os.kill(os.getpid(), signal.SIGINT)

with InterruptHandler().listening():
    threading.Thread(target=twice).start()
    numpy.sort(numpy.random.rand(6 * 10**7))  # one instruction to Python, many seconds long
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_signal_does_not_wait_for_a_long_instruction():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, f"{NOTED}\n{AT_ONCE}\n")
    assert time.monotonic() - started < 10


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_signals_close_together_count_as_one():
    """The case of a process manager that tells the whole group, while the parent tells its children."""
    number = str(int(signal.SIGTERM))
    at_once = TWICE.replace("time.sleep(1.2)", "time.sleep(0.01)")
    command = [sys.executable, "-c", at_once, number, number]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{number}\n{number}\n")


@pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")
def test_an_end_at_once_shows_the_terminals_cursor_again():
    reader, terminal = os.openpty()
    command = [sys.executable, "-c", TWICE, str(int(signal.SIGINT)), str(int(signal.SIGINT))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal, check=False)
    os.close(terminal)
    assert done.returncode == 130
    said = b""
    with contextlib.suppress(OSError):  # the end, as a terminal tells it
        while part := os.read(reader, 1000):
            said += part
    assert said.decode().endswith(f"\r\x1b[2K{AT_ONCE}\r\n\x1b[?25h")
    os.close(reader)
