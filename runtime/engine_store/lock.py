"""The lock of an engine: held by the process that builds or loads it, given back even if that process is killed."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.engine_store.permissions import ENGINES, explained
from runtime.support.locks import try_lock

POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, note: Callable[[str], None] | None) -> Iterator[None]:
    """Hold a file's lock, against threads too; wait for it and say so, or with `note` None raise BlockingIOError."""
    waiting = False
    while True:
        with explained(path.parent):
            descriptor = held(path)
        if descriptor is not None:
            break
        if note is None:
            raise BlockingIOError
        if not waiting:
            note(f"engine {path.name[:12]}: waiting for another process that builds or loads it")
            waiting = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)  # which gives the lock back, as the end of a killed process does


def held(path: Path) -> int | None:
    """Return a descriptor that holds the file's lock, or None if another one holds it.

    Raises:
        DeviceError: it is a link, a pipe or a device, or not ours alone.
        OSError: it cannot be opened or locked.
    """
    descriptor = ENGINES.open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        if try_lock(descriptor) and _is_still(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_still(descriptor: int, path: Path) -> bool:
    """Return False if `prune` removed a file before it was locked here."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
