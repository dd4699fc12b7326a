"""InterruptHandler: SIGINT, SIGTERM and SIGHUP finish the step, and a second one ends the process at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

END_OF_WATCH = 0
"""Byte that tells the watching thread to end; no signal has this number."""

REPEATED = 0.5
"""Seconds within which signals count as one: a process manager may signal a whole group, and torchrun each process of
it again."""

STDOUT, STDERR = 1, 2
CLEAR_LINE, SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"
"""Escape sequences that clear the line of a progress bar, and show the cursor that the bar hides."""

NOTED = "stopping after this step, which is saved; interrupt again to end at once"
AT_ONCE = "ended at once; training since the last save is lost"


class InterruptHandler:
    """Note signals while a run trains, so that the step is finished and saved; a second signal ends at once.

    `signal` is the number of the signal that this or another process of the run received, and 0 until then. Signals
    that were ignored before, such as SIGHUP under `nohup`, stay ignored. With `speaks`, a line on stderr acknowledges
    each signal.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.signal, self.speaks = 0, speaks
        self.terminals = [number for number in (STDOUT, STDERR) if os.isatty(number)]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in this block. In other threads than the main thread nothing is handled, as Python demands."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        watcher = threading.Thread(target=end_at_second_signal, args=(reader, self.speaks), daemon=True)
        watcher.start()
        former_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        former = {number: signal.signal(number, self.note) for number in handled}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_fd)
            writer.send(bytes([END_OF_WATCH]))  # closing ends nothing while a forked process holds the socket too
            watcher.join()
            writer.close()
            reader.close()

    def note(self, number: int, _: FrameType | None) -> None:
        """Note a signal; a terminal that was closed is replaced by nothing, since writing to it would be an error."""
        self.signal = number
        for terminal in self.terminals:
            if not os.isatty(terminal):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, terminal)
                os.close(nowhere)

    def exit(self) -> None:
        """End the process as the signal asked.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: with the code 128 + signal, after the others.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


def end_at_second_signal(reader: socket.socket, speaks: bool) -> None:
    """End the process when a second signal comes.

    Python handles signals between two of its own instructions, and one of those can be a step of the network that lasts
    minutes. Their numbers are written to this socket at once, and a thread reads them at once.
    """
    first: float | None = None
    while END_OF_WATCH not in (numbers := reader.recv(64)):
        for number in SIGNALS:
            now = time.monotonic()
            if number not in numbers:
                continue
            if first is None:
                first = now
                if speaks:
                    write_to_stderr(NOTED)
            elif now - first > REPEATED:
                if speaks:
                    write_to_stderr(AT_ONCE, SHOW_CURSOR)
                os._exit(128 + number)  # not even files are closed: what is on disk is whole, whenever this happens


def write_to_stderr(text: str, to_terminal: str = "") -> None:
    """Write a line to stderr past all buffers and locks, which the main thread may hold."""
    with suppress(OSError):
        is_terminal = os.isatty(STDERR)
        os.write(STDERR, f"{CLEAR_LINE * is_terminal}{text}\n{to_terminal * is_terminal}".encode())
