"""What ends a run before its time: signals, and losses that are not finite."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ENOUGH = 0
"""What is said instead of a signal's number when nobody listens any more."""

REPEATED = 0.5
"""Seconds within which signals count as one: a process manager may tell a whole group, and torchrun each one again."""

STDOUT, STDERR = 1, 2
CLEAR_LINE, SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"
"""What a terminal is told to make room where a progress bar is, and to show the cursor, which bars hide."""

NOTED = "stopping: the step is finished and saved first; once more ends at once"
AT_ONCE = "ended at once; what was trained since the last save is lost"


class InterruptHandler:
    """SIGINT, SIGTERM and SIGHUP, noted while a run trains: the step is finished and saved; a second ends at once.

    `signal` is the number of the one that came, here or in another process of the run, and 0 until then. What was
    ignored before, as SIGHUP is under `nohup`, stays so. With `speaks`, a line on stderr acknowledges each signal.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.signal, self.speaks = 0, speaks
        self.terminals = [number for number in (STDOUT, STDERR) if os.isatty(number)]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen, where this is the main thread: only that one is told."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ear, voice = socket.socketpair()
        voice.setblocking(False)
        watcher = threading.Thread(target=_end_at_second, args=(ear, self.speaks), daemon=True)
        watcher.start()
        spoken_to = signal.set_wakeup_fd(voice.fileno(), warn_on_full_buffer=False)
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._take) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(spoken_to)
            voice.send(bytes([ENOUGH]))  # closing says nothing while a forked process holds it too
            watcher.join()
            voice.close()
            ear.close()

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for terminal in self.terminals:
            if not os.isatty(terminal):  # closed: whatever is still said would be an error, also at Python's end
                _say_no_more(terminal)

    def leave(self) -> None:
        """End as the signal asked, with everything saved."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


def _say_no_more(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _end_at_second(ear: socket.socket, speaks: bool) -> None:
    """End the process when a second signal comes.

    Python takes signals between two of its own instructions, and one of those can be a step of the network that lasts
    minutes. Their numbers are written to this socket at once, and a thread reads them at once.
    """
    first: float | None = None
    while ENOUGH not in (numbers := ear.recv(64)):
        for number in SIGNALS:
            now = time.monotonic()
            if number not in numbers:
                continue
            if first is None:
                first = now
                if speaks:
                    _tell(NOTED)
            elif now - first > REPEATED:
                if speaks:
                    _tell(AT_ONCE, SHOW_CURSOR)
                os._exit(128 + number)  # not even files are closed: what is on disk is whole, whenever this happens


def _tell(text: str, to_terminal: str = "") -> None:
    """Write a line to stderr past all buffers and locks, which the main thread may hold."""
    with suppress(OSError):
        watched = os.isatty(STDERR)
        os.write(STDERR, f"{CLEAR_LINE * watched}{text}\n{to_terminal * watched}".encode())
